"""The privacy cost of a sequence of Gaussian releases, from ``dp_accounting``.

Everything here is host-side arithmetic on public numbers. Two accountants give valid
upper bounds and the smaller one is reported: privacy loss distributions (PLD) are the
tighter nearly always, Renyi differential privacy (RDP) for very large noise. What was
really released is :mod:`dp.ledger`'s business.
"""

from dp.accounting._accountant import Guarantee, epsilon
from dp.accounting._curve import epsilon_curve
from dp.accounting._dp_events import to_dp_event
from dp.accounting._groups import group_epsilon
from dp.accounting._query import Query
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import Release, Truncation, merge_equal_releases
from dp.accounting._risk import Risk, risk, risk_curve
from dp.accounting._selection import NegativeBinomialRuns, PoissonRuns


__all__ = (
    "Guarantee",
    "NegativeBinomialRuns",
    "PoissonRuns",
    "Query",
    "ReferenceAccountant",
    "Release",
    "Risk",
    "Truncation",
    "epsilon",
    "epsilon_curve",
    "group_epsilon",
    "merge_equal_releases",
    "risk",
    "risk_curve",
    "to_dp_event",
)

for _public in (
    Guarantee,
    NegativeBinomialRuns,
    PoissonRuns,
    Query,
    ReferenceAccountant,
    Release,
    Risk,
    Truncation,
):
    _public.__module__ = __name__  # What pickles and tracebacks show.
