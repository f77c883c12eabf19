"""The privacy cost of a sequence of Gaussian releases.

Two accountants give valid upper bounds and the smaller one is reported: privacy loss
distributions (PLD) are the tighter nearly always, Renyi differential privacy (RDP) for
very large noise.

``dp_accounting`` is imported when a number is asked for: it costs a second.
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import TYPE_CHECKING, Final, final

from dp import _checks
from dp._reports import Described
from dp._typing import NeighboringRelation
from dp.accounting import _resolution
from dp.accounting._composition import affordable, epsilon_by_delta
from dp.accounting._disjoint import one_a_pass
from dp.accounting._dp_events import neighbors, to_dp_event
from dp.accounting._groups import GROUP_TOLERANCE, bound_of_group
from dp.accounting._quiet import without_advice
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import (
    Release,
    is_allocated,
    is_by_position,
    merge_equal_releases,
)
from dp.accounting._rounds import as_poisson
from dp.accounting._widths import interval_for


if TYPE_CHECKING:
    from dp.accounting._buckets import Floats

__all__ = ("Guarantee", "epsilon")

_ROUNDED: Final = 1e-14  # By which dp_accounting rounds a divergence, at most.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee(Described):
    """An (epsilon, delta) that holds, and how it was found.

    Attributes:
        epsilon: The smaller of the two bounds.
        delta: The delta it is for.
        neighboring_relation: What two neighbouring datasets are.
        accountant: Which bound ``epsilon`` is: ``"PLD"``, ``"RDP"``, ``"Renyi filter of
            order 8"``, ``"none"`` where nothing was released, or ``"no noise"`` where
            nothing is guaranteed.
        epsilon_pld: The bound by privacy loss distributions. Beyond 400, where epsilon
            says nothing any more, it is that of releases on all of the data. Infinite
            where it bounds nothing, under a Renyi filter.
        epsilon_rdp: The bound by Renyi differential privacy; None where
            ``dp_accounting`` has none for the relation or the sampling.
        interval: The width of the buckets of losses of ``epsilon_pld``; None where
            none were needed.
        group_size: How many examples may differ at once.
        condition: What has to hold besides, in words; empty if nothing has to.
    """

    epsilon: float
    delta: float
    neighboring_relation: NeighboringRelation
    accountant: str
    epsilon_pld: float
    epsilon_rdp: float | None
    interval: float | None = None
    group_size: int = 1
    condition: str = ""


def epsilon(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
    group_size: int = 1,
    tolerance: float = _resolution.TIGHT,
    interval: float | None = None,
    library: ReferenceAccountant | None = None,
) -> Guarantee:
    """Return the guarantee of all the releases together.

    Guarantees:
        * ``epsilon`` is an upper bound: both accountants round up.
        * It is at most 0.1 % above the smallest bound, for one or a few kinds of
          release, epsilons between 0.001 and 400, and passes by random allocation of up
          to 1000 steps.
        * Rounds by cyclic Poisson sampling cost what their Poisson samples cost, also
          with correlated noise: see :mod:`dp.accounting._rounds`.
        * It is 0 for no releases, and infinite if one had no noise.
        * Of a group it is what :func:`group_epsilon` finds, by PLD alone.

    Args:
        releases: What was released, in any order.
        delta: The delta of the guarantee, in (0, 1).
        neighboring_relation: What two neighbouring datasets are.
        group_size: How many examples may differ at once, as all of one person.
        tolerance: About how much of itself epsilon may be above the smallest bound by
            PLD. A larger one gives a valid bound sooner.
        interval: The width of the buckets of losses, such as a guarantee states it; by
            default one is chosen by *tolerance*. Any width gives a valid bound.
        library: Accountants of ``dp_accounting`` that are to compose the losses, in
            buckets of the same width, instead of the vectorised losses of this
            package.

    Raises:
        ValueError: If *delta* or the relation is not one, if batches were truncated
            and the relation keeps the number of examples private, or if they were drawn
            by random allocation and an example is replaced, or cut by position and
            one is added or removed.
        UnsupportedOperationError: If no bound is proven for a group of that size.
        ArithmeticError: If the accountant contradicts itself; no bound is returned.

    References:
        Doroshenko et al., "Connect the Dots", 2022, https://arxiv.org/abs/2207.04380;
        Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian
        Mechanism", 2019, https://arxiv.org/abs/1908.10530;
        of truncated batches: https://arxiv.org/abs/2508.15089; of random allocation:
        :mod:`dp.accounting._allocation_losses`; of disjoint batches:
        :mod:`dp.accounting._disjoint`; of cyclic Poisson sampling and correlated noise:
        :mod:`dp.accounting._rounds`.
    """
    # Example: 1000 releases on samples of 1 % with sigma 1 have epsilon 1.828 at delta
    # 1e-5 by PLD and 2.101 by RDP. Four releases on all data with sigma 10 are one with
    # sigma 5: 0.7255.
    _checks.open_unit(delta=delta)
    _checks.positive(tolerance=tolerance)
    # In a fixed order, by which the caches below find them again.
    releases = merge_equal_releases(releases)
    _checks.relation(
        neighboring_relation=neighboring_relation,
        truncated=any(release.truncation for release in releases),
        allocated=is_allocated(releases),
        by_position=is_by_position(releases),
    )
    _checks.count(group_size=group_size)
    nothing = partial(
        _without_accountant,
        delta=delta,
        relation=neighboring_relation,
        group_size=group_size,
    )
    if not releases:
        return nothing(0.0, "none")
    # One sum without noise gives its examples away, whatever else was released.
    if any(release.noise_multiplier == 0 for release in releases):
        return nothing(math.inf, "no noise")
    # Only what is asked for again and again is remembered: not a width of the caller's,
    # nor what the library composes.
    pld, interval = (
        bound_by_pld(releases, delta, neighboring_relation, tolerance, group_size)
        if interval is None and library is None
        else _by_pld(
            releases,
            delta,
            neighboring_relation,
            tolerance,
            group_size,
            interval,
            library,
        )
    )
    # Divergences of groups would be looser, and are not computed.
    rdp = _by_rdp(releases, delta, neighboring_relation) if group_size == 1 else None
    return Guarantee(
        epsilon=pld if rdp is None else min(pld, rdp),
        delta=delta,
        neighboring_relation=neighboring_relation,
        accountant="PLD" if rdp is None or pld <= rdp else "RDP",
        epsilon_pld=pld,
        epsilon_rdp=rdp,
        interval=interval,
        group_size=group_size,
    )


def _without_accountant(
    cost: float,
    why: str,
    *,
    delta: float,
    relation: NeighboringRelation,
    group_size: int,
) -> Guarantee:
    """Return the guarantee of no releases, or of some without noise."""
    return Guarantee(
        epsilon=cost,
        delta=delta,
        neighboring_relation=relation,
        accountant=why,
        epsilon_pld=cost,
        epsilon_rdp=cost if group_size == 1 else None,
        group_size=group_size,
    )


@lru_cache(maxsize=1024)
def bound_by_pld(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    tolerance: float,
    group_size: int = 1,
) -> tuple[float, float | None]:
    """Return the bound by privacy loss distributions, and the width of its buckets."""
    return _by_pld(releases, delta, relation, tolerance, group_size)


def _by_pld(  # noqa: PLR0917 -- what decides the bound, in one place
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    tolerance: float,
    group_size: int,
    interval: float | None = None,
    library: ReferenceAccountant | None = None,
) -> tuple[float, float | None]:
    # Not so tight, since dp_accounting has to confirm it: see GROUP_TOLERANCE.
    if group_size > 1:
        return bound_of_group(
            releases,
            delta=delta,
            neighboring_relation=relation,
            group_size=group_size,
            tolerance=max(tolerance, GROUP_TOLERANCE),
            interval=interval,
            library=library,
        )
    counted = affordable(releases, delta, relation)
    if interval is None:
        # A width for each run: 1.6e-4 for the 1000 releases of the example above.
        interval = interval_for(counted, delta, relation, 1, tolerance)
    epsilon_at = epsilon_by_delta(
        counted,
        relation=relation,
        group_size=1,
        interval=_resolution.checked(interval),
        library=library,
    )
    return epsilon_at(delta), interval


def _by_rdp(
    releases: tuple[Release, ...], delta: float, relation: NeighboringRelation
) -> float | None:
    """Return the bound by Renyi divergence, where ``dp_accounting`` has a valid one.

    It has none of a truncated sample or of random allocation, and none of replacing in
    a sample. For a release on all data it would not double the sensitivity of a
    replacement, as PLD does: that bound would be too low.
    """
    truncated = any(release.truncation for release in releases)
    if relation == "replace_one" or truncated or is_allocated(releases):
        return None
    return _by_own_rdp(releases, delta, relation)


@lru_cache(maxsize=1024)
def _by_own_rdp(
    releases: tuple[Release, ...], delta: float, relation: NeighboringRelation
) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    counted = one_a_pass(map(as_poisson, releases))
    # At every step of a run only counts change.
    of_one = [_divergences(replace(r, count=1), relation) for r in counted]
    orders, _ = of_one[0]
    divergences = reduce(
        operator.add,
        (r.count * each for r, (_, each) in zip(counted, of_one, strict=True)),
    ).tolist()
    with without_advice():
        found = float(compute_epsilon(orders, divergences, delta)[0])
    if found > 0:
        return found
    # Example: of samples of 1e-9 with sigma 500, a divergence of 2e-24 is found to be 0,
    # and epsilon 0 at every delta. What is known is that it is no more than is rounded.
    most = _ROUNDED * sum(release.num_participations for release in releases)
    divergences = [max(r, most) for r in divergences]
    return max(0.0, float(compute_epsilon(orders, divergences, delta)[0]))


@lru_cache(maxsize=1024)
def _divergences(
    release: Release, relation: NeighboringRelation
) -> tuple[list[float], "Floats"]:
    """Return the library's own orders, and the divergences of a release at them."""
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    # Any order bounds epsilon, and the least bound is taken.
    accountant = RdpAccountant(neighboring_relation=neighbors(relation))
    with without_advice():
        accountant.compose(to_dp_event([release]))
    return accountant.orders.tolist(), accountant.rdp
