"""Gaussian noise from a cryptographic generator, rounded exactly to a lattice.

:class:`GaussianNoise` is the stage that makes a sum private. Not done here: choosing the
noise multiplier (:mod:`dp.accounting`), and bounding the sensitivity of the sums
(:mod:`dp.clipping`).
"""

from dp.noise._gaussian import GaussianNoise


__all__ = ("GaussianNoise",)
