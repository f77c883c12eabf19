"""The privacy loss of one release on a sample: ``dp_accounting``'s losses, vectorised.

The losses and how they are cut off are those of ``dp_accounting``. The outcome at which
a loss is reached is known in closed form, and computed for all losses at once.
:mod:`dp.accounting._agreement` compares the result with the library's own.

Not done here: composing losses into an epsilon (:mod:`dp.accounting._composition`).

Shapes: ``L`` losses.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.pld.privacy_loss_mechanism import (
    AdjacencyType,
    GaussianPrivacyLoss,
)
from scipy.stats import binom

from dp._typing import NeighboringRelation
from dp.accounting._buckets import Floats, bucket
from dp.accounting._release import Truncation


__all__ = ("sampled_losses", "truncated_losses")


@lru_cache(maxsize=16)
def sampled_losses(
    q: float, sigma: float, relation: NeighboringRelation, interval: float
) -> PrivacyLossDistribution:
    """Return the losses of a release on a Poisson sample, in buckets of *interval*.

    Guarantees:
        * They are those of ``from_gaussian_mechanism``, up to the last digits.
    """
    if relation == "replace_one":
        return PrivacyLossDistribution(_pmf(q, sigma, AdjacencyType.REPLACE, interval))
    remove = _pmf(q, sigma, AdjacencyType.REMOVE, interval)
    if q == 1:  # Symmetric.
        return PrivacyLossDistribution(remove)
    return PrivacyLossDistribution(remove, _turned(remove, q))


def _turned(remove: DensePLDPmf, q: float) -> DensePLDPmf:
    """Return the losses of adding an example: those of removing it, turned round.

    Masses p at losses l are a pair of laws, of which the other has masses p exp(-l).
    That pair dominates removing for every epsilon of either sign, so turned round it
    dominates adding. Where deltas are computed anew for adding, masses in its tail are
    differences of numbers next to 1: rounding makes some of them up, and at q = 1e-5
    they were a part in a million of all.

    No loss of adding is above ``-log(1 - q)``. Where the grid reaches that, what is not
    among the masses counts as its largest loss, and else as infinite.
    """
    interval, first = remove._discretization, remove._lower_loss  # noqa: SLF001 -- there are no public ones
    losses_L = (first + np.arange(remove.size)) * interval
    masses_L = (remove._probs * np.exp(-losses_L))[::-1]  # noqa: SLF001
    left = max(0.0, 1 - math.fsum(masses_L))
    is_reached = losses_L[0] <= math.log1p(-q)
    masses_L[-1] += left if is_reached else 0.0
    last = first + remove.size - 1
    infinite = 0.0 if is_reached else left
    return DensePLDPmf(interval, -last, masses_L, infinite, True)  # noqa: FBT003 -- pessimistic


@lru_cache(maxsize=16)
def truncated_losses(
    q: float,
    sigma: float,
    truncation: Truncation,
    relation: NeighboringRelation,
    interval: float,
) -> PrivacyLossDistribution:
    """Return the losses of a release on a truncated sample, in buckets of *interval*.

    Whether the others fill the batch is taken to be known. If they do, an example
    displaces one of them, so sums are twice as far apart, and it is taken less often.

    Guarantees:
        * They are those of ``from_truncated_subsampled_gaussian_mechanism``, up to the
          last digits.
    """
    plain = sampled_losses(q, sigma, relation, interval)
    size, largest = truncation.dataset_size, truncation.max_batch_size
    # The chance that the others fill the batch: at least `largest` of size - 1 were
    # drawn.
    full = float(binom.sf(largest - 1, size - 1, q))
    if full == 0:
        return plain
    # More were drawn than fit, and of all examples each is as likely in what is taken.
    taken = float(binom.sf(largest, size, q)) * largest / size
    displacing = sampled_losses(
        min(1.0, taken / full), sigma / 2, "replace_one", interval
    )
    return displacing.compute_mixture(plain, full)


def _pmf(q: float, sigma: float, adjacency: AdjacencyType, interval: float) -> Any:
    losses = _Losses(sigma, sampling_prob=q, adjacency_type=adjacency)
    if q == 1:  # Of all unsampled releases at once: losses may be as large as they are.
        return bucket(losses, interval, largest=math.inf)
    return bucket(losses, interval)


class _Losses(GaussianPrivacyLoss):
    """The same losses of removing or replacing an example, all inverted together."""

    def get_delta_for_epsilon(self, epsilon: Any) -> Any:
        """Return the delta at each epsilon, for an array of them."""
        eps_L = np.asarray(epsilon, dtype=np.float64)
        q = self.sampling_prob
        deltas_L = np.zeros_like(eps_L)
        reached_L = np.ones_like(eps_L, dtype=np.bool_)
        if q < 1 and self.adjacency_type == AdjacencyType.REMOVE:
            reached_L = eps_L > math.log1p(-q)
            deltas_L[~reached_L] = -np.expm1(eps_L[~reached_L])
        eps_L = eps_L[reached_L]
        x_L = self._outcome_at(eps_L)
        lower_L = np.exp(eps_L + self.mu_lower_log_cdf(x_L))
        deltas_L[reached_L] = self.mu_upper_cdf(x_L) - lower_L
        return np.clip(deltas_L, 0, 1)

    def _outcome_at(self, eps_L: Floats) -> Floats:
        """Return the largest ``x`` at which each loss is reached."""
        q, variance = self.sampling_prob, self.standard_deviation**2
        if self.adjacency_type == AdjacencyType.REMOVE:
            # Densities N(-1, v) and N(0, v) have the log ratio (-x - 1/2) / v at x,
            # solved for x.
            return -0.5 - variance * _unsampled(eps_L, q)
        if q == 1:
            return -variance * eps_L / 2
        log_alpha = 0.5 / variance + math.log1p(-q) - math.log(q)
        half_L = np.abs(eps_L) / 2
        with np.errstate(divide="ignore"):  # The logarithm of a loss of 0.
            log_sinh_L = half_L + np.log(-np.expm1(-2 * half_L) / 2)
        turned_L = -np.sign(eps_L) * _asinh_of_exp(log_alpha + log_sinh_L)
        return variance * (turned_L - eps_L / 2)


def _unsampled(eps_L: Floats, q: float) -> Floats:
    """Return ``log(1 + (exp(eps) - 1) / q)``: the loss if the example was sampled."""
    large_L = eps_L > 1
    small_eps_L, large_eps_L = np.where(large_L, 0, eps_L), np.where(large_L, eps_L, 1)
    with np.errstate(divide="ignore"):  # At the least loss that is possible.
        small_L = np.log1p(np.maximum(np.expm1(small_eps_L) / q, -1))
    # The same as log((exp(eps) + q - 1) / q), without an exponential that overflows.
    beyond_L = large_eps_L - math.log(q) + np.log1p((q - 1) * np.exp(-large_eps_L))
    return np.where(large_L, beyond_L, small_L)


def _asinh_of_exp(t_L: Floats) -> Floats:
    small_L = np.arcsinh(np.exp(np.minimum(t_L, 0)))
    large_L = np.logaddexp(t_L, np.logaddexp(0, 2 * t_L) / 2)
    return np.where(t_L < 0, small_L, large_L)
