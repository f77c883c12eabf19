"""Releases as events of ``dp_accounting``, which any of its accountants composes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dp._typing import NeighboringRelation
from dp.accounting._disjoint import one_a_pass
from dp.accounting._release import Release
from dp.accounting._rounds import as_poisson
from dp.exceptions import UnsupportedOperationError


if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
    from dp_accounting.privacy_accountant import NeighboringRelation as Neighbors

__all__ = ("group_event", "neighbors", "to_dp_event")


def to_dp_event(releases: Iterable[Release]) -> "DpEvent":
    """Return the releases as an event of ``dp_accounting``, for any accountant.

    A pass of disjoint batches is one release on all of the data.

    Raises:
        UnsupportedOperationError: If batches were drawn by random allocation, for which
            it has no event.
    """
    from dp_accounting.dp_event import ComposedDpEvent

    counted = one_a_pass(map(as_poisson, releases))
    return ComposedDpEvent([_event(release) for release in counted])


def group_event(release: Release, group_size: int) -> "DpEvent":
    """Return a release as what it is to a group: a mixture of Gaussians.

    Each of the group is in the sample by its own coin flip, so that their number in it
    is binomial.
    """
    from dp_accounting import dp_event
    from scipy.stats import binom

    if release.sampling_probability == 1:
        distance = dp_event.GaussianDpEvent(release.noise_multiplier / group_size)
        return dp_event.SelfComposedDpEvent(distance, release.count)
    # Example: of a pair with q = 0.1 none is in the batch with probability 0.81, one
    # with 0.18 and both with 0.01: a mixture of Gaussians at 0, 1 and 2.
    sizes = range(group_size + 1)
    in_batch = binom.pmf(sizes, group_size, release.sampling_probability)
    pairs = [(float(k), float(p)) for k, p in zip(sizes, in_batch, strict=True) if p]
    mixture = dp_event.MixtureOfGaussiansDpEvent(
        release.noise_multiplier, [k for k, _ in pairs], [p for _, p in pairs]
    )
    return dp_event.SelfComposedDpEvent(mixture, release.count)


def neighbors(relation: NeighboringRelation) -> "Neighbors":
    """Return what ``dp_accounting`` calls a relation."""
    from dp_accounting.privacy_accountant import NeighboringRelation as Neighbors

    # Zeroing an example out is the library's replacement by a special one.
    return {
        "add_or_remove_one": Neighbors.ADD_OR_REMOVE_ONE,
        "replace_one": Neighbors.REPLACE_ONE,
        "zero_out": Neighbors.REPLACE_SPECIAL,
    }[relation]


def _event(release: Release) -> "DpEvent":
    from dp_accounting import dp_event

    gaussian = dp_event.GaussianDpEvent(release.noise_multiplier)
    event: DpEvent = gaussian
    # Before truncation and sampling, either of which would be a wrong event for it.
    if release.steps_per_pass is not None:
        raise UnsupportedOperationError(
            "dp_accounting has no event for random allocation (RandomAllocation) with"
            f" steps_per_pass={release.steps_per_pass}; dp.accounting.epsilon has a bound"
        )
    if release.truncation is not None:
        event = dp_event.TruncatedSubsampledGaussianDpEvent(
            dataset_size=release.truncation.dataset_size,
            sampling_probability=release.sampling_probability,
            truncated_batch_size=release.truncation.max_batch_size,
            noise_multiplier=release.noise_multiplier,
        )
    elif release.sampling_probability < 1:
        event = dp_event.PoissonSampledDpEvent(release.sampling_probability, gaussian)
    return dp_event.SelfComposedDpEvent(event, release.count)
