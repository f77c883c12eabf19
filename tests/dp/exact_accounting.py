"""Epsilon of subsampled Gaussian releases to six digits, by another way than the package.

Nothing is rounded up or cut off. The losses of one release are tilted exponentially so
that their sum concentrates at epsilon, their masses are split between two points of a
grid such that the mean stays, the sum's law is a power of a Fourier transform, and
delta is summed around epsilon. So no digit is lost to small deltas. Splitting adds to
the variance in proportion to the square of the spacing, and two spacings tell how much.

Shapes: ``X`` outcomes, ``S`` numbers of a group that a batch can hold, ``N`` a grid.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, ndtr
from scipy.stats import binom


OUTCOMES = 40_001


def losses_of(q, sigma, group_size, *, remove):
    """Return losses at the middles of cells of outcomes, and the masses of the cells."""
    sizes = np.arange(group_size + 1)
    weights = binom.pmf(sizes, group_size, q)
    sizes, weights = sizes[weights > 0], weights[weights > 0]
    ends = np.linspace(-14 * sigma, sizes[-1] + 14 * sigma, OUTCOMES)
    x_X = (ends[1:] + ends[:-1]) / 2
    exponent_XS = (np.outer(x_X, sizes) - sizes**2 / 2) / sigma**2
    log_ratio_X = logsumexp(exponent_XS + np.log(weights), axis=1)

    def cells(mean):
        z = (ends - mean) / sigma
        low, high = ndtr(z), ndtr(-z)
        return np.where(z[1:] > 0, high[:-1] - high[1:], low[1:] - low[:-1])

    if remove:
        return log_ratio_X, sum(
            w * cells(k) for k, w in zip(sizes, weights, strict=True)
        )
    return -log_ratio_X, cells(0)


def delta_at(eps, losses_X, masses_X, steps, *, points):
    """Return delta, on a grid of so many points."""
    kept = masses_X > 0
    losses_X, log_masses_X = losses_X[kept], np.log(masses_X[kept])

    def slope(tilt):  # Of the cumulants: the mean of the tilted sum, beyond epsilon.
        tilted = np.exp(log_masses_X + tilt * losses_X - shift(tilt))
        return steps * float((tilted * losses_X).sum()) - eps

    def shift(tilt):
        return float(logsumexp(log_masses_X + tilt * losses_X))

    high = 1.0
    while slope(high) < 0 and high < 2**14:
        high *= 2
    if slope(high) < 0:
        return 0.0  # No sum of losses reaches epsilon.
    tilt = 0.0 if slope(0.0) > 0 else brentq(slope, 0.0, high, xtol=1e-6)
    tilted_X = np.exp(log_masses_X + tilt * losses_X - shift(tilt))
    mean = float((tilted_X * losses_X).sum())
    stddev = math.sqrt(max(float((tilted_X * (losses_X - mean) ** 2).sum()), 1e-300))
    reach = max(14 * math.sqrt(steps) * stddev, 1.05 * float(np.ptp(losses_X)))
    spacing = 2 * reach / points
    grid_N = _on_grid((losses_X - mean) / spacing, tilted_X, points)
    sum_N = np.fft.irfft(np.fft.rfft(grid_N) ** steps, points)
    offsets_N = np.fft.fftfreq(points, 1 / points) * spacing
    total_N = steps * mean + offsets_N
    above = total_N > eps
    terms = sum_N[above] * np.exp(-tilt * (total_N[above] - eps))
    scale = steps * shift(tilt) - tilt * eps
    return math.exp(scale) * float((terms * -np.expm1(eps - total_N[above])).sum())


def _on_grid(places_X, masses_X, points):
    """Split each mass between the two points around it, so that its mean stays."""
    low = np.floor(places_X).astype(int)
    part = places_X - low
    grid = np.bincount(low % points, masses_X * (1 - part), points)
    return grid + np.bincount((low + 1) % points, masses_X * part, points)


def exact_delta(eps, q, sigma, steps, *, group_size=1, points=1 << 20):
    """Return the delta of adding or removing a group: the larger of both directions."""
    deltas = []
    for remove in (True, False):
        pair = losses_of(q, sigma, group_size, remove=remove)
        coarse, fine = (
            delta_at(eps, *pair, steps, points=p) for p in (points // 2, points)
        )
        # What splitting adds falls with the square of the spacing.
        deltas.append((4 * fine - coarse) / 3)
    return max(deltas)
