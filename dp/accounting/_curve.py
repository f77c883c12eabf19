"""Epsilon after each step of a run, for plots and progress."""

import math
from collections.abc import Iterable
from functools import partial

from dp._typing import NeighboringRelation
from dp.accounting import _resolution
from dp.accounting._accountant import epsilon
from dp.accounting._release import Release, first_releases


__all__ = ("epsilon_curve",)


def epsilon_curve(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
    group_size: int = 1,
) -> tuple[float, ...]:
    """Return an upper bound on epsilon after 0, 1, ... of the releases, in their order.

    At most some twenty points are computed, so a plot or a progress bar can afford it.

    Guarantees:
        * Every value is at least the guarantee at that point: between computed points
          it is that of the next one.
        * Values never fall, and the last one is what :func:`epsilon` returns.
    """
    releases = tuple(releases)
    num_steps = sum(release.count for release in releases)
    cost = partial(
        epsilon,
        delta=delta,
        neighboring_relation=neighboring_relation,
        group_size=group_size,
    )
    last = cost(releases).epsilon
    curve: list[float] = []
    # Example: 1000 releases are computed at 0, 50, ..., 950. The curve has for 1 to 50
    # what 50 of them cost, which is an upper bound for fewer.
    for point in sorted({math.ceil(num_steps * i / 20) for i in range(20)}):
        bound = cost(
            first_releases(point, releases), tolerance=_resolution.VAGUE
        ).epsilon
        # What bounds the whole run bounds its beginning.
        curve.extend([min(bound, last)] * (point + 1 - len(curve)))
    curve.extend([last] * (num_steps + 1 - len(curve)))
    return tuple(curve)
