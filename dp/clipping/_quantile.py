"""Clip to a norm that follows a quantile of the gradients' norms, found privately.

Shapes: ``B`` examples in a batch, ``G`` groups of parameters, of which there is one.
"""

import math
from dataclasses import dataclass
from typing import Final, final

from dp import _checks
from dp.clipping._rules import SingleNormClipping


__all__ = ("QuantileClipping",)

_OF_A_BATCH: Final = 1 / 20  # The noise on a count, over the examples in a batch.
_LEAST_NORM, _LARGEST_NORM = 1e-18, 1e18  # As of dp._checks.clipping_norm.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileClipping(SingleNormClipping):
    """Clip to a norm that follows a quantile of the norms of gradients.

    Beside the sum of gradients, each step releases how many norms were within C, with
    noise of its own. C then moves towards the norm that a share *quantile* of the
    gradients stays within: ``C exp(-learning_rate (share - quantile))``.

    The two are charged as one release at the plan's noise multiplier sigma, so epsilon
    stays the plan's. Gradients pay with a little more noise, sigma_g: half a percent for
    sigma = 1 and a count with standard deviation 5.

    >>> clipping = QuantileClipping(max_grad_norm=1.0)
    >>> clipping.count_stddev_of(expected_batch_size=100.0)
    5.0
    >>> clipping.adapted(1.0, share_within=0.0)  # All were clipped: C grows.
    1.1051709180756477

    Args:
        max_grad_norm: The clipping norm C of the first step, in the unit of gradients;
            the plan's.
        quantile: The share of gradients that is to stay unclipped, between 0 and 1.
        learning_rate: How fast C moves; its logarithm changes by at most this much a
            step, but for the noise.
        count_stddev: Standard deviation of the noise on the count, in examples; above
            half of sigma. None for a twentieth of the plan's expected batch size.

    Raises:
        ValueError: If a number is out of range; when it is used, if the plan's noise
            multiplier is not below twice the noise on the count, if the plan has a
            schedule of clipping norms, or if it draws by random allocation.

    Guarantees:
        * As of :class:`FlatClipping`, at the C of the step.
        * C is a function of what was released, and so as public as the parameters.

    References:
        Andrew et al., "Differentially Private Learning with Adaptive Clipping", 2021,
        Algorithm 1 and Theorem 1. https://arxiv.org/abs/1905.03871
    """

    max_grad_norm: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_stddev: float | None = None

    def __post_init__(self) -> None:
        _checks.clipping_norm(max_grad_norm=self.max_grad_norm)
        _checks.open_unit(quantile=self.quantile)
        _checks.positive(learning_rate=self.learning_rate)
        if self.count_stddev is not None:
            _checks.positive(count_stddev=self.count_stddev)

    def count_stddev_of(self, expected_batch_size: float) -> float:
        """Return the standard deviation of the noise on the count, in examples."""
        if self.count_stddev is not None:
            return self.count_stddev
        return expected_batch_size * _OF_A_BATCH

    def adapted(self, max_grad_norm: float, *, share_within: float) -> float:
        """Return the clipping norm of the next step.

        Args:
            max_grad_norm: The norm C of this step.
            share_within: The released share of norms within C; noise may take it out of
                [0, 1].
        """
        # At most a factor of e^30 a step, whatever the noise: exp must not overflow.
        change = -self.learning_rate * (share_within - self.quantile)
        moved = max_grad_norm * math.exp(min(30.0, max(-30.0, change)))
        return min(_LARGEST_NORM, max(_LEAST_NORM, moved))
