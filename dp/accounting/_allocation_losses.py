"""The privacy loss of a pass of random allocation, in which each example is in one step.

Every example takes part in exactly one of the ``t`` steps of a pass, chosen by its own
coin; passes are independent, and the noise is the same throughout a pass. Whatever the
gradients of a step depend on, a pass is then dominated by the pair

    P = mean over i of N(e_i, sigma^2 I_t)   against   Q = N(0, sigma^2 I_t),

for adding, removing or zeroing out one example: given the steps of the others, one map
sends Q to what is released without the example, and ``N(e_i, sigma^2 I_t)`` to what is
released if it is in step ``i``. The ratio of the densities is ``(X_1 + ... + X_t) / t``
with independent lognormals of mean 1. It is spread onto a grid as it is summed up
(:mod:`dp.accounting._spread_laws`), so that epsilon is rounded up.

Not covered: replacing an example; groups; noise that is lower in some step of a pass.

References:
    Chua et al., "Balls-and-Bins Sampling for DP-SGD", 2024, the same pair:
    https://arxiv.org/abs/2412.16802. Feldman and Shenfeld, "Privacy amplification by
    random allocation", 2025: https://arxiv.org/abs/2502.08202. Doroshenko et al.,
    "Connect the Dots", 2022, on spreading: https://arxiv.org/abs/2207.04380.
"""

import math
from functools import lru_cache
from typing import Any, Final

import numpy as np
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

from dp.accounting._resolution import DigitsLostError
from dp.accounting._spread_laws import SpreadLaw, lognormal, power_of_two, summed


__all__ = ("allocation_losses", "pass_law")

_POINTS: Final = 4000  # Of the grid of a sum.
_LARGEST: Final = 400.0  # Of a loss; what is larger counts as infinite.
_SUM_TOLERANCE: Final = 1e-6


@lru_cache(maxsize=16)
def allocation_losses(
    num_steps: int, sigma: float, interval: float
) -> PrivacyLossDistribution:
    """Return the losses of one pass of *num_steps* steps, in buckets of *interval*.

    Guarantees:
        * In both directions, delta is at least that of the pass, at every epsilon of
          either sign. So products of them dominate several passes.

    Raises:
        DigitsLostError: If the masses are not finite or do not sum to one.
    """
    law = pass_law(num_steps, sigma).on_grid(interval)
    losses_K = interval * (law.first + np.arange(len(law.masses)))
    law = _without_losses_beyond(law, losses_K)
    losses_K = losses_K[: len(law.masses)]
    q_K = law.masses
    # A ratio is P / Q, so the mass under P is that under Q times the ratio.
    p_K = q_K * np.exp(losses_K)
    # Rounding loses some 1e-16 of the mass in each sum: it counts as revealed.
    p_only = max(law.beyond, 1 - float(p_K.sum()), 0.0)
    q_only = max(law.zero, 1 - float(q_K.sum()), 0.0)
    last = law.first + len(q_K) - 1
    return PrivacyLossDistribution(
        _pmf(interval, law.first, p_K, p_only),
        # Adding an example turns the roles of P and Q: losses change their sign.
        _pmf(interval, -last, q_K[::-1].copy(), q_only),
    )


def _without_losses_beyond(law: SpreadLaw, losses_K: Any) -> SpreadLaw:
    """Send to infinity what is revealed almost surely: exponentials must be numbers."""
    kept = max(1, int(np.searchsorted(losses_K, _LARGEST)))
    if kept == len(losses_K):
        return law
    masses_K = law.masses[:kept].copy()
    beyond = float((law.masses[kept:] * np.exp(losses_K[kept:])).sum())
    to_last = float(law.masses[kept:].sum())
    masses_K[-1] += to_last
    beyond -= to_last * math.exp(losses_K[kept - 1])
    return SpreadLaw(
        law.spacing, law.first, masses_K, law.zero, law.beyond + max(0.0, beyond)
    )


def _pmf(interval: float, first: int, masses_K: Any, infinite: float) -> Any:
    total = float(masses_K.sum()) + infinite
    if not abs(total - 1) <= _SUM_TOLERANCE:  # NaN is refused, too.
        raise DigitsLostError(
            f"the masses of privacy losses of a pass sum to {total!r} at an interval of"
            f" {interval!r}, not to 1, so no epsilon follows from them; this is an"
            " error of dp, please report the plan it happened with"
        )
    return DensePLDPmf(interval, first, masses_K, infinite, True)  # noqa: FBT003 -- pessimistic


@lru_cache(maxsize=16)
def pass_law(num_steps: int, sigma: float, points: int = _POINTS) -> SpreadLaw:
    """Return a spread of the ratio of the densities of one pass.

    Powers of two of the lognormals are summed up, each sum on a grid of its own. All
    grids are nested, and the logarithm of the number of steps is on each of them, so
    that dividing by it moves whole buckets.

    Args:
        num_steps: The steps of a pass (t).
        sigma: Standard deviation of the noise over the clipping norm.
        points: About how many points a grid has.
    """
    base = math.log(num_steps) if num_steps > 1 else 1.0
    reach = 1 / sigma**2 + 19 / sigma
    spacing = min(base, base * power_of_two(reach / points / base))
    power, total = lognormal(sigma, spacing), None
    count = num_steps
    # Example: 10 steps are 2 + 8, so X2 = X1 + X1, X4 and X8 are summed up, and X2 + X8
    # is the result: four sums and not nine.
    while True:
        if count & 1:
            total = power if total is None else summed(total, power, points=points)
        count >>= 1
        if not count:
            break
        power = summed(power, power, points=points)
    assert total is not None, "there is a step"  # noqa: S101 -- of type checkers
    # A grid on which log(10) is no point is refined until it is.
    if total.spacing > base:
        total = total.nested(base)
    shift = round(math.log(num_steps) / total.spacing)
    return SpreadLaw(
        total.spacing,
        total.first - shift,
        total.masses,
        total.zero,
        total.beyond / num_steps,
    )
