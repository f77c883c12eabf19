"""A plan's numbers from epochs, a batch size and the size of the dataset."""

import math
from typing import Literal

from dp import _checks
from dp._reports import shown


__all__ = ("numbers_of_epochs", "steps_of_epoch")


def steps_of_epoch(dataset_size: int, batch_size: int) -> int:
    """Return how many batches hold each example once on average, rounded up.

    >>> steps_of_epoch(1000, 64)
    16
    """
    return max(1, math.ceil(dataset_size / batch_size))


def numbers_of_epochs(
    *,
    epochs: float | None,
    batch_size: int | None,
    dataset_size: int | None,
    sampling_probability: float | Literal["largest"] | None,
    steps: int | None,
    expected_batch_size: float | None,
) -> tuple[float | Literal["largest"] | None, int | None, float]:
    """Return the sampling probability, the steps and the expected batch size of a plan.

    What *epochs* and *batch_size* leave open stays as it was given.

    Raises:
        TypeError: If nothing says what noisy sums are divided by.
        ValueError: If a number is missing, given twice or out of range.
    """
    if batch_size is None:
        if epochs is not None:
            raise ValueError(
                f"epochs={shown(epochs)} needs batch_size and dataset_size, which say how many"
                " steps an epoch has; pass both, or steps= instead of epochs="
            )
        if expected_batch_size is None:
            raise TypeError(
                "plan_for needs expected_batch_size, which noisy sums are divided by; pass"
                " it, or batch_size= and dataset_size= instead"
            )
        return sampling_probability, steps, expected_batch_size
    size, total = _sizes(batch_size, dataset_size)
    twice = {
        "sampling_probability": sampling_probability,
        "expected_batch_size": expected_batch_size,
        "steps": None if epochs is None else steps,
    }
    for name, value in twice.items():
        if value is not None:
            raise ValueError(
                f"{name}={shown(value)} follows from batch_size, dataset_size and epochs; leave"
                " it out, or them"
            )
    if epochs is not None:
        epochs = _checks.positive(epochs=epochs)
        steps = math.ceil(epochs * steps_of_epoch(total, size))
    return size / total, steps, float(size)


def _sizes(batch_size: int, dataset_size: int | None) -> tuple[int, int]:
    if dataset_size is None:
        raise ValueError(
            f"batch_size={shown(batch_size)} needs dataset_size: the number of examples, which"
            " becomes a public number of the plan. Pass it, or expected_batch_size= and"
            " sampling_probability= instead"
        )
    size = _checks.count(batch_size=batch_size)
    total = _checks.count(dataset_size=dataset_size)
    if size > total:
        raise ValueError(
            f"batch_size={size} is more than dataset_size={total}; make it smaller"
        )
    return size, total
