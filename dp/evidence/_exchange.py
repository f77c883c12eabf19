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


def possible_axes(
    batch: Any, size: int, known: Mapping[Path, int | None] | None = None
) -> Iterator[Axes]:
    """Yield which axes the examples of *batch* may be along, the likeliest first.

    Nothing is yielded for a batch without any axis of *size* examples.

    Args:
        batch: The batch.
        size: How many examples it has.
        known: The axes of the loader's batches, if they are known.
    """
    found = dict(_candidates(batch, size, ()))
    if known and found.keys() <= known.keys() and _fit(found, known):
        found = {k: (known[k],) for k in found if known[k] is not None}
    if not found:
        return
    for choice in islice(product(*found.values()), _MOST_GUESSES):
        yield dict(zip(found, choice, strict=True))


def axes_of_loader(
    items: Sequence[Any], collate_fn: Callable[[list[Any]], Any]
) -> Axes | None:
    """Return the axes of the batches that *collate_fn* makes.

    Args:
        items: Two examples.
        collate_fn: The loader's.

    Returns:
        None if examples are along no axis, as in a graph of graphs.
    """
    one, other = items
    two = collate_fn(deepcopy([one, other]))
    three = collate_fn(deepcopy([one, other, other]))
    axes: dict[Path, int | None] = {}
    return axes if _compare(two, three, (), axes) else None


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
    if isinstance(part, Tensor | np.ndarray):
        axes = tuple(axis for axis, n in enumerate(part.shape) if n == size)
        if axes:
            yield path, axes
    elif isinstance(part, PackedSequence):
        if int(part.batch_sizes[0]) == size:
            yield path, (0,)
    elif (parts := parts_of(part)) is not None:
        inner = [
            row for k, v in parts.items() for row in _candidates(v, size, (*path, k))
        ]
        in_columns = any(len(place) == len(path) + 1 for place, _ in inner)
        if is_sequence(part) and len(parts) == size and not in_columns:
            yield path, (ENTRIES,)
        else:
            yield from inner


def _fit(found: Mapping[Path, tuple[int, ...]], known: Axes) -> bool:
    """Whether a batch can be one of the loader's: sizes agree with its axes."""
    return any(known[path] is not None for path in found) and all(
        known[path] is None or known[path] in axes for path, axes in found.items()
    )


def _compare(two: Any, three: Any, path: Path, axes: dict[Path, int | None]) -> bool:
    """Note the axes that grew; return False if something grew that has no axis."""
    if type(two) is not type(three):
        return False
    if isinstance(two, Tensor | np.ndarray):
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
