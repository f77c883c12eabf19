"""Batches in which some examples take the places of others.

Shapes stay, so that random numbers stay where they were. Which axis of a tensor is the
examples' is known from the loader where there is one: whatever one more example makes
longer by one. Elsewhere it is an axis as long as the batch.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from itertools import islice, product
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pad_packed_sequence,
)

from dp._containers import is_sequence, parts_of, rebuilt


__all__ = (
    "Axes",
    "axes_of_loader",
    "copied",
    "devices_of",
    "exchanged",
    "possible_axes",
)

Path = tuple[Hashable, ...]
Axes = Mapping[Path, int | None]
"""The axis of the examples of every part of a batch; None if it has none."""

ENTRIES: Final = -1  # For a sequence with one entry an example.
_MOST_GUESSES: Final = 16
_MATRIX: Final = 2  # Axes.
_ARRAYS: Final = (Tensor, np.ndarray)


def exchanged(batch: Any, order: Sequence[int], axes: Axes) -> Any:
    """Return a new batch that has at position i the example *order[i]* of *batch*."""

    def take(part: Any, path: Path) -> Any:
        axis = axes.get(path)
        if axis is not None:
            return _taken(part, order, axis)
        parts = _parts(part)
        if parts is None:
            return _own(part)
        return rebuilt(part, {k: take(v, (*path, k)) for k, v in parts.items()})

    return take(batch, ())


def copied(batch: Any) -> Any:
    """Return a batch that stays as it is when a function writes to *batch*."""
    return exchanged(batch, (), {})


def possible_axes(batch: Any, size: int) -> Iterator[Axes]:
    """Yield which axes the examples of *batch* may be along, the likeliest first.

    Nothing is yielded for a batch that has an array without an axis of *size* examples,
    or a matrix whose columns only are that many: by chance, a graph's nodes may have as
    many features.
    """
    found = dict(_candidates(batch, size, ()))
    # Example: a batch (x [8, 3], y [8]) of 8 examples has one way: axis 0 in both. With
    # x of [8, 8, 3] there are two, of which the first axes come first.
    if found and all(found.values()):
        for choice in islice(product(*found.values()), _MOST_GUESSES):
            yield dict(zip(found, choice, strict=True))


def fits(batch: Any, size: int, axes: Axes) -> bool:
    """Whether *batch* is like those that *axes* are of, and has *size* examples."""
    num_met = 0

    def fit(part: Any, path: Path) -> bool:
        nonlocal num_met
        if path in axes:
            num_met += axes[path] is not None
            return axes[path] is None or _length(part, axes[path]) == size
        if isinstance(part, (*_ARRAYS, PackedSequence)):
            return False
        parts = parts_of(part) or {}
        return all(fit(v, (*path, k)) for k, v in parts.items())

    return fit(batch, ()) and num_met > 0


def axes_of_loader(
    items: Sequence[Any], collate_fn: Callable[[list[Any]], Any]
) -> Axes | None:
    """Return the axes of the batches that *collate_fn* makes.

    Args:
        items: Some examples.
        collate_fn: The loader's.

    Returns:
        None if some parts grow in another way than by one for one more example, as
        graphs of graphs do.
    """
    found: list[dict[Path, int | None]] = []
    for item in items:  # Of a single node, a graph would grow as an example does.
        found.append({})
        # Collated of 2 and of 3 copies, x is [2, 5] and [3, 5]: examples are along axis
        # 0. A graph's edges [2, 14] and [2, 21] grow by 7 for one more: along no axis.
        two, three = (collate_fn(deepcopy([item] * number)) for number in (2, 3))
        if not _compare(two, three, (), found[-1]) or found[-1] != found[0]:
            return None
    return found[0]


def devices_of(batch: Any) -> set[torch.device]:
    """Return the accelerators that hold tensors of *batch*."""
    if isinstance(batch, Tensor):
        return set() if batch.device.type == "cpu" else {batch.device}
    parts = parts_of(batch) or {}
    return set().union(*map(devices_of, parts.values()))


def _taken(part: Any, order: Sequence[int], axis: int) -> Any:
    if isinstance(part, Tensor):
        index = torch.tensor(order, dtype=torch.int64, device=part.device)
        return part.detach().index_select(axis, index)
    if isinstance(part, np.ndarray):
        return np.take(part, list(order), axis)
    if isinstance(part, PackedSequence):
        # A packed sequence has no axis of examples: unpacked, exchanged, and packed
        # again.
        padded, lengths = pad_packed_sequence(part, batch_first=True)
        return pack_padded_sequence(
            padded[list(order)],
            lengths[list(order)],
            batch_first=True,
            enforce_sorted=False,
        )
    return rebuilt(part, dict(enumerate(deepcopy(part[i]) for i in order)))


def _own(part: Any) -> Any:
    """Return a part without examples, such that writing to it changes no other."""
    if isinstance(part, Tensor):
        return part if part.grad_fn is not None else part.detach().clone()
    return part.copy() if isinstance(part, np.ndarray) else copy(part)


def _parts(part: Any) -> dict[Any, Any] | None:
    return None if isinstance(part, PackedSequence) else parts_of(part)


def _candidates(
    part: Any, size: int, path: Path
) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """Yield the axes of every array that are *size* long, and sequences of that length."""
    if isinstance(part, Tensor) and part.is_nested:
        yield path, ()  # No axis of it can be indexed.
    elif isinstance(part, _ARRAYS):
        axes = tuple(axis for axis, n in enumerate(part.shape) if n == size)
        if part.ndim:
            yield path, axes if part.ndim > _MATRIX or axes[:1] == (0,) else ()
    elif isinstance(part, PackedSequence):
        yield path, (0,) if _length(part, 0) == size else ()
    elif (parts := parts_of(part)) is not None:
        inner = [
            row for k, v in parts.items() for row in _candidates(v, size, (*path, k))
        ]
        columns = [
            place for place, axes in inner if axes and len(place) == len(path) + 1
        ]
        if is_sequence(part) and len(parts) == size and len(columns) < size:
            yield path, (ENTRIES,)
        else:
            yield from inner


def _length(part: Any, axis: int | None) -> int | None:
    """Return how many examples *part* has along *axis*; None if it has no such axis."""
    if axis == ENTRIES:
        return len(part) if is_sequence(part) else None
    if isinstance(part, PackedSequence):
        return int(part.batch_sizes[0]) if len(part.batch_sizes) else 0
    if isinstance(part, _ARRAYS) and axis is not None and axis < part.ndim:
        return int(part.shape[axis])
    return None


def _compare(two: Any, three: Any, path: Path, axes: dict[Path, int | None]) -> bool:
    """Note the axes that grew; return False if something grew that has no axis."""
    if type(two) is not type(three):
        return False
    if isinstance(two, _ARRAYS):
        shapes = list(zip(two.shape, three.shape, strict=False))
        grew = [axis for axis, (a, b) in enumerate(shapes) if a != b]
        axes[path] = grew[0] if grew else None
        return not grew or (len(grew) == 1 and shapes[grew[0]] == (2, 3))
    if isinstance(two, PackedSequence):
        axes[path] = 0
        return True
    parts, others = parts_of(two), parts_of(three)
    if parts is None or others is None:
        return True
    if is_sequence(two) and (len(two), len(three)) == (2, 3):
        axes[path] = ENTRIES
        return True
    return parts.keys() == others.keys() and all(
        _compare(part, others[k], (*path, k), axes) for k, part in parts.items()
    )
