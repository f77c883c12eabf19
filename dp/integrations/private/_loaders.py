"""A torch loader, as its private counterpart."""

from typing import Any

from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from dp.exceptions import UnsupportedOperationError
from dp.integrations.private._request import Request
from dp.plan import PrivacyPlan
from dp.sampling import PoissonLoader, TicketedLoader
from dp.sampling._loader_of import loader_of
from dp.sampling._refused_arguments import check_map_style


__all__ = ("batch_size_of", "private_loader")


def batch_size_of(loader: Any) -> int:
    """Return how many rows a batch of *loader* has.

    Raises:
        TypeError: If it is no loader of torch, or of a dataset without random access.
        UnsupportedOperationError: If its batches are private already, or if a sampler
            chooses them.
    """
    if isinstance(loader, TicketedLoader):
        raise UnsupportedOperationError(
            f"the loader is a {type(loader).__name__}, of a plan of its own, and"
            " dp.private makes one; pass the DataLoader of training without privacy"
        )
    if not isinstance(loader, DataLoader):
        raise TypeError(
            "the training data must come by one torch DataLoader, got"
            f" {type(loader).__name__}; pass the DataLoader itself"
        )
    check_map_style(loader.dataset)
    size = loader.batch_size
    sampler = loader.batch_sampler if size is None else loader.sampler
    if size is None or type(sampler) not in (RandomSampler, SequentialSampler):
        raise UnsupportedOperationError(
            f"the loader's {type(sampler).__name__} chooses examples, and the plan draws"
            " them; pass DataLoader(dataset, batch_size=..., shuffle=True)"
        )
    return size


def private_loader(
    loader: DataLoader[Any], plan: PrivacyPlan, request: Request, *, steps: int
) -> PoissonLoader:
    """Return the loader that draws *plan*'s batches of the same dataset.

    Args:
        loader: The loader of training without privacy.
        plan: How batches are drawn.
        request: Whose each row is.
        steps: The batches of one pass.
    """
    return loader_of(
        plan.sampling,  # type: ignore[arg-type]  # Poisson: request.plan makes no other.
        loader.dataset,
        steps=steps,
        units=request.units_of(loader.dataset),
        max_per_unit=request.max_per_unit,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
