"""Releases, reduced to what the accountant needs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

from dp import _checks


__all__ = ("Release", "Truncation", "first_releases", "merge_equal_releases")


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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Some number of identical Gaussian releases, each on a Poisson sample.

    Args:
        sampling_probability: Probability that an example is in the sample; 1 claims
            no amplification.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        count: How many releases.
        truncation: How the sample was made smaller, if it was.

    Raises:
        ValueError: If a number is out of range.
    """

    sampling_probability: float
    noise_multiplier: float
    count: int
    truncation: Truncation | None = None

    def __post_init__(self) -> None:
        _checks.probability(sampling_probability=self.sampling_probability)
        _checks.non_negative(noise_multiplier=self.noise_multiplier)
        _checks.count(count=self.count)


def merge_equal_releases(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return the same releases with equal ones counted together, in a fixed order.

    Composition does not depend on order, so neither does any epsilon.
    """
    counts: dict[tuple[float, float, tuple[Truncation, ...]], int] = {}
    for r in releases:
        kind = (
            r.sampling_probability,
            r.noise_multiplier,
            () if r.truncation is None else (r.truncation,),
        )
        counts[kind] = counts.get(kind, 0) + r.count
    return tuple(
        Release(
            sampling_probability=q,
            noise_multiplier=sigma,
            count=count,
            truncation=truncations[0] if truncations else None,
        )
        for (q, sigma, truncations), count in sorted(counts.items())
    )


def first_releases(num_steps: int, releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return the first *num_steps* of *releases*, in their order."""
    begun = []
    for release in releases:
        if num_steps > 0:
            begun.append(replace(release, count=min(release.count, num_steps)))
        num_steps -= release.count
    return tuple(begun)
