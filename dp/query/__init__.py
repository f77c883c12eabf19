"""Private answers about the data that a run trains on, paid for by the run's plan.

A query is planned with the run (``plan_for(..., queries=[...])``): its noise is part of
every epsilon that the plan's ledger states, from the first one on, whether it is asked or
not. Asking it once costs nothing more; asking it twice is refused.

What each answer sums, and by how much one unit of privacy changes it, is in
:mod:`dp.query._queries`; how a vector of sums gets its noise, in
:mod:`dp.query._statistic`.
"""

from dp.query._answers import Answer, Histogram
from dp.query._queries import Queries
from dp.query._statistic import Statistic, noised


__all__ = ("Answer", "Histogram", "Queries", "Statistic", "noised")

for _public in (Answer, Histogram, Queries):
    _public.__module__ = __name__  # What pickles and tracebacks show.
