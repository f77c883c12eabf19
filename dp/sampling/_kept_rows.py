"""What a dataset reads its rows from: tensors, arrays and objects that it keeps.

A dataset that is built anew of the same arrays, or a list of the same tensors, holds the
same people as the one before. So the things behind are told, and where in them each row
begins.

Not seen: what is read from files, and numbers and texts in lists, which nothing refers to.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from heapq import nsmallest
from itertools import islice
from numbers import Number
from types import NoneType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from dp._containers import parts_of
from dp.sampling._distinct_rows import origins
from dp.sampling._holds_data import by_row, holds_rows


__all__ = ("Rows", "kept_rows")

Rows = range | NDArray[np.int64]

_DEEPEST: Final = 4  # Datasets around datasets.
_MOST: Final = 1024  # Entries of a list that are told.
_LEAF: Final = 3  # How deep in a row its data are: ({"image": ...}, label).
_FEW: Final = 8  # Parts of a row that are looked at: it may be a list of tokens.
_ARRAYS: Final = (Tensor, np.ndarray)
_PLAIN: Final = (str, bytes, Number, np.generic, NoneType, Enum)


def kept_rows(
    dataset: Any, rows: Rows, deepest: int = _DEEPEST
) -> Iterator[tuple[Any, Rows]]:
    """Yield what rows of a dataset are read from, and which rows they are there.

    Of a long list a part of the entries is yielded, the same ones for whoever asks: those
    of two lists that have many entries in common have some in common, too.
    """
    # Subset(Subset(data, a), b) is rows a[b] of the data: whose wrapper it is in does
    # not matter to who is in it.
    if isinstance(dataset, Subset | ConcatDataset):
        places = np.asarray(rows)
        for source, _, read in origins(dataset, places, places, by_object=False):
            yield from kept_rows(source, read, deepest)
    elif isinstance(dataset, list | tuple):
        yield from _entries(dataset, rows)
    elif isinstance(dataset, np.ndarray):
        yield from _of_array(dataset, rows)
    else:
        yield dataset, rows
        if type(dataset) is not TensorDataset and deepest:
            for value in _values(dataset, len(dataset)):
                yield from kept_rows(value, rows, deepest - 1)


def _values(dataset: Any, num_rows: int) -> Iterator[Any]:
    """Yield what a dataset keeps for each row, also in mappings."""
    if isinstance(dataset, Tensor):
        return
    if isinstance(dataset, TensorDataset):
        yield from dataset.tensors[:1]
    yield from by_row(dataset).values()
    for value in getattr(dataset, "__dict__", {}).values():
        # Example: {"input_ids": [N, 16], "labels": [N]}, as tokenizers return it.
        if isinstance(value, Mapping):
            parts = value.values()
            yield from (part for part in parts if holds_rows(part, num_rows))


def _entries(entries: Sequence[Any], rows: Rows) -> Iterator[tuple[Any, Rows]]:
    """Yield the data of some entries, of each what comes first in it."""
    # By where its numbers lie: [(X[i], y[i]) for i in ...] makes new tensors each time.
    leaves = [
        leaf for row in rows if (leaf := _first_data(entries[row], _LEAF)) is not None
    ]
    places = [*map(_place, leaves)]
    # What several entries share, such as the edges of one graph, is nobody's own.
    times = Counter(places)
    own = {place: i for i, place in enumerate(places) if times[place] == 1}
    for place in nsmallest(_MOST, own, key=hash):
        leaf = leaves[own[place]]
        one = leaf[None] if isinstance(leaf, _ARRAYS) else leaf
        yield from kept_rows(one, range(1), deepest=0)


def _first_data(part: Any, deepest: int) -> Any:
    """Return the first tensor, array or other object of a row that may be data."""
    if isinstance(part, Tensor):
        return part if part.layout == torch.strided and part.numel() else None
    if isinstance(part, np.ndarray):
        return part if part.size else None
    if isinstance(part, _PLAIN):
        return None
    if isinstance(part, list | tuple):
        few: Iterable[Any] = part[:_FEW]
    else:
        parts = parts_of(part)
        if parts is None:
            return part
        few = islice(parts.values(), _FEW)
    found = (_first_data(one, deepest - 1) for one in few)
    return next((leaf for leaf in found if leaf is not None), None) if deepest else None


def _place(leaf: Any) -> tuple[int, int]:
    """Return where the numbers of a tensor or array lie, and how many bytes they are."""
    if isinstance(leaf, Tensor):
        return leaf.data_ptr(), leaf.nbytes
    if isinstance(leaf, np.ndarray):
        return _address(leaf), leaf.nbytes
    return id(leaf), 0


def _of_array(array: NDArray[Any], rows: Rows) -> Iterator[tuple[Any, Rows]]:
    """Yield the array that owns the numbers, and the byte at which each row begins."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    first = _address(array) - _address(owner)
    step = array.strides[0]
    yield owner, first + step * np.asarray(rows, dtype=np.int64)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
