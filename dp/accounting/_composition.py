"""Compose the privacy losses of releases, and read epsilon off them.

Composing is ``dp_accounting``'s. Its accountants can be asked for all of it instead, by
a :class:`~dp.accounting.ReferenceAccountant`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Final

from dp._typing import NeighboringRelation
from dp.accounting import _own_losses, _resolution
from dp.accounting._disjoint import one_a_pass
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import Release
from dp.accounting._rounds import without_rounds


__all__ = ("EpsilonAt", "affordable", "distance_of", "epsilon_by_delta", "rounding")

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
        losses, _ = _own_losses.composed(releases, relation, group_size, interval)
        at: EpsilonAt = partial(_own_losses.epsilon_of, losses)
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
    return _UNIT * sum(r.num_participations for r in releases if not r.is_on_all_data)


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
    distance = distance_of(releases, relation, group_size)
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


def distance_of(
    releases: tuple[Release, ...], relation: NeighboringRelation, group_size: int
) -> int:
    """Return how many clipping norms neighbouring sums may be apart.

    In a truncated batch an example may also displace another one, which
    ``dp_accounting`` takes for a replacement of twice the size.
    """
    if any(release.truncation for release in releases):
        return 4 * group_size
    return group_size * (2 if relation == "replace_one" else 1)
