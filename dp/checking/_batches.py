"""Take some examples out of a batch, whatever container it is."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dp._containers import is_sequence, parts_of, rebuilt


__all__ = ("common_size", "multiplied", "some_of")


def some_of(batch: Any, positions: Sequence[int], *, num_examples: int) -> Any:
    """Return the batch of the examples at *positions*, which may repeat.

    In every tensor and array, the first axis of *num_examples* entries is taken to be
    the examples'. A list of that many things that are not tensors is a list of
    examples. What has neither stays as it is.

    >>> some_of({"x": torch.arange(6).view(3, 2), "scale": 2.0}, [2, 2], num_examples=3)
    {'x': tensor([[4, 5],
            [4, 5]]), 'scale': 2.0}
    """
    axis = _axis(batch, num_examples)
    if axis is not None:
        if isinstance(batch, np.ndarray):
            return np.take(batch, list(positions), axis)
        index = torch.tensor(positions, dtype=torch.int64, device=batch.device)
        return batch.index_select(axis, index)
    parts = parts_of(batch)
    if parts is None:
        return batch
    in_columns = any(_axis(part, num_examples) is not None for part in parts.values())
    if is_sequence(batch) and len(batch) == num_examples and not in_columns:
        return rebuilt(batch, dict(enumerate(batch[i] for i in positions)))
    return rebuilt(
        batch,
        {
            place: some_of(part, positions, num_examples=num_examples)
            for place, part in parts.items()
        },
    )


def multiplied(
    batch: Any,
    factor: float,
    *,
    stay: Sequence[int],
    num_examples: int,
    only: int | None = None,
) -> Any:
    """Return *batch* with the numbers of all examples but some multiplied.

    Whole numbers stay, which are labels and indices. It is None if there are no others.

    >>> multiplied(torch.ones(3, 1), 10.0, stay=[1], num_examples=3).tolist()
    [[10.0], [1.0], [10.0]]

    Args:
        batch: The batch.
        factor: What to multiply with.
        stay: The positions of the examples that stay.
        num_examples: How many examples there are.
        only: Which of the tensors and arrays of such numbers, counted from 0; None for
            all of them.
    """
    number = -1

    def changed(part: Any) -> Any:
        nonlocal number
        axis = _axis(part, num_examples)
        if axis is None:
            parts = parts_of(part)
            if parts is None:
                return part
            return rebuilt(part, {place: changed(one) for place, one in parts.items()})
        array = torch.as_tensor(part)
        if not array.is_floating_point():
            return part
        number += 1
        if only not in (None, number):
            return part
        shape = [1] * array.dim()
        shape[axis] = num_examples
        factors = torch.full((num_examples,), factor, dtype=array.dtype)
        factors[list(stay)] = 1.0
        array = array * factors.view(shape).to(array.device)
        return array.numpy() if isinstance(part, np.ndarray) else array

    made = changed(batch)
    return made if number >= (only or 0) else None


def common_size(batch: Any) -> int | None:
    """Return how long the first axis of every tensor is; None if they differ."""
    sizes = set(_first_axes(batch))
    return sizes.pop() if len(sizes) == 1 else None


def _first_axes(part: Any) -> Iterator[int]:
    if isinstance(part, torch.Tensor | np.ndarray):
        yield from part.shape[:1]
    else:
        for one in (parts_of(part) or {}).values():
            yield from _first_axes(one)


def _axis(part: Any, num_examples: int) -> int | None:
    """Return the axis of the examples, if *part* is an array that has one."""
    if isinstance(part, torch.Tensor | np.ndarray):
        for axis, size in enumerate(part.shape):
            if size == num_examples:
                return axis
    return None
