"""Epsilon at one Renyi order that was fixed in advance: the price of adaptive noise.

Noise that is chosen from earlier releases may be composed at such an order (a Renyi
filter), and not by privacy loss distributions.

References:
    Feldman and Zrnic, "Individual Privacy Accounting via a Renyi Filter", 2020,
    https://arxiv.org/abs/2008.11193; no such filter for privacy loss distributions:
    https://arxiv.org/abs/2602.06756; from an order to epsilon: Canonne, Kamath, Steinke,
    "The Discrete Gaussian for Differential Privacy", 2020, Proposition 12,
    https://arxiv.org/abs/2004.00010.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from dp import _checks
from dp._typing import NeighboringRelation
from dp.accounting._accountant import Guarantee
from dp.accounting._disjoint import one_a_pass
from dp.accounting._dp_events import neighbors, to_dp_event
from dp.accounting._quiet import without_advice
from dp.accounting._release import Release, is_allocated
from dp.accounting._rounds import is_cyclic


__all__ = (
    "ORDERS",
    "best_order",
    "check_filter",
    "cost_within",
    "epsilon_of_order",
    "filter_guarantee",
    "renyi_cost",
)

ORDERS: Final[tuple[float, ...]] = (
    # 1.1 to 1.9, 2 to 19.5 by halves, 20 to 62 by twos, 64 to 4096 by doubling: small
    # orders are best for large epsilons, and large ones for small.
    *(1 + tenths / 10 for tenths in range(1, 10)),
    *(halves / 2 for halves in range(4, 40)),
    *range(20, 64, 2),
    *(2.0**power for power in range(6, 13)),
)
"""The orders among which a plan looks for its own."""


def check_filter(
    order: float,
    relation: NeighboringRelation,
    *,
    truncated: bool,
    group_size: int = 1,
) -> None:
    """Raise unless releases can be composed at *order*.

    Raises:
        ValueError: If *order* is not above 1, or if no divergence is known for them.
    """
    if _checks.positive(renyi_order=order) <= 1:
        raise ValueError(f"renyi_order must be > 1, got {_checks.shown(order)}")
    # The library has no divergence for a truncated sample, nor for replacing in a
    # sample.
    if truncated or relation == "replace_one":
        raise ValueError(
            "renyi_order is for whole Poisson batches, or none, under"
            " 'add_or_remove_one' or 'zero_out': no Renyi divergence is known for"
            f" {'truncated batches' if truncated else repr(relation)}; leave it None"
        )
    if group_size != 1:
        raise ValueError(
            f"a Renyi filter bounds what single units cost, got group_size={_checks.shown(group_size)};"
            " leave renyi_order None, or draw the group as one unit"
        )


def renyi_cost(
    releases: Iterable[Release], order: float, relation: NeighboringRelation
) -> float:
    """Return an upper bound on the Renyi divergence of all releases, either way.

    Raises:
        ValueError: If none is known, as for truncated batches or random allocation.
    """
    releases = one_a_pass(releases)
    check_filter(order, relation, truncated=any(r.truncation for r in releases))
    if is_allocated(releases):
        raise ValueError(
            f"renyi_order={order!r} has no bound for passes by random allocation"
            " (RandomAllocation), which were charged; keep the plan's noise, and leave"
            " it None"
        )
    if is_cyclic(releases):
        raise ValueError(
            f"renyi_order={order!r} has no bound for rounds by cyclic Poisson sampling"
            " (CyclicPoisson), which were charged; keep the plan's noise, and leave it"
            " None"
        )
    # Divergences of one order add up, whatever the noise of each was and what it was
    # chosen by: that is the filter of Feldman and Zrnic, for an order that is fixed.
    costs = (
        r.count
        * _cost_of_one(r.sampling_probability, r.noise_multiplier, order, relation)
        for r in releases
    )
    return math.fsum(costs)


@lru_cache(maxsize=4096)
def _cost_of_one(
    probability: float, sigma: float, order: float, relation: NeighboringRelation
) -> float:
    if sigma == 0:
        return math.inf
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    release = Release(sampling_probability=probability, noise_multiplier=sigma, count=1)
    accountant = RdpAccountant([order], neighbors(relation))
    with without_advice():
        accountant.compose(to_dp_event([release]))
    return max(0.0, float(accountant.rdp[0]))


def epsilon_of_order(cost: float, order: float, delta: float) -> float:
    """Return the epsilon at *delta* of a Renyi divergence *cost* of *order*.

    >>> round(epsilon_of_order(0.5, order=8.0, delta=1e-5), 4)
    1.7141
    """
    # Proposition 12 of Canonne et al. The usual conversion adds log(1 / delta) / (order
    # - 1); the order beside delta and the logarithm of 1 - 1 / order make it smaller.
    spent = cost + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
    return max(0.0, spent)


def cost_within(spent: float, order: float, delta: float) -> float:
    """Return the largest divergence whose epsilon at *delta* is *spent*.

    >>> round(cost_within(1.7141091678, order=8.0, delta=1e-5), 6)
    0.5
    """
    return spent - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def best_order(
    releases: Iterable[Release], *, delta: float, relation: NeighboringRelation
) -> float:
    """Return the order at which *releases* have the smallest epsilon."""
    releases = one_a_pass(releases)
    # Of what is planned, not of what was released: an order that is chosen afterwards
    # would be no fixed one. For 1000 steps with q 0.01 and sigma 1 it is 8.
    epsilons = {
        order: epsilon_of_order(renyi_cost(releases, order, relation), order, delta)
        for order in ORDERS
    }
    return min(epsilons, key=epsilons.__getitem__)


def filter_guarantee(
    releases: Iterable[Release],
    *,
    order: float,
    target_epsilon: float | None,
    delta: float,
    relation: NeighboringRelation,
) -> Guarantee:
    """Return what a Renyi filter guarantees, however the noise was chosen.

    Args:
        releases: What is planned.
        order: The order, fixed in advance.
        target_epsilon: What the filter keeps; None for what the planned releases cost.
        delta: The delta of the guarantee.
        relation: What two neighbouring datasets are.
    """
    kept = target_epsilon
    if kept is None:
        kept = epsilon_of_order(renyi_cost(releases, order, relation), order, delta)
    # No PLD: losses of noise that was chosen from releases compose to no such bound.
    return Guarantee(
        epsilon=kept,
        delta=delta,
        neighboring_relation=relation,
        accountant=f"Renyi filter of order {order:g}",
        epsilon_pld=math.inf,
        epsilon_rdp=kept,
    )
