"""Releases, reduced to what the accountant needs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

from dp import _checks
from dp._typing import Assignment


__all__ = (
    "Release",
    "Truncation",
    "first_releases",
    "is_allocated",
    "is_by_position",
    "merge_equal_releases",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Truncation:
    """Truncation of oversized batches to a random subset.

    Its cost depends on the number of examples, which therefore is public.

    Args:
        max_batch_size: The most examples of a batch.
        dataset_size: The number of examples of the dataset.

    Raises:
        ValueError: If a number is not a whole number of at least 1.
    """

    max_batch_size: int
    dataset_size: int

    def __post_init__(self) -> None:
        _checks.count(max_batch_size=self.max_batch_size)
        _checks.count(dataset_size=self.dataset_size)


# All of a release but its count, in an order.
_Kind = tuple[
    float,
    float,
    tuple[Truncation, ...],
    int,
    Literal["", "coin", "position"],
    int,
]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Some number of identical Gaussian releases, each on a random sample.

    Args:
        sampling_probability: Probability that an example is in the sample; 1 claims
            no amplification.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        count: How many releases.
        truncation: How the sample was made smaller, if it was.
        steps_per_pass: None for Poisson samples. By random allocation, how many
            releases make up a pass, in one of which each example is; a part of a pass
            costs as much as all of it. Of disjoint batches, the same.
        disjoint: What decides in which release of a pass an example is, where that is
            not secret: a coin of its own, or its position. The probability is 1 then:
            no amplification is claimed. None for what is drawn at random.
        bands: None for Poisson samples. By cyclic Poisson sampling, how many releases
            make up a round, in one of which each example is eligible; a part of a round
            costs as much as all of it.

    Raises:
        ValueError: If a number is out of range, or if the probability is not that of
            the passes, or above one over *bands*.
    """

    sampling_probability: float
    noise_multiplier: float
    count: int
    truncation: Truncation | None = None
    steps_per_pass: int | None = None
    disjoint: Assignment | None = None
    bands: int | None = None

    def __post_init__(self) -> None:
        _checks.probability(sampling_probability=self.sampling_probability)
        _checks.non_negative(noise_multiplier=self.noise_multiplier)
        _checks.count(count=self.count)
        if self.disjoint not in {None, *get_args(Assignment)}:
            raise ValueError(
                f"disjoint must be 'coin', 'position' or None, got {_checks.shown(self.disjoint)}"
            )
        if self.steps_per_pass is not None:
            self._check_passes(_checks.count(steps_per_pass=self.steps_per_pass))
        elif self.disjoint is not None:
            raise ValueError(
                f"disjoint={self.disjoint!r} needs steps_per_pass: in one of how many"
                " releases an example is"
            )
        if self.bands is not None:
            self._check_rounds(_checks.count(bands=self.bands))

    def _check_passes(self, steps_per_pass: int) -> None:
        if self.truncation is not None:
            raise ValueError(
                f"truncation must be None with steps_per_pass={steps_per_pass}, got"
                f" {self.truncation!r}: no bound is proven for passes whose batches are"
                " truncated"
            )
        # Exactly as the scheme computes it: two numbers that say one thing must not
        # differ.
        share = 1 if self.disjoint else steps_per_pass
        if self.sampling_probability != 1 / share:
            raise ValueError(
                f"sampling_probability must be 1 / {share} with"
                f" steps_per_pass={steps_per_pass} and disjoint={self.disjoint!r}, got"
                f" {self.sampling_probability!r}"
            )

    def _check_rounds(self, bands: int) -> None:
        if self.truncation is not None or self.steps_per_pass is not None:
            raise ValueError(
                f"truncation and steps_per_pass must be None with bands={bands}, got"
                f" {self.truncation!r} and {self.steps_per_pass!r}: no bound is proven"
                " for both together"
            )
        _checks.cyclic_coin(self.sampling_probability, bands)

    @property
    def is_on_all_data(self) -> bool:
        """Whether every example takes part in every release, which then are one Gaussian.

        Not where batches are truncated, also if all examples are drawn for them.
        """
        return self.sampling_probability == 1 and self.truncation is None

    @property
    def steps_per_charge(self) -> int:
        """Number of releases that are charged at once (a pass, a round, or one)."""
        return self.steps_per_pass or self.bands or 1

    @property
    def num_participations(self) -> int:
        """In how many of the releases an example can be at most."""
        # Rounded up: 25 releases in passes of 10 begin three passes, and cost three.
        return -(-self.count // self.steps_per_charge)


def is_allocated(releases: Iterable[Release]) -> bool:
    """Whether any of the releases is on a step of a random allocation."""
    return any(
        release.steps_per_pass is not None and release.disjoint is None
        for release in releases
    )


def is_by_position(releases: Iterable[Release]) -> bool:
    """Whether an example's position decides in which of the releases it is."""
    return any(release.disjoint == "position" for release in releases)


def merge_equal_releases(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return the same releases with equal ones counted together, in a fixed order.

    Composition does not depend on order, so neither does any epsilon. A part of a pass
    or round counts as a whole one: parts of two passes are not one pass.
    """
    counts: dict[_Kind, int] = {}
    for r in releases:
        # Zero and not None, so that kinds can be sorted.
        kind = (
            r.sampling_probability,
            r.noise_multiplier,
            () if r.truncation is None else (r.truncation,),
            r.steps_per_pass or 0,
            r.disjoint or "",
            r.bands or 0,
        )
        # 25 of passes of 10 count as 30; 5 and 5 of two passes count as 20, and not as
        # one pass.
        whole = r.num_participations * r.steps_per_charge
        counts[kind] = counts.get(kind, 0) + whole
    return tuple(
        Release(
            sampling_probability=q,
            noise_multiplier=sigma,
            count=count,
            truncation=truncations[0] if truncations else None,
            steps_per_pass=steps_per_pass or None,
            disjoint=disjoint or None,
            bands=bands or None,
        )
        for kind, count in sorted(counts.items())
        for q, sigma, truncations, steps_per_pass, disjoint, bands in [kind]
    )


def first_releases(num_steps: int, releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return the first *num_steps* of *releases*, in their order."""
    # Example: the first 4 of (3 at sigma 1, 5 at sigma 2) are 3 and 1.
    begun = []
    for release in releases:
        if num_steps > 0:
            begun.append(replace(release, count=min(release.count, num_steps)))
        num_steps -= release.count
    return tuple(begun)
