"""Take some examples out of a batch, whatever container it is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dp._containers import is_sequence, parts_of, rebuilt


__all__ = ("some_of",)


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


def _axis(part: Any, num_examples: int) -> int | None:
    """Return the axis of the examples, if *part* is an array that has one."""
    if isinstance(part, torch.Tensor | np.ndarray):
        for axis, size in enumerate(part.shape):
            if size == num_examples:
                return axis
    return None
