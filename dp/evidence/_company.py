"""Find out how the examples of a batch can be exchanged."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp._containers import parts_of, rebuilt
from dp.evidence._exchange import (
    Axes,
    axes_of_loader,
    devices_of,
    exchanged,
    fits,
    possible_axes,
)
from dp.sampling import TicketedLoader, fetch


__all__ = ("Companies", "Company")

Units = NDArray[np.int64]
_NUM_ASKED: Final = 4  # Rows of a dataset that are collated to see how batches grow.


@final
@dataclass(frozen=True, slots=True)
class Drawn:
    """What a loader drew for the batch at hand, or for the part of it at hand.

    Attributes:
        rows: The rows of the dataset.
        units: The units of these rows; None if each is one.
    """

    rows: Sequence[int]
    units: Units | None

    @classmethod
    def by(cls, loader: TicketedLoader | None) -> "Drawn | None":
        """Return what *loader* drew; None if there is none, or no batch yet."""
        if loader is None or loader.ticket is None:
            return None
        draw = loader.ticket.draw
        # A micro-batch is a slice of the rows that were drawn.
        part = slice(None) if loader.part is None else loader.part
        units = draw.unit_of_row
        return cls(draw.rows[part], None if units is None else units[part])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """A batch whose examples can be exchanged.

    Attributes:
        num_units: How many units of privacy have rows in it; they are numbered.
        unit_of_row: The unit of each of its rows.
        unit_of_loss: That of each loss of the function.
        ways: Ways to make the batch that has at position i the row ``order[i]``: the
            likeliest first, and others if the axis of the examples is uncertain.
    """

    num_units: int
    unit_of_row: NDArray[np.int64]
    unit_of_loss: NDArray[np.int64]
    ways: Sequence[Callable[[Sequence[int]], Any]]

    @property
    def keeps_shapes(self) -> bool:
        """Whether a batch of exchanged examples has the shapes of the whole one."""
        first = self.ways[0]
        return not (isinstance(first, partial) and first.func is _collated)

    @property
    def num_rows(self) -> int:
        """How many rows the batch has."""
        return len(self.unit_of_row)

    def in_places(self, losses: Tensor, order: Sequence[int]) -> Tensor:
        """Return losses of rows in *order* where the rows that stayed had theirs.

        Texts have a loss for each token, and others take their places.
        """
        # Example: texts of 2 and 3 tokens have the losses a a b b b. With the first text in
        # the place of the second they are a a a a: two are of a text that stayed, and it
        # is a a 0 0 0 that can be compared.
        num_losses_U = np.bincount(self.unit_of_loss, minlength=self.num_units)
        in_runs = np.repeat(np.arange(self.num_units), num_losses_U)
        is_by_row = self.num_rows == self.num_units
        if not is_by_row or not np.array_equal(in_runs, self.unit_of_loss):
            return losses
        lengths = num_losses_U[[*order]]
        if len(order) != self.num_rows or len(losses) != lengths.sum():
            return losses
        shifts = np.cumsum(lengths) - lengths - (np.cumsum(num_losses_U) - num_losses_U)
        stayed = np.asarray(order) == np.arange(self.num_rows)
        stays = torch.from_numpy(stayed[in_runs]).to(losses.device)
        places = np.arange(len(in_runs)) + shifts[in_runs]
        taken = losses[
            torch.from_numpy(np.where(stayed[in_runs], places, 0)).to(losses.device)
        ]
        return torch.where(stays, taken, torch.zeros_like(taken))

    def halves(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yield an order of rows, and which losses must not change; two times.

        Each half of the units gives its places away once.
        """
        # From the operating system: never from generators that a look puts back.
        # Example: 5 units are shuffled to 3, 0, 4 and 1, 2. First 3, 0 and 4 stay, and
        # the rows of 1 and 2 become copies of unit 3's first row; then the other way
        # round.
        units, middle = self._shuffled(), (self.num_units + 1) // 2
        for stays in (units[:middle], units[middle:]):
            yield self._left_with(stays)

    def alone(self) -> tuple[list[int], Tensor]:
        """Return the same where one unit stays, among copies of its first row."""
        return self._left_with(self._shuffled()[:1])

    def _shuffled(self) -> NDArray[np.int64]:
        keys = np.frombuffer(os.urandom(8 * self.num_units), np.uint64)
        return keys.argsort()

    def _left_with(self, stays: NDArray[np.int64]) -> tuple[list[int], Tensor]:
        stays_unit = np.zeros(self.num_units, bool)
        stays_unit[stays] = True
        stays_row = stays_unit[self.unit_of_row]
        donor = np.flatnonzero(self.unit_of_row == stays[0])[0]
        order = np.where(stays_row, np.arange(self.num_rows), donor)
        return order.tolist(), torch.from_numpy(stays_unit[self.unit_of_loss])


