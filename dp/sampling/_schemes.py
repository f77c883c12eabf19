"""How batches may be drawn: public values that a plan holds."""

from dataclasses import dataclass
from typing import final

from dp import _checks


__all__ = (
    "PoissonSampling",
    "TruncatedPoissonSampling",
    "Unamplified",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonSampling:
    """Every example joins every batch with one public probability, independently.

    Args:
        sampling_probability: The probability, in ``(0, 1]``.

    Raises:
        ValueError: If the probability is outside ``(0, 1]``.
    """

    sampling_probability: float

    def __post_init__(self) -> None:
        _checks.probability(sampling_probability=self.sampling_probability)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedPoissonSampling:
    """Poisson sampling, with oversized batches cut to a random subset.

    Batches then have a largest size, and so have time and memory of a step. It costs
    epsilon, because an example may displace another one, and the number of examples
    has to be public: plans need a ``neighboring_relation`` that keeps it. With
    *max_batch_size* six standard deviations above the mean, it costs next to nothing.

    Args:
        sampling_probability: The probability before a batch is made smaller.
        max_batch_size: The most examples of a batch.
        dataset_size: The number of examples of the dataset: a public number.

    Raises:
        ValueError: If a number is out of range.

    References:
        Chua et al., "Scalable DP-SGD: Shuffling vs. Poisson Subsampling", 2024,
        section 3: https://arxiv.org/abs/2411.04205. The accountant's bound:
        https://arxiv.org/abs/2508.15089.
    """

    sampling_probability: float
    max_batch_size: int
    dataset_size: int

    def __post_init__(self) -> None:
        _checks.probability(sampling_probability=self.sampling_probability)
        _checks.count(max_batch_size=self.max_batch_size)
        _checks.count(dataset_size=self.dataset_size)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Unamplified:
    """The user's own loader: each step is accounted as a release on all the data.

    Args:
        backwards_per_step: How many backward calls make up one step. Without tickets
            whether two calls share an example cannot be checked, so more than one call
            is the user's promise that they do not.

    Raises:
        ValueError: If *backwards_per_step* is not a whole number of at least 1.
    """

    backwards_per_step: int = 1

    def __post_init__(self) -> None:
        _checks.count(backwards_per_step=self.backwards_per_step)
