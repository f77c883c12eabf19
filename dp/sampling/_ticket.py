"""Tickets: the right to make one private step with one batch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count as counter
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from dp.exceptions import SamplingMismatchError
from dp.sampling._yielded import YieldedTensors


__all__ = ("Draw", "PassStep", "Ticket", "TicketIssuer", "new_pass")

# One count for the whole process: a ticket of one loader never passes for another's.
_serials: Final = counter()
_passes: Final = counter()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PassStep:
    """One step of a pass, or of a round, in which every unit is in one step at most.

    A pass is by random allocation. A round is by cyclic Poisson sampling, and one of a
    chain of rounds, in all of which a unit keeps its place.

    Attributes:
        number: Of the pass or round; no other one of the process has it.
        step: Which of its steps, from 0.
        num_steps: How many it has.
        chain: The number of the chain of rounds; None for a pass.
        position: Which step of the chain it is, from 0.
    """

    number: int
    step: int
    num_steps: int
    chain: int | None = None
    position: int = 0


def new_pass() -> int:
    """Return the number of a new pass, round or chain."""
    return next(_passes)


@final
@dataclass(frozen=True, slots=True)
class Draw:
    """What one draw selected.

    Attributes:
        rows: The rows of the dataset, in the order in which the batch has them.
        unit_of_row: For each row the position of its unit among the units drawn;
            None if every row is a unit of its own.
        in_pass: Which step of a pass or round it is; None for Poisson draws.
        num_ranks: Over how many processes the units were spread.
    """

    rows: Sequence[int]
    unit_of_row: NDArray[np.int64] | None = None
    in_pass: PassStep | None = None
    num_ranks: int = 1

    @property
    def num_units(self) -> int:
        """How many units were drawn."""
        if self.unit_of_row is None:
            return len(self.rows)
        return int(self.unit_of_row[-1]) + 1 if len(self.unit_of_row) else 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The right to make one private step with one batch.

    Attributes:
        serial: Strictly increasing over all loaders of the process.
        draw: Which rows were drawn, of which units. Private: it is not shown.
        ordinal: How many tickets the loader issued before.
        process: The process that drew it; a fork has no right to it.
    """

    serial: int
    draw: Draw = field(repr=False, compare=False)
    ordinal: int = field(default=0, repr=False)
    process: int = field(default_factory=os.getpid, repr=False)

    @property
    def num_samples(self) -> int:
        """How many units were drawn, each of which is clipped once. Private."""
        return self.draw.num_units


@final
@dataclass(slots=True)
class TicketIssuer:
    """Issues the tickets of the one live pass of a loader."""

    ticket: Ticket | None = None
    part: slice | None = None  # The rows of the batch at hand, if not all of them.
    yielded: YieldedTensors = field(default_factory=YieldedTensors)
    _pass: tuple[int, int] = (0, 0)  # Process and number.
    _num_issued: int = 0

    def open(self) -> tuple[int, int]:
        """End the live pass, and its ticket, for a new one."""
        self.ticket = self.part = None
        self.yielded.clear()
        self._pass = (os.getpid(), self._pass[1] + 1)
        return self._pass

    def check(self, number: tuple[int, int]) -> None:
        # A pass that was broken off must leave nothing to a later one: with prefetching
        # workers its batches would come with the tickets of others.
        if number != self._pass:
            raise SamplingMismatchError(
                "another iteration over this loader has begun, which ended this one;"
                " use one iterator at a time, or a loader for each"
            )
        if number[0] != os.getpid():
            raise SamplingMismatchError(
                "this iteration was begun before the process forked, so two processes"
                " would use the same draws; iterate over the loader anew"
            )

    def issue(self, draw: Draw, batch: Any, empty_batch: Any) -> None:
        self.part = None
        self.yielded.replace(batch, empty_batch=empty_batch, num_rows=len(draw.rows))
        self.ticket = Ticket(serial=next(_serials), draw=draw, ordinal=self._num_issued)
        self._num_issued += 1

    def __reduce__(self) -> tuple[object, ...]:
        return TicketIssuer, ()  # A copied loader has yielded nothing yet.
