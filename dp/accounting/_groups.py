"""Epsilon of a group of examples that differ at once."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from dp import _checks
from dp._typing import NeighboringRelation
from dp.accounting import _resolution
from dp.accounting._composition import (
    EpsilonAt,
    affordable,
    epsilon_by_delta,
)
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import (
    Release,
    is_allocated,
    is_by_position,
    merge_equal_releases,
)
from dp.accounting._rounds import is_cyclic
from dp.accounting._widths import interval_for
from dp.exceptions import UnsupportedOperationError


__all__ = ("GROUP_TOLERANCE", "bound_of_group", "check_group", "group_epsilon")

# Of epsilons that are stated: dp_accounting takes a minute to confirm what is ten times
# as tight.
GROUP_TOLERANCE: Final = 1e-3

_LARGEST: Final = (
    500.0  # Of the epsilons of chains of changes; beyond, they say nothing.
)
_LARGEST_EXPONENT: Final = 700.0
_ADD_OR_REMOVE: Final = "add_or_remove_one"


def group_epsilon(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
    group_size: int,
    tolerance: float = _resolution.TIGHT,
    library: ReferenceAccountant | None = None,
) -> float:
    """Return an epsilon that holds if *group_size* examples differ at once.

    For example, several records of one person. It is at least *group_size* times as
    large; the single-example bound does not cover a group.

    Guarantees:
        * An upper bound, and a tight one for groups that are added or removed. If
          examples are replaced, or batches truncated, it is what changing them one
          after the other costs, which is further above.

    Args:
        releases: What was released.
        delta: The delta of the guarantee, in (0, 1).
        neighboring_relation: What two neighbouring datasets are.
        group_size: How many examples.
        tolerance: About how far above the smallest bound it may be, relative to it.
        library: Accountants to ask, as of :func:`epsilon`.

    Raises:
        ValueError: If a number or the relation is not one.
        UnsupportedOperationError: If batches were drawn by random allocation, or by
            cyclic Poisson sampling, for which no bound of groups is proven.

    References:
        Ganesh, "Tight Group-Level DP Guarantees for DP-SGD with Sampling via Mixture
        of Gaussians Mechanisms", 2024, Theorem 1: https://arxiv.org/abs/2401.10294
    """
    spent, _ = bound_of_group(
        releases,
        delta=delta,
        neighboring_relation=neighboring_relation,
        group_size=group_size,
        tolerance=tolerance,
        library=library,
    )
    return spent


def bound_of_group(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
    group_size: int,
    tolerance: float = _resolution.TIGHT,
    interval: float | None = None,
    library: ReferenceAccountant | None = None,
) -> tuple[float, float | None]:
    """Return the epsilon of a group, and the width of the buckets it was found with.

    As :func:`group_epsilon`, in buckets of width *interval* if it is given. The width
    is None where no buckets were needed.
    """
    _checks.open_unit(delta=delta)
    size = _checks.count(group_size=group_size)
    releases = merge_equal_releases(releases)
    check_group(releases, size)
    truncated = any(release.truncation for release in releases)
    _checks.relation(
        neighboring_relation=neighboring_relation,
        truncated=truncated,
        by_position=is_by_position(releases),
    )
    if not releases:
        return 0.0, None
    if any(release.noise_multiplier == 0 for release in releases):
        return math.inf, None
    # Truncated batches are changed one example at a time; whole ones by the group at
    # once.
    relation, together = (
        (neighboring_relation, 1) if truncated else (_ADD_OR_REMOVE, size)
    )
    counted = affordable(releases, delta, relation, together)
    if interval is None:
        interval = interval_for(counted, delta, relation, together, tolerance)
    epsilon_at = epsilon_by_delta(
        counted,
        relation=relation,
        group_size=together,
        interval=_resolution.checked(interval),
        library=library,
    )
    if truncated:
        return _chained(size, delta, epsilon_at), interval
    if neighboring_relation == "replace_one":
        # Removing the group leads to a dataset that adding the other group leads to.
        return _chained(2, delta, epsilon_at), interval
    return epsilon_at(delta), interval


def check_group(releases: Sequence[Release], group_size: int) -> None:
    """Refuse a group for whose releases no bound is proven.

    Raises:
        UnsupportedOperationError: If batches were drawn by random allocation, or by
            cyclic Poisson sampling.
    """
    if is_cyclic(releases):
        raise UnsupportedOperationError(
            f"group_size={group_size}: no bound is proven for groups of examples where"
            " batches are drawn by cyclic Poisson sampling (CyclicPoisson); plan with"
            " PoissonSampling, or make a group one unit (units=)"
        )
    if is_allocated(releases):
        raise UnsupportedOperationError(
            f"group_size={group_size}: no bound is proven for groups of examples where"
            " batches are drawn by random allocation (RandomAllocation); plan with"
            " PoissonSampling, or make a group one unit (units=)"
        )


def _chained(size: int, delta: float, epsilon_at: EpsilonAt) -> float:
    """Return the epsilon of *size* changes, each of which costs *epsilon_at* a delta.

    Each multiplies the delta of those before it by ``exp(epsilon)``.
    """
    # Beyond it, the exponentials are no numbers.
    largest = min(_LARGEST, _LARGEST_EXPONENT / max(1, size - 1))
    spent, needed = -1.0, 0.0
    while spent < needed < largest:
        spent = needed * (1 + 1e-6)
        # Example: a pair at epsilon 1 for each change has delta_1 (1 + e) together, so
        # each may have 0.27 of the delta. The smaller part asks for a larger epsilon,
        # and so on, until the epsilon that was assumed is enough for the part that it
        # leaves.
        part = delta / sum(math.exp(spent * i) for i in range(size))
        needed = max(0.0, float(epsilon_at(part)))
    return size * spent if needed < largest else math.inf
