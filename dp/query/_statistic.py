"""A vector of sums, and its noise."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from dp.exceptions import PrivacyError
from dp.noise import GaussianNoise


__all__ = ("Statistic", "noised")


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistic:
    """A vector of sums over rows that is still private.

    Attributes:
        name: What it is, for the certificate.
        sums: The sums; noise is added in place.
        sensitivity: The L2 norm of the vector that one unit adds, at most.
        reason: Why that is its sensitivity, in words.
    """

    name: str
    sums: Tensor
    sensitivity: float
    reason: str


def noised(
    statistic: Statistic, *, noise_multiplier: float, noise: GaussianNoise
) -> Tensor:
    """Return the sums of *statistic* with noise, which has to be charged before.

    Args:
        statistic: What is released. Its sums are overwritten.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        noise: The source of noise.

    Raises:
        PrivacyError: If the noise stage used another standard deviation.
    """
    stddev = noise_multiplier * statistic.sensitivity
    used = noise.add_([statistic.sums], stddev=stddev)
    if used != stddev:
        raise PrivacyError(
            f"the noise stage used a standard deviation of {used!r} where {stddev!r}"
            " was charged; nothing was released"
        )
    return statistic.sums
