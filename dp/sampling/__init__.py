"""Which examples take part in a step, and the proof that nothing else decided it.

:class:`PoissonLoader` draws every batch by independent coin flips and issues one
:class:`Ticket` with each batch; a private step may claim amplification by sampling
only for a batch that has one. :class:`AllocationLoader` does so for passes in each of
which every example is in exactly one batch, as does :class:`DisjointLoader`, which claims
less of them, and :class:`CyclicPoissonLoader` for steps that draw from groups of the data
in turn; :class:`UnamplifiedLoader` issues them for batches
of any order, of which no plan claims more than that each example is in a step once.
"""

from dp.sampling._allocation_loader import AllocationLoader
from dp.sampling._cyclic_loader import CyclicPoissonLoader
from dp.sampling._cyclic_scheme import CyclicPoisson
from dp.sampling._disjoint_loader import DisjointLoader
from dp.sampling._distinct_rows import origins
from dp.sampling._draws import poisson_sample
from dp.sampling._fetch import fetch
from dp.sampling._kept_rows import Rows, kept_rows
from dp.sampling._loader import PoissonLoader
from dp.sampling._passes import DisjointBatches, Passes, RandomAllocation, Scheme
from dp.sampling._rows_read import RowsRead
from dp.sampling._schemes import (
    PoissonSampling,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp.sampling._ticket import PassStep, Ticket
from dp.sampling._ticketed import TicketedLoader
from dp.sampling._unamplified_loader import UnamplifiedLoader


__all__ = (
    "AllocationLoader",
    "CyclicPoisson",
    "CyclicPoissonLoader",
    "DisjointBatches",
    "DisjointLoader",
    "PassStep",
    "Passes",
    "PoissonLoader",
    "PoissonSampling",
    "RandomAllocation",
    "Rows",
    "RowsRead",
    "Scheme",
    "Ticket",
    "TicketedLoader",
    "TruncatedPoissonSampling",
    "Unamplified",
    "UnamplifiedLoader",
    "fetch",
    "kept_rows",
    "origins",
    "poisson_sample",
)
