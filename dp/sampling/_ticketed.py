"""A data loader that issues a ticket with every batch, whoever chooses the batches."""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dp.exceptions import SamplingMismatchError
from dp.sampling._fetch import iter_batches
from dp.sampling._ticket import Draw, Ticket, TicketIssuer
from dp.sampling._yielded import YieldedTensors


if TYPE_CHECKING:
    from dp._keystream import RepeatedKeys

__all__ = ("Draws", "TicketedLoader")


class Draws(Protocol):
    """The draws of one pass that hold a row; ``made`` has all of them so far."""

    made: deque[Draw]

    def __iter__(self) -> Iterator[list[int]]: ...

    def __next__(self) -> list[int]: ...


class TicketedLoader(DataLoader[Any]):
    """A :class:`torch.utils.data.DataLoader` whose batches come with tickets.

    Use :class:`PoissonLoader` or :class:`UnamplifiedLoader`.

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``.
        num_draws: How many batches a pass has.
        collate_fn: Makes a batch of a list of examples.
        empty_batch: The batch of no examples.
        sharded: Whether *dataset* holds this process's examples only.
        arguments: What torch's loader takes.
    """

    # accelerate's mark: its prepare() passes the loader on, where it would otherwise
    # rebuild it without tickets. Moving batches to a device is left to the caller.
    _is_accelerate_prepared: ClassVar[bool] = True

    def __init__(
        self,
        dataset: Any,
        *,
        num_draws: int,
        collate_fn: Callable[[list[Any]], Any],
        empty_batch: Any,
        sharded: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        self._empty_batch = empty_batch
        self._sharded = sharded
        self._issuer = TicketIssuer()
        self._debug_seed: int | None = None
        self._debug_keys: RepeatedKeys | None = None
        self._draws = _GuardedBatchSampler(num_draws, type(self).__name__)
        super().__init__(
            dataset, batch_sampler=self._draws, collate_fn=collate_fn, **arguments
        )

    @property
    def sharded(self) -> bool:
        """Whether the dataset holds this process's examples only."""
        return self._sharded

    @property
    def ticket(self) -> Ticket | None:
        """The ticket of the batch yielded last, or None before the first of a pass."""
        return self._issuer.ticket

    @property
    def yielded(self) -> YieldedTensors:
        """The tensors of the batch yielded last, and where earlier ones were."""
        return self._issuer.yielded

    @property
    def debug_seed(self) -> int | None:
        """The seed of every later draw, which is NOT PRIVATE; None for the OS's coins."""
        return self._debug_seed

    def use_debugging_seed(self, seed: int) -> None:
        """Draw the same batches in every run, from the next pass on: NOT PRIVATE.

        Called by a :class:`~dp.DPOptimizer` whose noise has a debugging seed. Every
        optimizer that trains on such batches has an infinite epsilon.
        """
        self._debug_seed, self._debug_keys = seed, None

    @property
    def unit_of_row(self) -> Tensor | None:
        """For each row of the batch yielded last, the position of its unit.

        None before the first batch, and where every row is a unit of its own. For
        losses that are not one a row: ``units=loader.unit_of_row[row_of_loss]``.
        """
        ticket = self.ticket
        if ticket is None or ticket.draw.unit_of_row is None:
            return None
        return torch.from_numpy(ticket.draw.unit_of_row.copy())

    @property
    def units_digest(self) -> str | None:
        """A hash of which rows share a unit; None if every row is a unit."""
        return None

    @property
    def num_units(self) -> int:
        """How many units of privacy the dataset has; private, as its length is."""
        return len(self.dataset)  # type: ignore[arg-type] # loaders ask for a length

    @property
    def part(self) -> slice | None:
        """Which rows of the batch yielded last are at hand; None if it is whole.

        Set by what splits a batch, such as :class:`dp.MicroBatches`, so that a unit's
        rows can be told where losses come without them.
        """
        return self._issuer.part

    @part.setter
    def part(self, rows: slice | None) -> None:
        self._issuer.part = rows

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # Not torch's own.
        if not self.in_order:
            raise SamplingMismatchError(
                "in_order is False, so a ticket could belong to another batch; set it"
                " to True"
            )
        draws = self._begin_pass()
        number = self._issuer.open()
        # Torch's own iterator only where workers or pinned memory ask for it.
        if self.num_workers or self.pin_memory:
            with self._draws.serving(draws):
                batches: Iterator[Any] = super().__iter__()
        else:
            batches = iter_batches(self.dataset, draws, self.collate_fn)
        return _EpochIterator(
            batches, draws.made, self._issuer, number, self._empty_batch
        )

    @abstractmethod
    def _begin_pass(self) -> Draws:
        """Return the draws of a new pass."""


@final
class _GuardedBatchSampler:
    """The batch sampler that torch sees: it has draws only while a pass is set up.

    Whoever else takes it, as those do who rebuild a loader to shard or to resume it,
    would get batches without tickets.
    """

    def __init__(self, num_draws: int, owner: str) -> None:
        self._num_draws = num_draws
        self._owner = owner
        self._served: Draws | None = None

    def __len__(self) -> int:
        return self._num_draws

    def __iter__(self) -> Iterator[list[int]]:
        if self._served is None:
            raise SamplingMismatchError(
                f"the batch sampler of a {self._owner} was taken out of it, so its"
                f" batches would have no tickets; iterate over the {self._owner}"
                " itself, and pass it to nothing that rebuilds data loaders"
            )
        return self._served

    @contextmanager
    def serving(self, draws: Draws) -> Iterator[None]:
        self._served = draws
        try:
            yield
        finally:
            self._served = None


_NOTHING: Final = object()


@final
class _EpochIterator(Iterator[Any]):
    """One pass over a loader: torch's batches, with the empty ones put back."""

    def __init__(
        self,
        batches: Iterator[Any],
        draws: deque[Draw],
        issuer: TicketIssuer,
        number: tuple[int, int],
        empty_batch: Any,
    ) -> None:
        self._batches = batches
        self._draws = draws
        self._issuer = issuer
        self._number = number
        self._empty_batch = empty_batch
        self._loaded: Any = _NOTHING

    def __next__(self) -> Any:
        self._issuer.check(self._number)
        # torch's iterator knows nothing of empty draws: it is asked for the next batch
        # that has rows, and the empty ones before it are put back here.
        if self._loaded is _NOTHING and not self._next_is_empty():
            self._load()
        if not self._draws:
            raise StopIteration
        draw = self._draws.popleft()
        batch = self._take() if draw.rows else deepcopy(self._empty_batch)
        self._issuer.issue(draw, batch, self._empty_batch)
        return batch

    def _next_is_empty(self) -> bool:
        # Example: draws of 3, 0 and 2 rows. Torch is asked for the first batch, the
        # second is put back here, and torch's next is the third.
        return bool(self._draws) and not self._draws[0].rows

    def _load(self) -> None:
        try:
            self._loaded = next(self._batches, _NOTHING)  # Draws, also empty ones.
        except BaseException:
            # Which draw failed is unknown: as with a generator, the pass is over.
            self._batches = iter(())
            self._draws.clear()
            raise

    def _take(self) -> Any:
        batch, self._loaded = self._loaded, _NOTHING
        return batch
