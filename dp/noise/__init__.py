"""Gaussian noise from a cryptographic generator, rounded exactly to a lattice.

:class:`GaussianNoise` is the stage that makes a sum private; :class:`BandedNoise` says
which sums of steps it is added to, where the noise of steps is to be correlated. Not done
here: choosing the noise multiplier (:mod:`dp.accounting`), bounding the sensitivity of the
sums (:mod:`dp.clipping`), and keeping sums from step to step (:mod:`dp._mechanism`).
"""

from dp.noise._banded import BandedNoise
from dp.noise._gaussian import GaussianNoise


__all__ = ("BandedNoise", "GaussianNoise")
