"""Take some examples out of a batch, whatever container it is."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch


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
    if isinstance(batch, Mapping):
        taken = copy(batch)
        for key, value in batch.items():
            taken[key] = some_of(value, positions, num_examples=num_examples)  # type: ignore[index]  # A read-only one fails here, and says so.
        return taken
    if is_dataclass(batch) and not isinstance(batch, type):
        parts = {f.name: getattr(batch, f.name) for f in fields(batch) if f.init}
        return replace(batch, **some_of(parts, positions, num_examples=num_examples))
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return _some_of_sequence(batch, positions, num_examples)
    return batch


def _some_of_sequence(
    batch: Sequence[Any], positions: Sequence[int], num_examples: int
) -> Any:
    in_columns = any(_axis(part, num_examples) is not None for part in batch)
    if len(batch) == num_examples and not in_columns:
        parts = [batch[i] for i in positions]
    else:
        parts = [some_of(p, positions, num_examples=num_examples) for p in batch]
    kind: Any = type(batch)
    return kind(*parts) if hasattr(batch, "_fields") else kind(parts)


def _axis(part: Any, num_examples: int) -> int | None:
    """Return the axis of the examples, if *part* is an array that has one."""
    if isinstance(part, torch.Tensor | np.ndarray):
        for axis, size in enumerate(part.shape):
            if size == num_examples:
                return axis
    return None
