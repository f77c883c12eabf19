"""Whether a dataset still has its rows where they were when its loader was made.

Whose a row is, and on which rank, is known by its number. A list that is shuffled in
place, or a dataset that makes a new order for each epoch, gives the number to another
row. So a few rows are read by a seed when a loader is made, and again as each iteration
begins. Where they are others, and stand at numbers of other units now, rows moved.

Not seen: what moves within an iteration, or leaves these rows where they are; rows that
are equal to others; and a dataset whose rows are others at each reading, whatever the
seed.
"""

from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp._containers import parts_of
from dp._ranks import rank_and_size
from dp.exceptions import SamplingMismatchError
from dp.sampling._collation import seeded


__all__ = ("RowsInPlace", "times_changed")

_NUM: Final = 8  # Rows that are compared.
_SHARE: Final = 4  # One in so many of the rows that changed has to be seen elsewhere.
_SEED: Final = 0
_Units = NDArray[np.int64] | None
_Contents = dict[int, object]


@final
class RowsInPlace:
    """A few rows of a dataset, and where they were.

    Args:
        dataset: What rows are read from.
        unit_of_row: The unit of every row; None if every row is one.

    Attributes:
        num_changes: How often rows were others than when the iteration before began.
    """

    def __init__(self, dataset: Any, unit_of_row: _Units) -> None:
        self.num_changes: int = 0
        self._dataset = dataset
        self._unit_of_row = unit_of_row
        self._contents = None if unit_of_row is None else self._read()
        self._repeats = self._contents is None or self._contents == self._read()

    def check(self) -> None:
        """Note whether rows are others now.

        Raises:
            SamplingMismatchError: If rows have the numbers of other units' now.
        """
        # Alone, and without units, any order is as good as another.
        is_alone = self._unit_of_row is None and rank_and_size()[1] == 1
        if is_alone or not self._repeats:
            return
        before, now = self._contents, self._read()
        if before is None or now is None or before == now:
            self._contents = now
            return
        if self._unit_of_row is not None and self._have_moved(before):
            raise SamplingMismatchError(
                "rows of the dataset are not where they were when the loader was made, as"
                " where a list is shuffled in place, so units= names other units than"
                " those whose rows they are; leave the order to the loader, or make a new"
                " loader with the units of the new order"
            )
        # As with another random part for each epoch: it is not looked for again.
        self._repeats = self._unit_of_row is None
        self._contents = now
        self.num_changes += 1

    def _read(self) -> _Contents | None:
        """Return what a few rows hold, by their numbers; None if that cannot be told."""
        size = len(self._dataset)
        places = {(size - 1) * i // (_NUM - 1) for i in range(_NUM if size else 0)}
        try:
            return {place: self._content(place) for place in sorted(places)}
        except Exception:  # noqa: BLE001 -- of the caller's own types; training shows it
            return None

    def _content(self, place: int) -> object:
        with seeded(_SEED):
            return _content_of(self._dataset[place])

    def _have_moved(self, before: _Contents) -> bool:
        """Whether what some rows held is at the number of another unit now."""
        units = self._unit_of_row
        assert units is not None  # noqa: S101 -- asked by the caller
        found: dict[int, list[int]] = {place: [] for place in before}
        for place in range(len(units[: len(self._dataset)])):
            content = self._content(place)
            for other in [k for k, one in before.items() if one == content]:
                found[other].append(place)
        changed = {k: at for k, at in found.items() if k not in at}
        # Example: of labels 0 and 1, drawn anew for each epoch, each is anywhere. Rows have
        # moved where some are in one other place now, and one of these is another's.
        moved = {k: at[0] for k, at in changed.items() if len(at) == 1}
        is_shared = len(moved) * _SHARE >= len(changed)
        return is_shared and any(units[k] != units[at] for k, at in moved.items())


def times_changed(loader: object) -> int:
    """Return how often rows of a loader's dataset were seen to be others."""
    in_place = getattr(loader, "_in_place", None)
    return in_place.num_changes if isinstance(in_place, RowsInPlace) else 0


def _content_of(part: Any) -> object:
    """Return what can be compared with another reading; of objects, their type."""
    if isinstance(part, Tensor):
        if part.layout != torch.strided:
            return type(part).__qualname__
        bits = part.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
        return part.dtype, tuple(part.shape), bits.numpy().tobytes()
    if isinstance(part, np.ndarray):
        return str(part.dtype), part.shape, part.tobytes()
    parts = parts_of(part)
    if parts is not None:
        return [(repr(key), _content_of(value)) for key, value in parts.items()]
    is_plain = isinstance(part, str | bytes | int | float | np.generic | None)
    return repr(part) if is_plain else type(part).__qualname__
