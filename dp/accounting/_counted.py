"""The noise of a sum of gradients and of counts that are released together.

An example moves the sum of clipped gradients by C at most, and the counts by ``s`` in L2.
With noise of standard deviation ``g C`` on the sum and ``b`` on each count, the two are,
each part in units of its noise, one Gaussian vector of which an example moves at most
``sqrt(1/g^2 + s^2/b^2) = 1/sigma``: one release with noise multiplier sigma, on one
sample of the examples. That holds whatever C was chosen from earlier releases, as long as
g and b are fixed.

A count of gradients within C adds 1/2 or -1/2 an example, so that ``s = 1/2``. Counts of
touched rows of tables are moved by ``s = sqrt(k)``, for k rows an example. There, only a
part of the noisy sum is released, which the noisy counts decide: a function of the vector.

Example: sigma = 1 and one count with b = 5 leave ``1/g^2 = 1 - 1/100``, so g = 1.005038:
the count costs the gradients half a percent more noise, and no epsilon.

References:
    Andrew et al., "Differentially Private Learning with Adaptive Clipping", 2021,
    Theorem 1. https://arxiv.org/abs/1905.03871
    Ghazi et al., "Sparsity-Preserving Differentially Private Training of Large Embedding
    Models", 2023, DP-AdaFEST. https://arxiv.org/abs/2311.08357
"""

import math
import sys
from dataclasses import dataclass
from typing import Final, final

from dp import _checks


__all__ = ("NoiseBesideCount", "check_counted")

# Taken off 1/sigma^2, so that rounding leaves the joint noise at sigma or a hair above.
_MARGIN: Final = 8 * sys.float_info.epsilon


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseBesideCount:
    """The noise on a sum of clipped gradients, and on counts that are released with it.

    Attributes:
        gradients: Standard deviation g of the noise on the sum, over the clipping norm.
        count_stddev: Standard deviation b of the noise on each count, in examples.
        rows_per_example: What is counted: None for gradients within the clipping norm,
            or else who touched each row of tables, with so many rows an example.
    """

    gradients: float
    count_stddev: float
    rows_per_example: int | None = None

    @classmethod
    def of(
        cls,
        noise_multiplier: float,
        count_stddev: float,
        *,
        rows_per_example: int | None = None,
    ) -> "NoiseBesideCount":
        """Return what leaves the two a noise multiplier sigma together.

        >>> round(NoiseBesideCount.of(1.0, 5.0).gradients, 6)
        1.005038

        Raises:
            ValueError: Unless ``b > s sigma``: the counts alone cost sigma otherwise.
        """
        noises = cls(
            gradients=0.0,
            count_stddev=count_stddev,
            rows_per_example=rows_per_example,
        )
        if noise_multiplier == 0:  # Nothing is private, and nothing has to be shared.
            return noises
        left = (1 - _MARGIN) / noise_multiplier**2 - noises.counts_cost
        if left <= 0:
            moved = "half" if rows_per_example is None else f"{noises.moved:g} times"
            raise ValueError(
                f"count_stddev must be above {moved} of"
                f" noise_multiplier={noise_multiplier!r}, got {count_stddev!r}: the count"
                " alone would cost more than the whole release; give the count more"
                " noise, or plan for a larger expected_batch_size"
            )
        return cls(
            gradients=1 / math.sqrt(left),
            count_stddev=count_stddev,
            rows_per_example=rows_per_example,
        )

    @property
    def moved(self) -> float:
        """How far an example moves the counts at most, in L2: s."""
        return (
            1 / 2 if self.rows_per_example is None else math.sqrt(self.rows_per_example)
        )

    @property
    def counts_cost(self) -> float:
        """What the counts take of ``1/sigma^2``."""
        return (self.moved / self.count_stddev) ** 2

    @property
    def joint(self) -> float:
        """The noise multiplier sigma that the two have together."""
        if self.gradients == 0:
            return 0.0
        return 1 / math.sqrt(1 / self.gradients**2 + self.counts_cost)

    @property
    def weight(self) -> float:
        """By what a count is multiplied, over C, to need the noise of the gradients.

        As one more element of the sums it gets noise of ``g C``; divided by the weight,
        that is b. Without noise any weight serves.
        """
        return self.gradients / self.count_stddev if self.gradients else 1.0

    @property
    def sensitivity(self) -> float:
        """What an example moves the sums by, the weighted counts included, over C."""
        return math.hypot(1, self.weight * self.moved)


def check_counted(noise_multiplier: float, noises: NoiseBesideCount | None) -> None:
    """Raise if a sum and counts have less noise together than they are charged as.

    Raises:
        ValueError: If they have, or if one of the two is no number.
    """
    if noises is None:
        return
    _checks.non_negative(gradients=noises.gradients)
    _checks.positive(count_stddev=noises.count_stddev)
    if noises.rows_per_example is not None:
        _checks.count(rows_per_example=noises.rows_per_example)
    if noises.joint < noise_multiplier:
        raise ValueError(
            f"a sum of gradients with noise multiplier {noises.gradients!r} and a count"
            f" with noise {noises.count_stddev!r} have {noises.joint!r} together, less"
            f" than the {noise_multiplier!r} that they are charged as"
        )
