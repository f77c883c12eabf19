"""What a sequence of Gaussian releases costs, by ``dp_accounting``.

Everything here is host-side arithmetic on public numbers. Two accountants give valid
upper bounds and the smaller one is reported: privacy loss distributions (PLD) are the
tighter nearly always, Renyi differential privacy (RDP) for very large noise. What was
really released is :mod:`dp.ledger`'s business.
"""

from dp.accounting._accountant import (
    CLAIMED,
    Guarantee,
    epsilon,
    epsilon_curve,
    group_epsilon,
)
from dp.accounting._dp_events import to_dp_event
from dp.accounting._reference import Library
from dp.accounting._release import Release, Truncation, merged


__all__ = (
    "CLAIMED",
    "Guarantee",
    "Library",
    "Release",
    "Truncation",
    "epsilon",
    "epsilon_curve",
    "group_epsilon",
    "merged",
    "to_dp_event",
)

for _name in ("Guarantee", "Release", "Truncation"):
    globals()[
        _name
    ].__module__ = __name__  # Pickles and tracebacks say where it is public.
