"""The privacy loss of a group of examples, each in a batch by its own coin flip.

The sum of the group's clipped gradients is at most as long as their number in the
batch, which is binomial, so a release is a mixture of Gaussians. ``dp_accounting``
has its losses; the outcome at which each is reached is computed here for all losses at
once. :mod:`dp.accounting._agreement` compares the result with the library's own.

Not done here: composing losses into an epsilon (:mod:`dp.accounting._composition`).

Shapes: ``L`` losses, ``S`` numbers of the group that a batch can hold.
"""

import math
from functools import lru_cache
from typing import Any, Final

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.pld.privacy_loss_mechanism import (
    AdjacencyType,
    MixtureGaussianPrivacyLoss,
)

from dp.accounting._buckets import Floats, bucket
from dp.accounting._pmf import numbers_in_batch


__all__ = ("group_losses",)

_FEW: Final = 4000  # Losses that are bracketed by bisection; Newton finds the others.
_BISECTIONS: Final = 60
_NEWTON_STEPS: Final = 60
_PRECISION: Final = 1e-13  # Of an outcome, in standard deviations.


@lru_cache(maxsize=8)
def group_losses(
    *, group_size: int, sampling_probability: float, sigma: float, interval: float
) -> PrivacyLossDistribution:
    """Return the losses of one release about a group, in buckets of *interval*.

    Guarantees:
        * Losses are rounded up, as by ``from_mixture_gaussian_mechanism``.
    """
    sizes, weights = numbers_in_batch(group_size, sampling_probability)
    remove, add = (
        bucket(_Losses(sigma, sizes, weights, adjacency_type=adjacency), interval)
        for adjacency in (AdjacencyType.REMOVE, AdjacencyType.ADD)
    )
    return PrivacyLossDistribution(remove, add)


class _Losses(MixtureGaussianPrivacyLoss):
    """The same losses, all inverted together."""

    def get_delta_for_epsilon(self, epsilon: Any) -> Any:
        """Return the delta at each epsilon, for an increasing array of them."""
        eps_L = np.asarray(epsilon, dtype=np.float64)
        none = 1 - self._sampling_prob  # That no one of the group is in the batch.
        deltas_L = np.zeros_like(eps_L)
        reached_L = np.ones_like(eps_L, dtype=np.bool_)
        if none > 0 and self.adjacency_type == AdjacencyType.ADD:
            reached_L = eps_L < -math.log(none)
        elif none > 0:
            # With the group, the density is nowhere below `none` times that without it,
            # so no loss is less than log(none), and delta is 1 - exp(epsilon) there.
            reached_L = eps_L > math.log(none)
            deltas_L[~reached_L] = -np.expm1(eps_L[~reached_L])
        eps_L = eps_L[reached_L]
        if self.adjacency_type == AdjacencyType.REMOVE:
            # The library has the group's sums on the negative side.
            x_L = -self._outcome_at(eps_L)
        else:
            x_L = self._outcome_at(-eps_L[::-1])[::-1]
        lower_L = np.exp(eps_L + self.mu_lower_log_cdf(x_L))
        deltas_L[reached_L] = self.mu_upper_cdf(x_L) - lower_L
        return np.clip(deltas_L, 0, 1)

    def _outcome_at(self, log_ratios_L: Floats) -> Floats:
        """Return where the logarithm of the ratio of both densities has each value.

        It is increasing and convex, so Newton's method from the right never passes the
        value. A coarse bisection gives it a start near by.

        Args:
            log_ratios_L: The values, increasing.
        """
        if not len(log_ratios_L):
            return log_ratios_L
        # Sixty halvings of 4000 values; the others, many more, begin next to these.
        few = np.linspace(log_ratios_L[0], log_ratios_L[-1], _FEW)
        low, high = self._bracket(few)
        after_L = np.searchsorted(few, log_ratios_L).clip(1, _FEW - 1)
        left_L, x_L = low[after_L - 1], high[after_L]
        open_L, num_steps = np.arange(len(x_L)), 0
        while len(open_L) and num_steps < _NEWTON_STEPS:
            value_L, slope_L = self._log_ratio(x_L[open_L])
            step_L = (value_L - log_ratios_L[open_L]) / slope_L
            x_L[open_L] = np.maximum(x_L[open_L] - step_L, left_L[open_L])
            open_L = open_L[step_L > _PRECISION * math.sqrt(self._variance)]
            num_steps += 1
        # Outcomes increase with the ratio, whatever the last digits say.
        return np.maximum.accumulate(x_L)

    def _bracket(self, values: Floats) -> tuple[Floats, Floats]:
        reach = 60 * math.sqrt(self._variance) + max(self.sensitivities)
        low, high = np.full(len(values), -reach), np.full(len(values), reach)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self._log_ratio(middle)[0] < values
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return low, high

    def _log_ratio(self, x_L: Floats) -> tuple[Floats, Floats]:
        """Return the logarithm of the ratio of both densities, and its slope."""
        shifts = [float(size) for size in self.sensitivities]
        # Taken out of all exponents and added at the end, so that none overflows.
        largest_L = np.maximum(x_L, 0) * max(shifts) / self._variance
        total_L, moment_L = np.zeros_like(x_L), np.zeros_like(x_L)
        for shift, weight in zip(shifts, self.sampling_probs, strict=True):
            exponent_L = shift * (x_L - shift / 2) / self._variance - largest_L
            term_L = weight * np.exp(exponent_L)
            total_L += term_L
            moment_L += shift * term_L
        slope_L = np.maximum(moment_L / total_L / self._variance, 1e-300)
        return largest_L + np.log(total_L), slope_L
