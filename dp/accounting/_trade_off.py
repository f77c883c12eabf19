"""What an attacker can reach at best, from the deltas of a mechanism.

An attacker looks at what was released, and says whether one unit was in the data. FPR
is how often they say so of a unit that was not, TPR of one that was. A mechanism that is
(epsilon, delta)-private for many pairs bounds TPR by FPR for each pair, and the least
bound holds. Any pair gives a valid one, so which epsilons are asked decides how tight a
bound is, and never whether it is true.

Shapes: ``E`` epsilons.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray


__all__ = ("EPSILONS_E", "DeltasAt", "Floats", "Pairs")

Floats = NDArray[np.float64]
DeltasAt = Callable[[Floats], Floats]
"""Return delta at rising epsilons from 0 on, the larger one of both directions."""

_LARGEST: Final = 40.0  # Beyond, every bound says nothing.
# Half a percent apart: bounds are then some 1e-5 of themselves above the least ones.
EPSILONS_E: Final[Floats] = np.concatenate(
    [np.zeros(1), np.geomspace(1e-6, _LARGEST, 3501)]
)


class Pairs:
    """Pairs of epsilon and delta that hold all at once, and what they bound.

    Args:
        deltas_at: Returns delta at epsilons.
    """

    def __init__(self, deltas_at: DeltasAt) -> None:
        self._deltas_E = np.clip(deltas_at(EPSILONS_E), 0.0, 1.0)
        self._growth_E = np.exp(EPSILONS_E)

    def advantage(self) -> float:
        """Return the most that TPR can be above FPR: the total variation distance.

        Delta at 0 is this distance. The other pairs serve where deltas are not the least
        ones, as those of a Renyi divergence: the rates of both errors sum to at least
        ``2 * (1 - delta) / (1 + exp(epsilon))``.

        References:
            Kairouz, Oh, Viswanath, "The Composition Theorem for Differential Privacy",
            2015, equation 5, both halves of which are summed:
            https://arxiv.org/abs/1311.0776
        """
        both_errors_E = 2 * (1 - self._deltas_E) / (1 + self._growth_E)
        return float(1 - both_errors_E.max())

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """Return the largest TPR of an attacker with this FPR.

        ``TPR <= exp(epsilon) * FPR + delta``, and the same of an attacker who says the
        contrary, ``1 - FPR <= exp(epsilon) * (1 - TPR) + delta``.

        References:
            Dong, Roth, Su, "Gaussian Differential Privacy", 2019, equation 5:
            https://arxiv.org/abs/1905.02383
        """
        fpr = false_positive_rate
        named_E = self._growth_E * fpr + self._deltas_E
        spared_E = 1 - (1 - fpr - self._deltas_E) / self._growth_E
        # Guessing reaches as much as FPR.
        return max(fpr, min(1.0, float(named_E.min()), float(spared_E.min())))

    def odds_factor(self, exceptions: float) -> float:
        """Return the factor of anyone's odds that is exceeded in few runs only.

        Odds grow by the ratio of the likelihoods of what was released, with the unit and
        without it. Were that ratio above ``exp(t)`` with probability ``p``, delta at an
        epsilon below ``t`` would be at least ``p * (1 - exp(epsilon - t))``. So ``p`` is
        at most *exceptions* for ``t = epsilon - log(1 - delta / exceptions)``.

        Args:
            exceptions: In what share of runs odds may grow by more.
        """
        is_less_E = self._deltas_E < exceptions
        if not is_less_E.any():
            return math.inf
        factors_E = self._growth_E[is_less_E] / (
            1 - self._deltas_E[is_less_E] / exceptions
        )
        return float(factors_E.min())
