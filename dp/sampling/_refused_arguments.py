"""Arguments that the loaders reject, and why."""

import inspect
from collections.abc import Mapping
from typing import Final

from torch.utils.data import DataLoader, IterableDataset

from dp._reports import shown
from dp.exceptions import did_you_mean


__all__ = (
    "check_map_style",
    "reject_allocation_arguments",
    "reject_arguments",
    "reject_plan_arguments",
)

_MOST_COLUMNS: Final = 8
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
                f"plan.loader takes no {name}, got {shown(value)}: {_REFUSED[name]}"
            )
        if name not in inspect.signature(DataLoader).parameters:
            raise TypeError(
                f"plan.loader takes no {name}, got {shown(value)}{did_you_mean(name, _TAKEN)}"
            )
        raise TypeError(
            f"plan.loader takes no {name}, got {shown(value)}; build the loader that takes"
            f" it: dp.PoissonLoader(dataset, sampling_probability=plan."
            f"sampling_probability, steps=plan.steps, {name}=...)"
        )


def reject_arguments(arguments: Mapping[str, object]) -> None:
    """Raise for arguments that torch's loader takes and this one cannot."""
    for name, value in arguments.items():
        if name in _REFUSED:
            raise TypeError(
                f"PoissonLoader takes no {name}, got {shown(value)}: {_REFUSED[name]}"
            )
        raise TypeError(
            f"PoissonLoader got an unexpected argument {name}={shown(value)}"
        )


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
                f"AllocationLoader takes no {name}, got {shown(value)}:"
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
                f"CyclicPoissonLoader takes no {name}, got {shown(value)}:"
                f" {_REFUSED_OF_ROUNDS[name]}"
            )


def _is_arrays(dataset: object) -> bool:
    """Return whether *dataset* holds columns, as (x, y), where examples belong.

    Examples of a few rows each may be as many, but then all have one shape or several
    lengths.
    """
    if not isinstance(dataset, tuple | list) or len(dataset) > _MOST_COLUMNS:
        return False
    shapes: list[tuple[int, ...]]
    shapes = [tuple(getattr(column, "shape", ())) for column in dataset]
    are_rows = all(shapes) and len({shape[0] for shape in shapes}) == 1
    return are_rows and len({*shapes}) > 1


def check_map_style(dataset: object) -> None:
    """Raise unless examples can be drawn by their index.

    Raises:
        TypeError: Then. Also for a table of pandas, of which ``[i]`` is a column, and for
            a pair of inputs and targets, which would be two examples.
    """
    if dataset is None:
        raise TypeError(
            "dataset is None; pass the training data, as train_dataset= of a Trainer"
        )
    if hasattr(dataset, "iloc"):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, of which [i] is no row; pass"
            " TensorDataset(torch.tensor(features.to_numpy()), ...), or"
            " frame.to_dict('records')"
        )
    if _is_arrays(dataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__} of arrays with one row an example,"
            " and each array would be one example; pass TensorDataset(x, y)"
        )
    if isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, whose examples cannot be drawn"
            " independently; pass one with __len__ and __getitem__, such as"
            " list(dataset)"
        )
