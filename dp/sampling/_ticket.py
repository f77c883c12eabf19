"""Tickets: the right to make one private step with one batch."""

import os
from dataclasses import dataclass, field
from itertools import count as counter
from typing import Final, final

from dp.exceptions import SamplingMismatchError


__all__ = ("Ticket", "TicketIssuer")

# One count for the whole process: a ticket of one loader never passes for another's.
_serials: Final = counter()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The right to make one private step with one batch.

    Attributes:
        serial: Strictly increasing over all loaders of the process.
        num_samples: How many examples were drawn. Private: it is not shown.
        ordinal: How many tickets the loader issued before.
    """

    serial: int
    num_samples: int = field(repr=False)
    ordinal: int = field(default=0, repr=False)


@final
@dataclass(slots=True)
class TicketIssuer:
    """Issues the tickets of the one live pass of a loader."""

    ticket: Ticket | None = None
    _pass: tuple[int, int] = (0, 0)  # Process and number.
    _num_issued: int = 0

    def open(self) -> tuple[int, int]:
        """End the live pass, and its ticket, for a new one."""
        self.ticket = None
        self._pass = (os.getpid(), self._pass[1] + 1)
        return self._pass

    def check(self, number: tuple[int, int]) -> None:
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

    def issue(self, num_samples: int) -> None:
        self.ticket = Ticket(
            serial=next(_serials), num_samples=num_samples, ordinal=self._num_issued
        )
        self._num_issued += 1

    def __reduce__(self) -> tuple[object, ...]:
        return TicketIssuer, ()  # A copied loader has yielded nothing yet.
