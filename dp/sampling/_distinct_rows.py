"""That no example of a dataset is there more than once.

An example that two rows of a dataset read contributes twice where it is drawn twice.
Of what torch builds datasets from, the rows behind can be seen: of a ``Subset`` with
repeated indices, of a dataset concatenated with itself, of a list with one object in
several places. Of a dataset that reads by itself, or of equal values, nothing can.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset

from dp.exceptions import SamplingMismatchError
from dp.sampling._copied_rows import warn_of_copies
from dp.sampling._own_rows import check_own_rows
from dp.sampling._shared_rows import check_shared_rows


__all__ = ("check_distinct_rows", "origins")

_Numbers = NDArray[np.int64]
_HOLDERS: Final = (torch.Tensor, np.ndarray, list, dict)


def check_distinct_rows(dataset: Any, unit_of_row: _Numbers | None = None) -> None:
    """Raise if two rows have an example in common, and are not rows of one unit.

    Raises:
        SamplingMismatchError: With what is there several times, and what to do.
        SampleMixingError: If the dataset makes a row of several examples.

    Warns of rows that may be copies of others.
    """
    check_own_rows(dataset, unit_of_row)
    rows = np.arange(len(dataset))
    owners = rows if unit_of_row is None else unit_of_row
    sources = [*origins(dataset, rows, rows, by_object=False)]
    for source, places, read in sources:
        check_shared_rows(source, read, owners[places])
    if isinstance(dataset, Subset | ConcatDataset | list | tuple):
        _check_origins(dataset, rows, unit_of_row)
    for source, places, read in sources:
        warn_of_copies(source, read, owners[places])


def _check_origins(dataset: Any, rows: _Numbers, unit_of_row: _Numbers | None) -> None:
    """Raise if rows of a dataset are read from one row of another."""
    # Example: ConcatDataset([data, Subset(data, [4, 4])]) reads row 4 of data three
    # times: at its own place and twice behind the end.
    by_source: dict[int, list[tuple[_Numbers, _Numbers]]] = {}
    for source, places, read in origins(dataset, rows, rows):
        by_source.setdefault(id(source), []).append((places, read))
    for several in by_source.values():
        places = np.concatenate([places for places, _ in several])
        read = np.concatenate([read for _, read in several])
        _check(places, read, unit_of_row)


def _check(places: _Numbers, read: _Numbers, unit_of_row: _Numbers | None) -> None:
    """Raise if a number in *read* is there twice, in rows that differ in their unit."""
    # Equal numbers are neighbours once they are sorted.
    order = np.argsort(read, kind="stable")
    again = np.flatnonzero(np.diff(read[order]) == 0)
    one, other = places[order[again]], places[order[again + 1]]
    # Rows of one unit may repeat: the unit is clipped once, whatever its rows are.
    if unit_of_row is not None:
        differ = unit_of_row[one] != unit_of_row[other]
        one, other = one[differ], other[differ]
    if len(one):
        raise SamplingMismatchError(
            f"rows {one[0]} and {other[0]} of the dataset are the same example, as where"
            " indices of a Subset repeat or a dataset is concatenated with itself: drawn"
            " together, it would count twice. Leave each example in once, or say whose"
            " rows they are: units="
        )


def origins(
    dataset: Any, places: _Numbers, rows: _Numbers, *, by_object: bool = True
) -> Iterator[tuple[Any, _Numbers, _Numbers]]:
    """Yield what some rows of a dataset are read from, and which numbers have there.

    Args:
        dataset: What is read.
        places: Where the rows are in the outermost dataset.
        rows: Their numbers in this one.
        by_object: Whether the objects in a list are what is read, or the list is.
    """
    if isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices, dtype=np.int64)
        inner: Any = dataset.dataset
        read = _from_start(indices[rows], inner)
        yield from origins(inner, places, read, by_object=by_object)
    elif isinstance(dataset, ConcatDataset):
        ends = np.asarray(dataset.cumulative_sizes, dtype=np.int64)
        part_of_row = np.searchsorted(ends, rows, side="right")
        for number, part in enumerate(dataset.datasets):
            here = part_of_row == number
            start = ends[number - 1] if number else 0
            read = rows[here] - start
            yield from origins(part, places[here], read, by_object=by_object)
    elif by_object and isinstance(dataset, list | tuple):
        # Of a list of tensors the same object in two places is one example; of a list
        # of numbers, equal ones may be two people's.
        held = np.array([_holds_data(dataset[row]) for row in rows], dtype=bool)
        yield dataset, places[~held], rows[~held]
        objects = np.array([id(dataset[row]) for row in rows[held]], dtype=np.int64)
        yield _HOLDERS, places[held], objects
    else:
        yield dataset, places, rows


def _from_start(indices: _Numbers, dataset: Any) -> _Numbers:
    """Return indices counted from the start: -1 is the last row, too."""
    return np.where(indices < 0, indices + len(dataset), indices)


def _holds_data(example: object) -> bool:
    """Whether an example's identity tells it from others, as a number's does not."""
    parts = example if isinstance(example, tuple) else (example,)
    return any(isinstance(part, _HOLDERS) for part in parts)
