"""What a sequence of Gaussian releases costs, by ``dp_accounting``.

Everything here is host-side arithmetic on public numbers. Two accountants give valid
upper bounds and the smaller one is reported: privacy loss distributions (PLD) are the
tighter nearly always, Renyi differential privacy (RDP) for very large noise. What was
really released is :mod:`dp.ledger`'s business.

``dp_accounting`` is imported when a number is asked for: it costs a second.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, final, get_args

from dp import _checks
from dp._typing import NeighboringRelation
from dp.accounting._dp_events import neighbors, to_dp_event
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import Release, Truncation, merge_equal_releases


if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = (
    "VALUE_DISCRETIZATION_INTERVAL",
    "Guarantee",
    "ReferenceAccountant",
    "Release",
    "Truncation",
    "epsilon",
    "epsilon_curve",
    "group_epsilon",
    "merge_equal_releases",
    "to_dp_event",
)

VALUE_DISCRETIZATION_INTERVAL: Final = 1e-4
"""Width of the buckets of losses, of every epsilon that is claimed."""
_LARGEST: Final = 500.0  # Of the epsilons of groups; beyond, they say nothing.
_COARSE_INTERVAL: Final = 1e-3  # Of epsilons that are only shown: as valid, and faster.
_MOST_BUCKETS: Final = 1e5  # Of losses of unsampled releases: epsilon to 8 digits.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """An (epsilon, delta) that holds, and how it was found.

    Attributes:
        epsilon: The smaller of the two bounds.
        delta: The delta it is for.
        neighboring_relation: What two neighbouring datasets are.
        accountant: Which bound ``epsilon`` is: ``"PLD"``, ``"RDP"``, ``"none"`` where
            nothing was released, or ``"no noise"`` where nothing is guaranteed.
        epsilon_pld: The bound by privacy loss distributions.
        epsilon_rdp: The bound by Renyi differential privacy; None where
            ``dp_accounting`` has none for the relation.
    """

    epsilon: float
    delta: float
    neighboring_relation: NeighboringRelation
    accountant: str
    epsilon_pld: float
    epsilon_rdp: float | None


def epsilon(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
    interval: float = VALUE_DISCRETIZATION_INTERVAL,
    library: ReferenceAccountant | None = None,
) -> Guarantee:
    """Return the guarantee of all the releases together.

    Guarantees:
        * ``epsilon`` is an upper bound: both accountants round up.
        * It is 0 for no releases, and infinite if one had no noise.

    Args:
        releases: What was released, in any order.
        delta: The delta of the guarantee, in (0, 1).
        neighboring_relation: What two neighbouring datasets are.
        interval: Width of the buckets into which PLD rounds losses, always up. Wider
            ones give a larger bound sooner. Of releases that are all unsampled it is
            wider where there were more than 100 000 buckets.
        library: Accountants of ``dp_accounting`` that are to compose the losses, two
            to ten times as slowly, instead of the closed form of this package.

    Raises:
        ValueError: If *delta* or the relation is not one, or if batches were truncated
            and the relation keeps the number of examples private.

    References:
        Doroshenko et al., "Connect the Dots", 2022, https://arxiv.org/abs/2207.04380;
        Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian
        Mechanism", 2019, https://arxiv.org/abs/1908.10530;
        of truncated batches: https://arxiv.org/abs/2508.15089.
    """
    _checks.open_unit(delta=delta)
    releases = merge_equal_releases(releases)
    _check_relation(neighboring_relation, releases)
    return _bounded(releases, delta, neighboring_relation, interval, library)


def epsilon_curve(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
) -> tuple[float, ...]:
    """Return an upper bound on epsilon after 0, 1, ... of the releases, in their order.

    At most some twenty points are computed, so a plot or a progress bar can afford it.

    Guarantees:
        * Every value is at least the guarantee at that point: between computed points
          it is that of the next one.
        * The last value is what :func:`epsilon` returns.
    """
    releases = tuple(releases)
    num_steps = sum(release.count for release in releases)
    points = sorted({math.ceil(num_steps * i / 20) for i in range(21)})
    curve: list[float] = []
    for point in points:
        bound = epsilon(
            _first(point, releases),
            delta=delta,
            neighboring_relation=neighboring_relation,
            interval=VALUE_DISCRETIZATION_INTERVAL
            if point == num_steps
            else _COARSE_INTERVAL,
        ).epsilon
        curve.extend([bound] * (point + 1 - len(curve)))
    return tuple(curve)


def group_epsilon(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
    group_size: int,
    library: ReferenceAccountant | None = None,
) -> float:
    """Return an epsilon that holds if *group_size* examples differ at once.

    Such as several examples of one person. It is the larger in proportion at least,
    and a bound for one example is none for a group.

    Guarantees:
        * An upper bound, some percent above the smallest one; of truncated batches
          what changing one example after the other costs, which is further above.

    Args:
        releases: What was released.
        delta: The delta of the guarantee, in (0, 1).
        neighboring_relation: What two neighbouring datasets are.
        group_size: How many examples.
        library: Accountants to ask, as of :func:`epsilon`.

    Raises:
        ValueError: If a number or the relation is not one.

    References:
        Ganesh, "Tight Group-Level DP Guarantees for DP-SGD with Sampling via Mixture
        of Gaussians Mechanisms", 2024, Theorem 1: https://arxiv.org/abs/2401.10294
    """
    _checks.open_unit(delta=delta)
    size = _checks.count(group_size=group_size)
    releases = merge_equal_releases(releases)
    _check_relation(neighboring_relation, releases)
    if not releases:
        return 0.0
    sigma = min(release.noise_multiplier for release in releases)
    if sigma == 0:
        return math.inf
    truncated = any(release.truncation for release in releases)
    # A truncated batch may have one more example in another's place, and that twice.
    reach = (4 if truncated else size) / sigma
    interval = min(
        0.05, max(VALUE_DISCRETIZATION_INTERVAL, _largest_loss(reach) / 2000)
    )
    if truncated:
        single = _epsilons(releases, neighboring_relation, interval, library)
        return _group_by_composition(size, delta, single)
    epsilon_at = (
        _composed_for_group(releases, size, interval).get_epsilon_for_delta
        if library is None
        else library.epsilon_of_group(releases, size, interval)
    )
    if neighboring_relation != "replace_one":
        return max(0.0, float(epsilon_at(delta)))
    # Removing the group leads to a dataset that adding the other group leads to.
    return _group_by_composition(2, delta, epsilon_at)


def _largest_loss(reach: float) -> float:
    """Return the largest loss that matters of a distance over a standard deviation."""
    return reach**2 / 2 + 10 * reach


def _group_by_composition(
    size: int, delta: float, epsilon_at: Callable[[float], float]
) -> float:
    """Return the epsilon of *size* changes, each of which costs *epsilon_at* a delta.

    Each multiplies the delta of those before it by ``exp(epsilon)``.
    """
    largest = min(_LARGEST, 700 / max(1, size - 1))  # Exponentials are numbers.
    spent, needed = -1.0, 0.0
    while spent < needed < largest:
        spent = needed * (1 + 1e-6)
        part = delta / sum(math.exp(spent * i) for i in range(size))
        needed = max(0.0, float(epsilon_at(part)))
    return size * spent if needed < largest else math.inf


@lru_cache(maxsize=64)
def _composed_for_group(
    releases: tuple[Release, ...], size: int, interval: float
) -> "PrivacyLossDistribution":
    from dp_accounting.pld import privacy_loss_distribution as pld

    from dp.accounting._group_losses import group_losses  # noqa: PLC0415 -- loads dp_accounting

    losses = pld.identity(value_discretization_interval=interval)
    for release in releases:
        one = group_losses(
            group_size=size,
            sampling_probability=release.sampling_probability,
            sigma=release.noise_multiplier,
            interval=interval,
        )
        losses = losses.compose(one.self_compose(release.count))
    return losses


def _first(num_steps: int, releases: tuple[Release, ...]) -> Iterator[Release]:
    for release in releases:
        if num_steps > 0:
            yield replace(release, count=min(release.count, num_steps))
        num_steps -= release.count


def _check_relation(relation: str, releases: Sequence[Release] = ()) -> None:
    if relation not in get_args(NeighboringRelation):
        known = ", ".join(map(repr, get_args(NeighboringRelation)))
        raise ValueError(
            f"neighboring_relation must be one of {known}, got {relation!r}"
        )
    if relation == "add_or_remove_one" and any(r.truncation for r in releases):
        raise ValueError(
            "neighboring_relation must be 'zero_out' or 'replace_one' where batches are"
            " truncated: their cost depends on the number of examples, which"
            f" {relation!r} keeps private"
        )


def _bounded(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    interval: float,
    library: ReferenceAccountant | None = None,
) -> Guarantee:
    pld: float
    rdp: float | None
    if not releases:
        pld = rdp = 0.0
        accountant = "none"
    elif any(release.noise_multiplier == 0 for release in releases):
        pld = rdp = math.inf
        accountant = "no noise"
    else:
        interval = max(interval, _least_interval(releases, relation))
        pld, rdp = _bounds(releases, delta, relation, interval, library)
        accountant = "PLD" if rdp is None or pld <= rdp else "RDP"
    return Guarantee(
        epsilon=pld if rdp is None else min(pld, rdp),
        delta=delta,
        neighboring_relation=relation,
        accountant=accountant,
        epsilon_pld=pld,
        epsilon_rdp=rdp,
    )


def _least_interval(
    releases: tuple[Release, ...], relation: NeighboringRelation
) -> float:
    """Return what keeps the losses of unsampled releases in memory.

    Sampled ones are composed too often for buckets that are wider than asked for.
    """
    if any(release.sampling_probability < 1 for release in releases):
        return 0.0
    of_all = sum(release.count / release.noise_multiplier**2 for release in releases)
    reach = math.sqrt(of_all) * (2 if relation == "replace_one" else 1)
    return _largest_loss(reach) / _MOST_BUCKETS


def _bounds(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    interval: float,
    library: ReferenceAccountant | None,
) -> tuple[float, float | None]:
    if library is None:
        pld = _by_pld(releases, delta, relation, interval)
    else:
        pld = max(0.0, _epsilons(releases, relation, interval, library)(delta))
    if relation == "replace_one" or any(release.truncation for release in releases):
        # RDP has no truncated sample, and no replacement in a sampled one. It
        # would not double the sensitivity of an unsampled one as PLD does: its bound
        # would be too low.
        return pld, None
    return pld, _by_rdp(releases, delta, relation)


@lru_cache(maxsize=256)
def _by_pld(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    interval: float,
) -> float:
    return max(0.0, float(_epsilons(releases, relation, interval, None)(delta)))


@lru_cache(maxsize=256)
def _by_rdp(
    releases: tuple[Release, ...], delta: float, relation: NeighboringRelation
) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=neighbors(relation))
    with _without_advice():
        accountant.compose(to_dp_event(releases))
        return max(0.0, float(accountant.get_epsilon(delta)))


def _epsilons(
    releases: tuple[Release, ...],
    relation: NeighboringRelation,
    interval: float,
    library: ReferenceAccountant | None,
) -> Callable[[float], float]:
    """Return the epsilon of all the releases, by delta."""
    if library is not None:
        return library.epsilon_of_example(releases, relation, interval)
    return _composed(releases, relation, interval).get_epsilon_for_delta


def _composed(
    releases: tuple[Release, ...], relation: NeighboringRelation, interval: float
) -> "PrivacyLossDistribution":
    """Return what ``PLDAccountant`` would compose, term by term."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    from dp.accounting._sampled_losses import sampled_losses, truncated_losses  # noqa: PLC0415

    composed = pld.identity(value_discretization_interval=interval)
    for release in releases:
        q, sigma = release.sampling_probability, release.noise_multiplier
        if release.truncation is not None:
            one = truncated_losses(q, sigma, release.truncation, relation, interval)
            part = one.self_compose(release.count)
        elif q < 1:
            one = sampled_losses(q, sigma, relation, interval)
            part = one.self_compose(release.count)
        else:
            sigma /= math.sqrt(release.count)
            part = sampled_losses(q, sigma, relation, interval)
        composed = composed.compose(part)
    return composed


@contextmanager
def _without_advice() -> Iterator[None]:
    # dp_accounting warns of every RDP order that it leaves out. Leaving orders out
    # only makes the bound larger, and the smaller of two bounds is reported.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
