"""How batches may be drawn: public values that a plan holds."""

from dataclasses import dataclass
from typing import final

from dp import _checks
from dp.sampling._one_charge import check_one_charge, check_whole
from dp.schedule import Schedule


__all__ = (
    "PoissonSampling",
    "RandomAllocation",
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
class RandomAllocation:
    """Every example joins exactly one step of each pass, chosen by its own coin.

    It is what one expects of an epoch: each example is seen once in *steps_per_pass*
    steps. Sizes of batches vary, as with Poisson sampling. For the same epsilon it
    often needs two to three per cent less noise; ``plan_for(mechanism="best")``
    compares the two.

    A pass is charged as a whole, before its first step, and has one noise multiplier.
    One that is interrupted costs as much, and whatever resumes begins another.

    Args:
        steps_per_pass: How many steps a pass has: a public number.

    Raises:
        ValueError: If it is not a whole number of at least 1.

    References:
        Chua et al., "Balls-and-Bins Sampling for DP-SGD", 2024:
        https://arxiv.org/abs/2412.16802. Feldman and Shenfeld, "Privacy amplification
        by random allocation", 2025: https://arxiv.org/abs/2502.08202.
    """

    steps_per_pass: int

    def __post_init__(self) -> None:
        _checks.count(steps_per_pass=self.steps_per_pass)

    @property
    def sampling_probability(self) -> float:
        """The probability of each example to be in a given step."""
        return 1 / self.steps_per_pass

    def check_plan(
        self,
        *,
        steps: int,
        group_size: int = 1,
        renyi_order: float | str | None = None,
        **values: float | Schedule,
    ) -> None:
        """Raise unless a plan has whole passes, and *values* that hold throughout.

        Raises:
            ValueError: If it has not, with what it has.
        """
        check_one_charge(
            "random allocation (RandomAllocation)",
            "pass",
            group_size=group_size,
            renyi_order=renyi_order,
            values=values,
        )
        check_whole(steps, "pass", steps_per_pass=self.steps_per_pass)


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