@final
class Companies:
    """The batches of one run, and what was learnt of their axes."""

    def __init__(self) -> None:
        self._loader: TicketedLoader | None = None
        self._axes: Axes | None = None
        self._is_ragged = False  # Whether its batches have examples along no axis.

    def of(
        self,
        batch: Any,
        *,
        num_losses: int,
        units: Tensor | None,
        loader: TicketedLoader | None,
        drawn: Drawn | None,
    ) -> Company | None:
        """Return how to exchange the examples of *batch*; None if no way is known.

        Args:
            batch: The batch, as it was before the function ran.
            num_losses: How many losses the function returned.
            units: The unit of each loss, if the caller named it.
            loader: The loader that drew the batch, if there is one.
            drawn: What it drew.
        """
        # Example: a batch (x [6, 3], y [6]) with six losses. Its rows are exchanged in
        # both, so that order [0, 0, 2, 3, 4, 5] gives row 1 the data and the label of
        # row 0.
        for num_units, unit_of_row, unit_of_loss in _possible_units(
            num_losses, units, drawn
        ):
            ways = self._ways(batch, len(unit_of_row), loader, drawn)
            if ways:
                return Company(
                    num_units=num_units,
                    unit_of_row=unit_of_row,
                    unit_of_loss=unit_of_loss,
                    ways=ways,
                )
        return None

    def _ways(
        self,
        batch: Any,
        num_rows: int,
        loader: TicketedLoader | None,
        drawn: Drawn | None,
    ) -> list[Callable[[Sequence[int]], Any]]:
        self._learn(loader)
        # What collating some rows of the dataset showed, if this batch is like that.
        if self._axes is not None and fits(batch, num_rows, self._axes):
            return [partial(exchanged, batch, axes=self._axes)]
        # Without a loader, or for a batch of the caller's own: every axis that is long
        # enough.
        if not self._is_ragged:
            return [
                partial(exchanged, batch, axes=axes)
                for axes in possible_axes(batch, num_rows)
            ]
        # Packed sequences, graphs: no axis can be indexed, but the rows can be collated
        # anew.
        if loader is None or drawn is None or num_rows != len(drawn.rows):
            return []
        return [partial(_collated, loader, drawn.rows, devices_of(batch))]

    def _learn(self, loader: TicketedLoader | None) -> None:
        """Find out the axes of a loader's batches, the first time."""
        if loader is self._loader:
            return
        self._loader, self._axes, self._is_ragged = loader, None, False
        # A dataset and its collate_fn are the caller's, and may raise anything: then an
        # axis is one that is as long as the batch.
        with suppress(Exception):
            items = _items(loader, _some_of(len(cast("Any", loader).dataset)))
            self._axes = axes_of_loader(
                items, cast("TicketedLoader", loader).collate_fn
            )
            self._is_ragged = self._axes is None


def _possible_units(
    num_losses: int,
    units: Tensor | None,
    drawn: Drawn | None,
) -> Iterator[tuple[int, Units, Units]]:
    """Yield how many units there may be, and those of rows and losses, counted from 0.

    The likeliest comes first.
    """
    unit_of_row = None if drawn is None else drawn.units
    if units is not None:
        # Units 7, 7, 9 of three losses are counted as 0, 0, 1.
        present, unit_of_loss = np.unique(units.cpu().numpy(), return_inverse=True)
        unit_of_loss = unit_of_loss.ravel()
        if unit_of_row is not None and np.array_equal(np.unique(unit_of_row), present):
            yield len(present), np.searchsorted(present, unit_of_row), unit_of_loss
        # Or each unit has one row and several losses, as a document that has one for
        # each token.
        yield len(present), np.arange(len(present)), unit_of_loss
    elif unit_of_row is None:
        each = np.arange(num_losses)
        yield num_losses, each, each
    elif len(unit_of_row) == num_losses:
        present, codes = np.unique(unit_of_row, return_inverse=True)
        yield len(present), codes, codes


def _some_of(num_rows: int) -> list[int]:
    """Return a few rows from the first to the last."""
    # Of 100 rows these are 0, 33, 66 and 99; of two, 0 and 1.
    return sorted({(num_rows - 1) * i // (_NUM_ASKED - 1) for i in range(_NUM_ASKED)})


def _items(loader: Any, rows: Sequence[int]) -> list[Any]:
    items: list[Any] = fetch(loader.dataset, list(rows))
    return items


def _collated(
    loader: TicketedLoader,
    rows: Sequence[int],
    devices: set[torch.device],
    order: Sequence[int],
) -> Any:
    batch = loader.collate_fn(_items(loader, [rows[i] for i in order]))
    return _moved(batch, next(iter(devices))) if devices else batch


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    parts = parts_of(batch)
    if parts is None:
        return batch
    return rebuilt(batch, {k: _moved(part, device) for k, part in parts.items()})
