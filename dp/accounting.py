"""What a sequence of Gaussian releases costs, by ``dp_accounting``.

Everything here is host-side arithmetic on public numbers. Two accountants give valid
upper bounds and the smaller one is reported: privacy loss distributions (PLD) are the
tighter nearly always, Renyi differential privacy (RDP) for very large noise. What was
really released is :mod:`dp.ledger`'s business.

``dp_accounting`` is imported when a number is asked for: it costs a second.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, final, get_args

from dp import _checks
from dp._typing import NeighboringRelation


if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.privacy_accountant import NeighboringRelation as Neighbors

__all__ = (
    "Guarantee",
    "Release",
    "calibrate_noise_multiplier",
    "epsilon",
    "epsilon_curve",
    "merged",
    "to_dp_event",
)

_CLAIM_INTERVAL: Final = 1e-4
_SEARCH_INTERVAL: Final = 1e-3
_FINE_BELOW: Final = 0.3  # Searches for a smaller epsilon use the claim's interval.
_DIGITS: Final = 5  # Significant digits of a calibrated sigma, rounded up.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Some number of identical Gaussian releases, each on a Poisson sample.

    Args:
        sampling_probability: Probability that an example is in the sample; 1 claims
            no amplification.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        count: How many releases.

    Raises:
        ValueError: If a number is out of range.
    """

    sampling_probability: float
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        _checks.probability(sampling_probability=self.sampling_probability)
        _checks.non_negative(noise_multiplier=self.noise_multiplier)
        _checks.count(count=self.count)


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


def merged(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return the same releases with equal ones counted together, in a fixed order.

    Composition does not depend on order, so neither does any epsilon.
    """
    counts: dict[tuple[float, float], int] = {}
    for release in releases:
        kind = (release.sampling_probability, release.noise_multiplier)
        counts[kind] = counts.get(kind, 0) + release.count
    return tuple(
        Release(sampling_probability=q, noise_multiplier=sigma, count=count)
        for (q, sigma), count in sorted(counts.items())
    )


def to_dp_event(releases: Iterable[Release]) -> "DpEvent":
    """Return the releases as an event of ``dp_accounting``, for any accountant."""
    from dp_accounting.dp_event import ComposedDpEvent  # noqa: PLC0415 -- a second

    return ComposedDpEvent([_event(release) for release in releases])


def epsilon(
    releases: Iterable[Release],
    *,
    delta: float,
    neighboring_relation: NeighboringRelation,
) -> Guarantee:
    """Return the guarantee of all the releases together.

    Guarantees:
        * ``epsilon`` is an upper bound: both accountants round up.
        * It is 0 for no releases, and infinite if one had no noise.

    Args:
        releases: What was released, in any order.
        delta: The delta of the guarantee, in (0, 1).
        neighboring_relation: What two neighbouring datasets are.

    Raises:
        ValueError: If *delta* or the relation is not one.

    References:
        Doroshenko et al., "Connect the Dots", 2022, https://arxiv.org/abs/2207.04380;
        Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian
        Mechanism", 2019, https://arxiv.org/abs/1908.10530.
    """
    _checks.open_unit(delta=delta)
    _check_relation(neighboring_relation)
    return _bounded(merged(releases), delta, neighboring_relation, _CLAIM_INTERVAL)


def epsilon_curve(
    release: Release, *, delta: float, neighboring_relation: NeighboringRelation
) -> tuple[float, ...]:
    """Return an upper bound on epsilon after 0, 1, ..., ``release.count`` releases.

    At most some twenty points are computed, so a plot or a progress bar can afford it.

    Guarantees:
        * Every value is at least the guarantee at that point: between computed points
          it is that of the next one.
        * The last value is what :func:`epsilon` returns.
    """
    points = sorted({math.ceil(release.count * i / 20) for i in range(21)})
    curve: list[float] = []
    for point in points:
        interval = _CLAIM_INTERVAL if point == release.count else _SEARCH_INTERVAL
        part = (replace(release, count=point),) if point else ()
        bound = _bounded(part, delta, neighboring_relation, interval).epsilon
        curve.extend([bound] * (point + 1 - len(curve)))
    return tuple(curve)


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    neighboring_relation: NeighboringRelation,
) -> float:
    """Return the smallest noise multiplier found that keeps the target.

    Guarantees:
        * The epsilon of *steps* releases with it, as :func:`epsilon` computes it, is
          at most *target_epsilon*.

    Raises:
        ValueError: If a number is out of range.
    """
    _checks.positive(target_epsilon=target_epsilon)
    _checks.open_unit(delta=target_delta)
    _check_relation(neighboring_relation)

    def bound(sigma: float, interval: float) -> float:
        release = Release(
            sampling_probability=sampling_probability,
            noise_multiplier=sigma,
            count=steps,
        )
        return _bounded(
            (release,), target_delta, neighboring_relation, interval
        ).epsilon

    fine = target_epsilon < _FINE_BELOW
    interval = _CLAIM_INTERVAL if fine else _SEARCH_INTERVAL
    low, high = _bracket(lambda sigma: bound(sigma, interval) <= target_epsilon)
    while high / low > 1 + 10.0**-_DIGITS * 10:
        middle = math.sqrt(low * high)
        if bound(middle, interval) <= target_epsilon:
            high = middle
        else:
            low = middle
    sigma = _rounded_up(high)
    while bound(sigma, _CLAIM_INTERVAL) > target_epsilon:
        sigma = _rounded_up(sigma * (1 + 10.0**-_DIGITS))
    return sigma


def _bracket(keeps_target: Callable[[float], bool]) -> tuple[float, float]:
    """Return sigmas a factor of two apart, of which only the larger keeps the target.

    The search starts at 1: sigmas near 0 have losses too wide to compute with.
    """
    sigma = 1.0
    if keeps_target(sigma):
        while keeps_target(sigma / 2):
            sigma /= 2
        return sigma / 2, sigma
    while not keeps_target(2 * sigma):
        sigma *= 2
    return sigma, 2 * sigma


def _rounded_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return float(f"{math.ceil(value / unit) * unit:.{_DIGITS}g}")


def _check_relation(relation: str) -> None:
    if relation not in get_args(NeighboringRelation):
        known = ", ".join(map(repr, get_args(NeighboringRelation)))
        raise ValueError(
            f"neighboring_relation must be one of {known}, got {relation!r}"
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
    if relation == "replace_one":
        # RDP has no sampled Gaussian for it, and would not double the sensitivity of
        # an unsampled one as PLD does: its bound would be too low.
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

    composed = pld.identity(value_discretization_interval=interval)
    for release in releases:
        q, sigma = release.sampling_probability, release.noise_multiplier
        if q < 1:
            one = _loss_distribution(q, sigma, relation, interval)
            part = one.self_compose(release.count)
        else:
            sigma /= math.sqrt(release.count)
            part = _loss_distribution(q, sigma, relation, interval)
        composed = composed.compose(part)
    return composed


@lru_cache(maxsize=32)
def _loss_distribution(
    q: float, sigma: float, relation: NeighboringRelation, interval: float
) -> "PrivacyLossDistribution":
    """One release; most of the work, and the same for every count and delta."""
    from dp_accounting.pld import privacy_loss_distribution as pld  # noqa: PLC0415

    return pld.from_gaussian_mechanism(
        standard_deviation=sigma,
        value_discretization_interval=interval,
        sampling_prob=q,
        neighboring_relation=_neighbors(relation),
    )


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
    if release.sampling_probability < 1:
        event = dp_event.PoissonSampledDpEvent(release.sampling_probability, gaussian)
    return dp_event.SelfComposedDpEvent(event, release.count)
