"""How batches of whole passes may be drawn: public values that a plan holds."""

from dataclasses import dataclass
from typing import ClassVar, final, get_args

from dp import _checks
from dp._typing import Assignment
from dp.sampling._cyclic_scheme import CyclicPoisson
from dp.sampling._one_charge import OneCharge
from dp.sampling._schemes import (
    PoissonSampling,
    TruncatedPoissonSampling,
    Unamplified,
)


__all__ = ("DisjointBatches", "Passes", "RandomAllocation", "Scheme")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomAllocation(OneCharge):
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

    _NAMED: ClassVar[str] = "random allocation (RandomAllocation)"
    _PART: ClassVar[str] = "pass"
    _LENGTH: ClassVar[str] = "steps_per_pass"

    steps_per_pass: int

    def __post_init__(self) -> None:
        _checks.count(steps_per_pass=self.steps_per_pass)

    @property
    def sampling_probability(self) -> float:
        """The probability of each example to be in a given step."""
        return 1 / self.steps_per_pass


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DisjointBatches(OneCharge):
    """Every example joins exactly one step of each pass, and which one is no secret.

    A pass costs what one release on all of the data costs, however many steps it has:
    parallel composition. It claims no amplification, so for one example it costs more
    than :class:`RandomAllocation`, but it holds for more: under every relation, for
    groups, and with batches of equal size.

    As there, a pass is charged as a whole, and has one noise multiplier.

    Args:
        steps_per_pass: How many steps a pass has: a public number.
        assigned_by: What decides an example's step. ``"coin"``: a coin of its own, so
            that sizes of batches vary. ``"position"``: a new random order of all
            examples in each pass, cut into batches of equal size, as a shuffled loader
            does. An example more or less would move others to other batches then, so
            this needs a relation that keeps the number of examples: ``"zero_out"`` or
            ``"replace_one"``.

    Raises:
        ValueError: If *steps_per_pass* is not a whole number of at least 1, or
            *assigned_by* is unknown.

    References:
        McSherry, "Privacy Integrated Queries", 2009, theorem 4:
        https://doi.org/10.1145/1559845.1559850; the proof for adaptive releases is in
        ``dp.accounting._disjoint``.
    """

    _NAMED: ClassVar[str] = "disjoint batches (DisjointBatches)"
    _PART: ClassVar[str] = "pass"
    _LENGTH: ClassVar[str] = "steps_per_pass"
    _COVERS_GROUPS: ClassVar[bool] = True  # At worst all of a group are in one step.

    steps_per_pass: int
    assigned_by: Assignment = "coin"

    def __post_init__(self) -> None:
        _checks.count(steps_per_pass=self.steps_per_pass)
        if self.assigned_by not in get_args(Assignment):
            raise ValueError(
                f"assigned_by must be 'coin' or 'position', got {self.assigned_by!r}"
            )

    @property
    def sampling_probability(self) -> float:
        """The share of the examples that a step expects."""
        return 1 / self.steps_per_pass


Passes = RandomAllocation | DisjointBatches
"""A scheme of passes, in each of which an example is in one batch."""

Scheme = (
    Passes | CyclicPoisson | PoissonSampling | TruncatedPoissonSampling | Unamplified
)
"""Any scheme that a plan may hold."""
