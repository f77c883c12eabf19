"""Which examples take part in a step, and the proof that nothing else decided it.

:class:`PoissonLoader` draws every batch by independent coin flips and issues one
:class:`Ticket` with each batch; a private step may claim amplification by sampling
only for a batch that has one.
"""

from dp.sampling._draws import poisson_sample
from dp.sampling._fetch import fetch
from dp.sampling._loader import PoissonLoader
from dp.sampling._schemes import (
    PoissonSampling,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp.sampling._ticket import Ticket


__all__ = (
    "PoissonLoader",
    "PoissonSampling",
    "Ticket",
    "TruncatedPoissonSampling",
    "Unamplified",
    "fetch",
    "poisson_sample",
)
