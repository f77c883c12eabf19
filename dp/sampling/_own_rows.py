"""Whether a dataset makes a row of several examples while it reads it.

Mixup and mosaics are often made in ``__getitem__``, of a partner that is drawn there, and
so are triplets, and differences from the row that was read before. What such a dataset
keeps for each row, a tensor, a list or another dataset, is put under watch in a copy of
it, which is asked for a few rows. A row that reads the entries of other units, and comes
out otherwise where these are its own, is made of them.

Not seen: what is read from elsewhere, as one file of all rows, and mixing that is rare.
Whole numbers, one a row, say where things are, as offsets and classes do, and are not
watched.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from functools import partial
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from dp.exceptions import SampleMixingError
from dp.sampling._collation import differ, drawn_states, seeded
from dp.sampling._holds_data import by_row


__all__ = ("check_own_rows", "reads_any")

_NUM: Final = 4  # Rows that are asked for.
_MOST_READ: Final = 4096  # Entries for one row: each takes a call of Python.
_MOST_BYTES: Final = 2**28  # Of an array that is copied with other entries.
_LEAST: Final = 16  # Rows: fewer may be as many as columns, or classes, by chance.
_SEEDS: Final = (0, 1)
_READ_BY_TORCH: Final = (TensorDataset, Subset, ConcatDataset, list, tuple, Tensor)
_ARRAYS: Final = (Tensor, np.ndarray)
_KEPT: Final = (*_ARRAYS, list, tuple, Dataset)
_Attributes = Mapping[str, Any]


def check_own_rows(dataset: Any, units: NDArray[np.int64] | None = None) -> None:
    """Raise if *dataset* makes a row of the examples of several units.

    Args:
        dataset: What rows are read from.
        units: The unit of every row; None if every row is one.

    Raises:
        SampleMixingError: If it does.
    """
    if isinstance(dataset, Subset | ConcatDataset) and units is None:
        parts = [dataset.dataset] if isinstance(dataset, Subset) else dataset.datasets
        for part in parts:
            check_own_rows(part)
    if type(dataset) in _READ_BY_TORCH or len(dataset) < _LEAST:
        return
    places = [i * (len(dataset) - 1) // (_NUM - 1) for i in range(_NUM)]
    owners = np.arange(len(dataset)) if units is None else units
    checks: list[Callable[[], bool]] = [partial(_remembers, dataset, places, owners)]
    checks += [
        partial(reads, dataset, place, owners, seed)
        for seed in _SEEDS
        for place in places
        for reads in (_reads_others, _reads_whole)
    ]
    is_mixed = any(map(_is_seen, checks))
    if is_mixed:
        raise SampleMixingError(
            f"{type(dataset).__name__}.__getitem__ makes rows of several examples, as by"
            " mixup, by pairs that are drawn there, or by what it keeps of rows that it"
            " read before: an example is then in more rows than its own, and moves a sum"
            " by more than the clipping norm. Make each row of its own example"
        )


def _is_seen(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except Exception:  # noqa: BLE001 -- of the caller's own types; training shows it
        return False


def _remembers(dataset: Any, places: Sequence[int], owners: NDArray[np.int64]) -> bool:
    """Whether a row changes once a row of another unit was read."""
    mine, *others = places
    strangers = [place for place in others if owners[place] != owners[mine]]
    if not strangers:
        return False
    reader = copy(dataset)
    # Twice, since the first row that is read may be kept as well.
    _row(reader, mine, _SEEDS[0])
    once, draws = _row(reader, mine, _SEEDS[0])
    again, same = _row(reader, mine, _SEEDS[0])
    if differ(once, again) or draws != same:
        return False  # It does not repeat itself, so nothing can be told.
    _row(reader, strangers[0], _SEEDS[1])
    after, others_draws = _row(reader, mine, _SEEDS[0])
    return draws == others_draws and differ(once, after)


def _reads_others(
    dataset: Any, place: int, owners: NDArray[np.int64], seed: int
) -> bool:
    """Whether a row is made of what the dataset keeps of other units' rows."""
    if not (kept := by_row(dataset)):
        return False
    watched = {name: _Watched(value) for name, value in kept.items()}
    row, draws = _row(_with(dataset, watched), place, seed)
    # A table that is as long by chance is read where it is needed, and not at the row's
    # own place.
    mixed = {
        name
        for name, entries in watched.items()
        if place in entries.read
        and any(owners[other] != owners[place] for other in entries.read)
    }
    if not mixed:
        return False
    own = {
        name: _Watched(value, only=place) if name in mixed else value
        for name, value in kept.items()
    }
    alone, same = _row(_with(dataset, own), place, seed)
    return draws == same and differ(row, alone)


def _reads_whole(
    dataset: Any, place: int, owners: NDArray[np.int64], seed: int
) -> bool:
    """Whether a row changes with other units' entries of an array that it is made of.

    An array can be read as a whole, as for its mean, or the distances to all of it.
    """
    row, draws = _row(dataset, place, seed)
    again, drawn_again = _row(dataset, place, seed)
    if differ(row, again) or draws != drawn_again:
        return False  # It does not repeat itself, so nothing can be told.
    others = owners != owners[place]
    kept: dict[str, Any] = by_row(dataset)
    for name, value in kept.items():
        if not isinstance(value, _ARRAYS) or value.nbytes > _MOST_BYTES:
            continue
        # Others' entries become the row's own. A table that is as long by chance changes
        # as well, but then its own entry is no part of the row.
        alone: Any = deepcopy(value)
        alone[others] = value[place]
        other, same = _row(_with(dataset, {name: alone}), place, seed)
        if same != draws or not differ(row, other):
            continue
        changed: Any = deepcopy(value)
        changed[place] = value[np.flatnonzero(others)[-1]]
        other, same = _row(_with(dataset, {name: changed}), place, seed)
        if same == draws and differ(row, other):
            return True
    return False


def reads_any(dataset: Any, place: int) -> bool:
    """Whether a row is made of something that the dataset keeps."""
    watched: list[_Watched] = []

    def watch(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: watch(part) for key, part in value.items()}
        if not isinstance(value, _KEPT):
            return value
        watched.append(_Watched(value))
        return watched[-1]

    kept = getattr(dataset, "__dict__", {})
    twin = _with(dataset, {name: watch(value) for name, value in kept.items()})
    _row(twin, place, _SEEDS[0])
    return any(entries.read for entries in watched)


def _with(dataset: Any, attributes: _Attributes) -> Any:
    twin = copy(dataset)
    vars(twin).update(attributes)
    return twin


def _row(dataset: Any, place: int, seed: int) -> tuple[Any, Any]:
    """Return a row that is read by a seed, and the states of the generators after it."""
    with seeded(seed):
        return deepcopy(dataset[place]), drawn_states()


@final
class _Watched(Sequence[Any]):
    """The entries of something, which knows which ones were read.

    Args:
        entries: What is read.
        only: The entry that is found at every place; None for each its own.
    """

    def __init__(self, entries: Any, only: int | None = None) -> None:
        self.read: set[int] = set()
        self._entries = entries
        self._only = only

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place: Any) -> Any:
        number = int(place)  # A slice is no row: nothing is known then.
        if not -len(self) <= number < len(self):
            raise IndexError(place)  # By which iterating ends.
        self.read.add(number % len(self))
        if len(self.read) > _MOST_READ:
            raise OverflowError  # Nothing is known then, as of a slice.
        return self._entries[number if self._only is None else self._only]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._entries, name)
