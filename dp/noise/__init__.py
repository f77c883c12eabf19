"""Gaussian noise that nobody can predict, repeat, subtract or tell from real numbers.

:class:`GaussianNoise` is the stage that makes a sum private. Not done here: how much
noise is enough (:mod:`dp.accounting`), and what it is added to (:mod:`dp.clipping`).
"""

from dp.noise._gaussian import GaussianNoise


__all__ = ("GaussianNoise",)
