"""What a sequence of Gaussian releases costs, by ``dp_accounting``.

Everything here is host-side arithmetic on public numbers. Two accountants give valid
upper bounds and the smaller one is reported: privacy loss distributions (PLD) are the
tighter nearly always, Renyi differential privacy (RDP) for very large noise. What was
really released is :mod:`dp.ledger`'s business.
"""

from dp.accounting._accountant import (
    VALUE_DISCRETIZATION_INTERVAL,
    Guarantee,
    epsilon,
    epsilon_curve,
    group_epsilon,
)
from dp.accounting._dp_events import to_dp_event
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import Release, Truncation, merge_equal_releases


__all__ = (
    "VALUE_DISCRETIZATION_INTERVAL",
    "Guarantee",
    "ReferenceAccountant",
    "Release",
    "Truncation",
    "epsilon",
    "epsilon_curve",
    "group_epsilon",
    "merge_equal_releases",
    "to_dp_event",
)

for _name in ("Guarantee", "Release", "Truncation"):
    globals()[
        _name
    ].__module__ = __name__  # Pickles and tracebacks say where it is public.
