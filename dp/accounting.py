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
from dp._releases import Release, Truncation, merged
from dp._typing import NeighboringRelation


if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.privacy_accountant import NeighboringRelation as Neighbors

__all__ = (
    "CLAIMED",
    "Guarantee",
    "Release",
    "Truncation",
    "epsilon",
    "epsilon_curve",
    "group_epsilon",
    "merged",
    "to_dp_event",
)

CLAIMED: Final = 1e-4
"""Width of the buckets of losses, of every epsilon that is claimed."""
_LARGEST: Final = 500.0  # Of the epsilons of groups; beyond, they say nothing.
_COARSE: Final = 1e-3  # Of epsilons that are only shown: as valid, and faster.


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


def to_dp_event(releases: Iterable[Release]) -> "DpEvent":
    """Return the releases as an event of ``dp_accounting``, for any accountant."""
    from dp_accounting.dp_event import ComposedDpEvent  # noqa: PLC0415 -- a second

    return ComposedDpEvent([_event(release) for release in releases])


def epsilon(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
    interval: float = CLAIMED,
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
            ones give a larger bound sooner.

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
    releases = merged(releases)
    _check_relation(neighboring_relation, releases)
    return _bounded(releases, delta, neighboring_relation, interval)


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
            interval=CLAIMED if point == num_steps else _COARSE,
        ).epsilon
        curve.extend([bound] * (point + 1 - len(curve)))
    return tuple(curve)


@lru_cache(maxsize=128)
def group_epsilon(
    releases: tuple[Release, ...],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
    group_size: int,
) -> float:
    """Return an epsilon that holds if *group_size* examples differ at once.

    Such as several examples of one person. It is the larger in proportion at least,
    and a bound for one example is none for a group.

    Guarantees:
        * An upper bound, some percent above the smallest one; of truncated batches
          what changing one example after the other costs, which is further above.

    Raises:
        ValueError: If a number or the relation is not one.

    References:
        Ganesh, "Tight Group-Level DP Guarantees for DP-SGD with Sampling via Mixture
        of Gaussians Mechanisms", 2024, Theorem 1: https://arxiv.org/abs/2401.10294
    """
    _checks.open_unit(delta=delta)
    size = _checks.count(group_size=group_size)
    releases = merged(releases)
    _check_relation(neighboring_relation, releases)
    if not releases:
        return 0.0
    sigma = min(release.noise_multiplier for release in releases)
    if sigma == 0:
        return math.inf
    truncated = any(release.truncation for release in releases)
    # A truncated batch may have one more example in another's place, and that twice.
    reach = (4 if truncated else size) / sigma  # Of losses, reach**2 / 2 + 10 * reach.
    interval = min(0.05, max(CLAIMED, (reach**2 / 2 + 10 * reach) / 2000))
    if truncated:
        single = _composed(releases, neighboring_relation, interval)
        return _in_turn(size, delta, single.get_epsilon_for_delta)
    losses = _composed_for_group(releases, size, interval)
    if neighboring_relation != "replace_one":
        return max(0.0, float(losses.get_epsilon_for_delta(delta)))
    # Removing the group leads to a dataset that adding the other group leads to.
    return _in_turn(2, delta, losses.get_epsilon_for_delta)


def _in_turn(size: int, delta: float, epsilon_at: Callable[[float], float]) -> float:
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


def _composed_for_group(
    releases: tuple[Release, ...], size: int, interval: float
) -> "PrivacyLossDistribution":
    from dp_accounting.pld import privacy_loss_distribution as pld  # noqa: PLC0415

    from dp._group_losses import group_losses  # noqa: PLC0415 -- a second

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
        pld, rdp = _bounds(releases, delta, relation, interval)
        accountant = "PLD" if rdp is None or pld <= rdp else "RDP"
    return Guarantee(
        epsilon=pld if rdp is None else min(pld, rdp),
        delta=delta,
        neighboring_relation=relation,
        accountant=accountant,
        epsilon_pld=pld,
        epsilon_rdp=rdp,
    )


@lru_cache(maxsize=256)
def _bounds(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    interval: float,
) -> tuple[float, float | None]:
    by_pld = _composed(releases, relation, interval).get_epsilon_for_delta(delta)
    pld = max(0.0, float(by_pld))
    if relation == "replace_one" or any(release.truncation for release in releases):
        # RDP has no truncated sample, and no replacement in a sampled one. It
        # would not double the sensitivity of an unsampled one as PLD does: its bound
        # would be too low.
        return pld, None
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant  # noqa: PLC0415

    by_rdp = RdpAccountant(neighboring_relation=_neighbors(relation))
    with _without_advice():
        by_rdp.compose(to_dp_event(releases))
        return pld, max(0.0, float(by_rdp.get_epsilon(delta)))


def _composed(
    releases: tuple[Release, ...], relation: NeighboringRelation, interval: float
) -> "PrivacyLossDistribution":
    """Return what ``PLDAccountant`` would compose, term by term."""
    from dp_accounting.pld import privacy_loss_distribution as pld  # noqa: PLC0415

    from dp._sampled_losses import sampled_losses, truncated_losses  # noqa: PLC0415

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


def _neighbors(relation: NeighboringRelation) -> "Neighbors":
    from dp_accounting.privacy_accountant import NeighboringRelation as Neighbors  # noqa: PLC0415

    return {
        "add_or_remove_one": Neighbors.ADD_OR_REMOVE_ONE,
        "replace_one": Neighbors.REPLACE_ONE,
        "zero_out": Neighbors.REPLACE_SPECIAL,
    }[relation]


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


def _event(release: Release) -> "DpEvent":
    from dp_accounting import dp_event  # noqa: PLC0415 -- a second

    gaussian = dp_event.GaussianDpEvent(release.noise_multiplier)
    event: DpEvent = gaussian
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
