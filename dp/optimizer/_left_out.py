"""Batches that were drawn and left out, while the iteration went on.

Which steps are taken shows in what is released. Where a loss decides it, as in the usual
``if not loss.isfinite(): continue``, an example that has such a loss is told by every
step that is missing, and no epsilon covers that. Why a batch was left out cannot be
seen, and there are public reasons: it is told once, and named in the certificate.
"""

import warnings
from typing import Final
from weakref import WeakKeyDictionary

from dp._mechanism.beside import Beside
from dp.evidence import callers_level
from dp.sampling import TicketedLoader


__all__ = ("note_release",)

# By loader, since two optimizers may take turns with its batches.
_last_released: Final[WeakKeyDictionary[TicketedLoader, tuple[int, int]]] = (
    WeakKeyDictionary()
)


def note_release(beside: Beside, loader: TicketedLoader | None) -> None:
    """Note that the batch at hand was released; warn once if one before it was not.

    A batch before the first release of an iteration, or after the last, is none that
    was left out: it was looked at, or the run ended.

    Args:
        beside: What was seen before.
        loader: The loader that drew it, if there is one.
    """
    ticket = None if loader is None else loader.ticket
    if loader is None or ticket is None:
        return
    # Example: of one iteration batches 4 and 6 were released, and 5 was not.
    now = loader.yielded.iteration, ticket.ordinal
    iteration, ordinal = _last_released.get(loader, now)
    _last_released[loader] = now
    is_next = iteration != now[0] or now[1] - ordinal <= 1
    if is_next or beside.has_left_out:
        return
    beside.has_left_out = True
    warnings.warn(
        "a batch was drawn and left out, and the next one was released. If what is in the"
        " batch decided that, as a loss that is large or not finite, then which steps"
        " are taken tells of its examples, and epsilon does not cover it. Take a step"
        " for every batch: an example whose gradient is not finite counts as zero. The"
        " certificate says that batches were left out",
        stacklevel=callers_level(),
    )
