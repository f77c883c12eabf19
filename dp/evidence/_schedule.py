"""The steps at which losses are evaluated again.

They follow from the id under which a process charges its ledger. The operating system
makes that id, all ranks of a run share it, so that they look together without talking,
and a certificate states it: its reader can compute how many looks were due.
"""

import hashlib
from typing import Final


__all__ = ("EVERY", "FIRST", "asks_gradients", "is_due", "num_due", "picks_call")

FIRST: Final = 3  # Steps of a process that are looked at in any case.
EVERY: Final = 50  # Of the others, one in so many is.
_GRADIENTS: Final = 8  # Of these, one in so many asks for gradients, which take longer.


def is_due(segment: str, step: int) -> bool:
    """Whether the losses of *step*, counted from 0 in *segment*, are evaluated again."""
    return step < FIRST or _number(segment, step, 0) % EVERY == 0


def num_due(segment: str, steps: int) -> int:
    """Return how many of the first *steps* of *segment* are due."""
    return sum(is_due(segment, step) for step in range(steps))


def picks_call(segment: str, step: int, call: int) -> bool:
    """Whether the *call*-th part of a step, counted from 1, is looked at if one is due.

    The j-th is with probability 1 / j. So each of k parts is with at least 1 / k, the
    number of parts need not be known, and the cost grows with its logarithm only. In
    the first steps ranks do not share an id yet: there every part is.
    """
    return step < FIRST or _number(segment, step, call) % call == 0


def asks_gradients(segment: str | None, step: int, call: int) -> bool:
    """Whether the look at the *call*-th part of a due step compares gradients, too.

    Losses that surprise, which have no *segment*, are not asked.
    """
    if segment is None or step < FIRST:
        return segment is not None and call == 1
    return _number(segment, step, 0) // EVERY % _GRADIENTS == 0


def _number(segment: str, step: int, call: int) -> int:
    text = f"{segment}/{step}/{call}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
