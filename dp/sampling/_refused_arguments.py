"""Arguments that the loaders reject, and why."""

import inspect
from collections.abc import Mapping
from typing import Final

from torch.utils.data import DataLoader, IterableDataset

from dp.exceptions import did_you_mean


__all__ = (
    "check_map_style",
    "reject_allocation_arguments",
    "reject_arguments",
    "reject_plan_arguments",
)

_CHOICE: Final = "each batch is drawn by sampling_probability"
_REFUSED: Final = {
    "batch_sampler": _CHOICE,
    "batch_size": f"{_CHOICE}; its mean size is sampling_probability * len(dataset)",
    "drop_last": f"{_CHOICE}, and no batch is ever dropped",
    "generator": "the operating system draws, and it cannot be seeded",
    "in_order": "a ticket must belong to its batch",
    "sampler": _CHOICE,
    "shuffle": f"{_CHOICE}; a shuffled pass has another, larger epsilon",
}


_TAKEN: Final = (
    *("units", "max_per_unit", "collate_fn", "empty_batch", "sharded", "num_workers"),
    "pin_memory",
)


def reject_plan_arguments(arguments: Mapping[str, object]) -> None:
    """Raise for arguments that ``plan.loader`` does not take: torch's, and misspelt ones."""
    for name, value in arguments.items():
        if name in _REFUSED:
            raise TypeError(
                f"plan.loader takes no {name}, got {value!r}: {_REFUSED[name]}"
            )
        if name not in inspect.signature(DataLoader).parameters:
            raise TypeError(
                f"plan.loader takes no {name}, got {value!r}{did_you_mean(name, _TAKEN)}"
            )
        raise TypeError(
            f"plan.loader takes no {name}, got {value!r}; build the loader that takes"
            f" it: dp.PoissonLoader(dataset, sampling_probability=plan."
            f"sampling_probability, steps=plan.steps, {name}=...)"
        )


def reject_arguments(arguments: Mapping[str, object]) -> None:
    """Raise for arguments that torch's loader takes and this one cannot."""
    for name, value in arguments.items():
        if name in _REFUSED:
            raise TypeError(
                f"PoissonLoader takes no {name}, got {value!r}: {_REFUSED[name]}"
            )
        raise TypeError(f"PoissonLoader got an unexpected argument {name}={value!r}")


_ALLOCATED: Final = (
    "each example is in one batch of a pass, by its own coin; steps_per_pass says how"
    " many there are"
)
_REFUSED_OF_ALLOCATION: Final = {
    **{name: _ALLOCATED for name, why in _REFUSED.items() if _CHOICE in why},
    "max_batch_size": "no bound is proven for random allocation whose batches are"
    " truncated; use PoissonLoader, or bound memory by dp.MicroBatches",
    "sampling_probability": _ALLOCATED,
    "steps": f"{_ALLOCATED}, and passes how many passes an iteration has",
}


def reject_allocation_arguments(arguments: Mapping[str, object]) -> None:
    """Raise for arguments that other loaders take and random allocation cannot."""
    for name, value in arguments.items():
        if name in _REFUSED_OF_ALLOCATION:
            raise TypeError(
                f"AllocationLoader takes no {name}, got {value!r}:"
                f" {_REFUSED_OF_ALLOCATION[name]}"
            )


_REFUSED_OF_ROUNDS: Final = {
    **{
        name: "each example is eligible in one step of a round, by its own coin, and"
        " joins it by another"
        for name, why in _REFUSED.items()
        if _CHOICE in why
    },
    "max_batch_size": "no bound is proven for cyclic Poisson sampling whose batches are"
    " truncated; use PoissonLoader, or bound memory by dp.MicroBatches",
}


def reject_cyclic_arguments(arguments: Mapping[str, object]) -> None:
    """Raise for arguments that other loaders take and cyclic sampling cannot."""
    for name, value in arguments.items():
        if name in _REFUSED_OF_ROUNDS:
            raise TypeError(
                f"CyclicPoissonLoader takes no {name}, got {value!r}:"
                f" {_REFUSED_OF_ROUNDS[name]}"
            )


def check_map_style(dataset: object) -> None:
    """Raise unless examples can be drawn by their index."""
    if isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, whose examples cannot be drawn"
            " independently; pass one with __len__ and __getitem__, such as"
            " list(dataset)"
        )
