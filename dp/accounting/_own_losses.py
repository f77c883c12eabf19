"""Compose the losses of this package, and read epsilon off what they compose to.

``dp_accounting`` composes the same releases by itself before anything is certified:
see :mod:`dp.accounting._agreement`.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from dp._typing import NeighboringRelation
from dp.accounting import _resolution
from dp.accounting._release import Release


if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = ("composed", "epsilon_of")


@lru_cache(maxsize=4)
def composed(
    releases: tuple[Release, ...],
    relation: NeighboringRelation,
    group_size: int,
    interval: float,
) -> tuple["PrivacyLossDistribution", int]:
    """Return what ``PLDAccountant`` would compose, and the most buckets of a part."""
    # All in buckets of one width, or they could not be composed.
    parts = [_losses_of(r, relation, group_size, interval) for r in releases]
    whole: PrivacyLossDistribution | None = None
    for release, part in zip(releases, parts, strict=True):
        repeated = (
            part
            if release.is_on_all_data
            else part.self_compose(release.num_participations)
        )
        whole = repeated if whole is None else whole.compose(repeated)
    assert whole is not None, "there is a release"  # noqa: S101 -- of type checkers
    return whole, max(_num_buckets(losses) for losses in (whole, *parts))


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


def epsilon_of(losses: "PrivacyLossDistribution", delta: float) -> float:
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
