"""Choose the width of the buckets that losses are composed in; any is a valid bound."""

from functools import lru_cache

from dp._typing import NeighboringRelation
from dp.accounting import _own_losses, _resolution
from dp.accounting._composition import distance_of, rounding
from dp.accounting._release import Release


__all__ = ("interval_for",)


def interval_for(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    group_size: int,
    tolerance: float,
) -> float:
    """Return the width of buckets for an epsilon that is nearly tight."""
    distance = distance_of(releases, relation, group_size)
    is_unsampled = all(release.is_on_all_data for release in releases)
    powers = _resolution.reference(releases)
    if (
        not is_unsampled
        and _resolution.rough_epsilon(powers, delta, distance) <= _resolution.LARGEST
    ):
        releases = powers
    return _interval_of(releases, delta, relation, group_size, tolerance, distance)


# Of powers, as a rule: the spent epsilon of every step up to the next one has one width.
@lru_cache(maxsize=512)
def _interval_of(  # noqa: PLR0917 -- what decides the width, by which it is found again
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    group_size: int,
    tolerance: float,
    distance: int,
) -> float:
    def bound_at(width: float) -> tuple[float, int]:
        losses, num_buckets = _own_losses.composed(
            releases, relation, group_size, width
        )
        return _own_losses.epsilon_of(losses, delta), num_buckets * len(releases)

    if all(release.is_on_all_data for release in releases):
        width = _resolution.unsampled_width(releases, distance)
        return _resolution.first_width(bound_at, width)
    start = _resolution.starting_width(releases, delta, distance)
    noise = rounding(releases) / delta
    return _resolution.choose_interval(bound_at, start, tolerance, noise)
