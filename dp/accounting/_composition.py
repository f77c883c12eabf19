"""Compose the privacy losses of releases, and read epsilon off them.

Composing is ``dp_accounting``'s. Its accountants can be asked for all of it instead, by
a :class:`~dp.accounting.ReferenceAccountant`.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

from dp._typing import NeighboringRelation
from dp.accounting import _resolution
from dp.accounting._disjoint import one_a_pass
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import Release
from dp.accounting._rounds import without_rounds


if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = ("EpsilonAt", "affordable", "epsilon_by_delta", "interval_for", "rounding")

EpsilonAt = Callable[[float], float]  # Of a delta.

_UNIT: Final = 1e-16


def epsilon_by_delta(
    releases: tuple[Release, ...],
    *,
    relation: NeighboringRelation,
    group_size: int,
    interval: float,
    library: ReferenceAccountant | None,
) -> EpsilonAt:
    """Return the epsilon of all the releases together, by delta.

    Args:
        releases: What was released; each has noise.
        relation: What neighbouring datasets are.
        group_size: How many examples are added or removed; 1 with other relations.
        interval: The width of buckets.
        library: Who is to compose, in place of this module.
    """
    if library is None:
        losses, _ = _composed(releases, relation, group_size, interval)
        at: EpsilonAt = partial(_epsilon, losses)
    elif group_size == 1:
        at = library.epsilon_of_example(releases, relation, interval)
    else:
        at = library.epsilon_of_group(releases, group_size, interval)
    # Rounding may have made delta too small by this much, so that less is left of it.
    lost = rounding(releases)
    return lambda delta: max(0.0, float(at(delta - lost))) if delta > lost else math.inf


def rounding(releases: tuple[Release, ...]) -> float:
    """Return by how much composing rounds delta, whichever way.

    A power of a Fourier transform errs by about a unit of rounding for each factor, of
    masses that sum to one. It was seen to be 2e-17 a release.
    """
    # 10 000 releases: 1e-12, which matters at delta 1e-11 and not at 1e-5.
    return _UNIT * sum(
        r.num_participations for r in releases if r.sampling_probability < 1
    )


def affordable(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    group_size: int = 1,
) -> tuple[Release, ...]:
    """Return releases that cost no less and are composed in a moment.

    They are the given ones, passes of disjoint batches as one release each, unless
    epsilon is so large that it says nothing. Then they
    are releases on all data, which are one Gaussian: by joint convexity a release on a
    sample costs at most what it costs on all of the data, and a pass by random
    allocation what the one release costs that an example is in.
    """
    releases = one_a_pass(without_rounds(releases))
    distance = _distance(releases, relation, group_size)
    # Summarized first: it is fast, and costs no less. If even that is small, all is
    # well.
    for counted in (_resolution.summarized(releases), releases):
        if _resolution.rough_epsilon(counted, delta, distance) <= _resolution.LARGEST:
            return releases
    # Composed below, they are as far apart as the relation says, and not displaced.
    # Example: truncated batches have a distance of 4, as releases on all data one of 1,
    # so a noise multiplier of 2 becomes 0.5.
    apart = group_size * (2 if relation == "replace_one" else 1)
    return tuple(
        Release(
            sampling_probability=1.0,
            noise_multiplier=r.noise_multiplier * apart / distance,
            count=r.num_participations,
        )
        for r in releases
    )


@lru_cache(maxsize=512)
def interval_for(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    group_size: int,
    tolerance: float,
) -> float:
    """Return the width of buckets for an epsilon that is nearly tight."""
    distance = _distance(releases, relation, group_size)
    if all(release.sampling_probability == 1 for release in releases):
        return _resolution.unsampled_width(releases, distance)
    powers = _resolution.reference(releases)
    if _resolution.rough_epsilon(powers, delta, distance) <= _resolution.LARGEST:
        releases = powers

    def bound_at(width: float) -> tuple[float, int]:
        losses, num_buckets = _composed(releases, relation, group_size, width)
        return _epsilon(losses, delta), num_buckets * len(releases)

    start = _resolution.starting_width(releases, delta, distance)
    noise = rounding(releases) / delta
    return _resolution.choose_interval(bound_at, start, tolerance, noise)


def _distance(
    releases: tuple[Release, ...], relation: NeighboringRelation, group_size: int
) -> int:
    """Return how many clipping norms neighbouring sums may be apart.

    In a truncated batch an example may also displace another one, which
    ``dp_accounting`` takes for a replacement of twice the size.
    """
    if any(release.truncation for release in releases):
        return 4 * group_size
    return group_size * (2 if relation == "replace_one" else 1)


@lru_cache(maxsize=4)
def _composed(
    releases: tuple[Release, ...],
    relation: NeighboringRelation,
    group_size: int,
    interval: float,
) -> tuple["PrivacyLossDistribution", int]:
    """Return what ``PLDAccountant`` would compose, and the most buckets of a part."""
    # All in buckets of one width, or they could not be composed.
    parts = [_losses_of(r, relation, group_size, interval) for r in releases]
    composed: PrivacyLossDistribution | None = None
    for release, part in zip(releases, parts, strict=True):
        repeated = (
            part.self_compose(release.num_participations)
            if release.sampling_probability < 1
            else part
        )
        composed = repeated if composed is None else composed.compose(repeated)
    assert composed is not None, "there is a release"  # noqa: S101 -- of type checkers
    return composed, max(_num_buckets(losses) for losses in (composed, *parts))


def _losses_of(
    release: Release,
    relation: NeighboringRelation,
    group_size: int,
    interval: float,
) -> "PrivacyLossDistribution":
    """Return the losses of one release, or of one pass by random allocation.

    Of releases that are not on a sample, those of all of their count.
    """
    from dp.accounting._allocation_losses import allocation_losses  # noqa: PLC0415 -- a second
    from dp.accounting._group_losses import group_losses  # noqa: PLC0415
    from dp.accounting._sampled_losses import sampled_losses, truncated_losses  # noqa: PLC0415

    q, sigma = release.sampling_probability, release.noise_multiplier
    if release.truncation is not None:
        return truncated_losses(q, sigma, release.truncation, relation, interval)
    # n Gaussians are one with sigma / sqrt(n), and a group of k is k times as far
    # apart.
    if q == 1:
        sigma /= group_size * math.sqrt(release.count)
    if q < 1 and release.steps_per_pass is not None:
        return allocation_losses(release.steps_per_pass, sigma, interval)
    if q == 1 or group_size == 1:
        return sampled_losses(q, sigma, relation, interval)
    return group_losses(
        group_size=group_size,
        sampling_probability=q,
        sigma=sigma,
        interval=interval,
    )


def _epsilon(losses: "PrivacyLossDistribution", delta: float) -> float:
    """Return the least epsilon at which both directions keep *delta*."""
    import numpy as np  # noqa: PLC0415 -- a tenth of a second

    from dp.accounting._buckets import read_epsilon  # noqa: PLC0415 -- a second

    # Removing and adding an example cost differently where batches are samples: the
    # larger.
    directions = (losses._pmf_remove, losses._pmf_add)  # noqa: SLF001 -- there is no public one
    spent = max(read_epsilon(masses, delta) for masses in directions)
    if spent <= _resolution.LARGEST:
        return spent
    # Beyond 700 the library's reading, which is to confirm this, rounds up to a bucket.
    with np.errstate(over="ignore"):
        return max(0.0, float(losses.get_epsilon_for_delta(delta)))


def _num_buckets(losses: "PrivacyLossDistribution") -> int:
    return max(losses._pmf_remove.size, losses._pmf_add.size)  # noqa: SLF001 -- there is no public size
