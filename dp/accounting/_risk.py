"""The risk of one unit in plain units: how often an attack succeeds, at most.

Epsilon bounds every attack at once, and tells most people little. The same privacy
losses also bound the success of one attack.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from dp import _checks
from dp._typing import NeighboringRelation
from dp.accounting import _resolution
from dp.accounting._accountant import Guarantee
from dp.accounting._composition import affordable
from dp.accounting._deltas import deltas_by_epsilon
from dp.accounting._groups import GROUP_TOLERANCE, check_group
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import (
    Release,
    is_allocated,
    is_by_position,
    merge_equal_releases,
)
from dp.accounting._renyi import cost_within
from dp.accounting._widths import interval_for
from dp.schedule import rounded_up


if TYPE_CHECKING:
    from dp.accounting._trade_off import DeltasAt, Floats

__all__ = (
    "EXCEPTIONS",
    "NO_BOUND",
    "NO_RISK",
    "Risk",
    "question",
    "risk",
    "risk_curve",
    "risk_of_guarantee",
    "risk_of_order",
)

EXCEPTIONS: Final = 1e-3
"""In what share of runs odds may grow by more than is stated."""
_NUM_POINTS: Final = 50
_ADD_OR_REMOVE: Final = "add_or_remove_one"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """What anyone can find out about one unit, at most.

    The attacker knows all other data, the program, and everything that was released,
    and answers for a unit whether it was in the data. Under ``replace_one`` the question
    is which of two units was in; under ``zero_out``, whether the unit's part was used.

    Attributes:
        advantage: The largest difference between the shares of "in" among the answers
            for units that were in and for units that were not: 0 is guessing, 1 is
            certainty.
        tpr_at_1_in_100: The largest share of units that were in which an attack finds
            with 1 false alarm in 100: it answers "in" for 1 in 100 units that were not.
            Guessing finds 0.01.
        tpr_at_1_in_1000: The same with 1 false alarm in 1000. Guessing finds 0.001.
        odds_factor: The largest factor by which anyone's odds grow or shrink, except in
            1 run of 1000: 1 is no change, infinity is no bound.
    """

    advantage: float
    tpr_at_1_in_100: float
    tpr_at_1_in_1000: float
    odds_factor: float

    @property
    def best_guess(self) -> float:
        """The largest share of right answers where both answers are equally likely.

        >>> risk = Risk(
        ...     advantage=0.16,
        ...     tpr_at_1_in_100=0.029,
        ...     tpr_at_1_in_1000=0.0041,
        ...     odds_factor=4.0,
        ... )
        >>> risk.best_guess
        0.58
        >>> risk.belief(0.5)
        0.8
        """
        return (1 + self.advantage) / 2

    def belief(self, prior: float) -> float:
        """Return the largest probability of "in" that anyone can arrive at.

        It holds except in 1 run of 1000.

        Args:
            prior: The probability that was assigned before the release, in (0, 1).

        Raises:
            ValueError: If *prior* is not strictly between 0 and 1.
        """
        _checks.open_unit(prior=prior)
        if self.odds_factor == math.inf:
            return 1.0
        grown = prior * self.odds_factor
        return grown / (grown + 1 - prior)

    def sentences(
        self,
        neighboring_relation: NeighboringRelation = "add_or_remove_one",
        *,
        group_size: int = 1,
    ) -> tuple[str, ...]:
        """Return the risk in sentences without technical terms, rounded up.

        Args:
            neighboring_relation: What two neighbouring datasets are.
            group_size: How many units differ at once.
        """
        asked = question(neighboring_relation, group_size)
        if self.advantage == 1:
            return (f"Nothing bounds how surely anyone can tell {asked}.",)
        guess = (
            f"A guess at even odds {asked} is right at most"
            f" {_percent(self.best_guess)} of the time (a coin: 50 %)."
        )
        found = [
            f"An attack with 1 false alarm in {of} finds at most {_up(share * of)} in {of}"
            f" of the {_noun(group_size)} that were in the data (guessing: 1)."
            for of, share in (
                (100, self.tpr_at_1_in_100),
                (1000, self.tpr_at_1_in_1000),
            )
        ]
        low, even = (_percent(self.belief(prior)) for prior in (0.1, 0.5))
        belief = (
            f"A prior belief of 10 % can rise to at most {low}, and one of 50 % to {even},"
            " except in 1 run of 1000."
        )
        return (guess, *found, belief)


def question(relation: NeighboringRelation, group_size: int) -> str:
    """Return what an attacker asks about a unit, as the relation defines it."""
    if relation == "replace_one":
        return f"which of two {_noun(group_size)} was in the data"
    which = "one unit was" if group_size == 1 else f"any {group_size} units were"
    return f"whether {which} in the data"


def _noun(group_size: int) -> str:
    return "units" if group_size == 1 else f"groups of {group_size} units"


def _percent(share: float) -> str:
    return f"{_up(100 * share)} %"


def _up(number: float) -> str:
    """Return three digits of a number, rounded up, as a bound has to be.

    >>> _up(58.0501), _up(4.0681), _up(100.0)
    ('58.1', '4.07', '100')
    """
    return f"{rounded_up(number, digits=3):.3g}"


NO_BOUND: Final = Risk(
    advantage=1.0, tpr_at_1_in_100=1.0, tpr_at_1_in_1000=1.0, odds_factor=math.inf
)
NO_RISK: Final = Risk(
    advantage=0.0, tpr_at_1_in_100=0.01, tpr_at_1_in_1000=0.001, odds_factor=1.0
)


def risk(
    releases: Iterable[Release],
    *,
    neighboring_relation: NeighboringRelation,
    group_size: int = 1,
    delta: float = 1e-5,
    tolerance: float = _resolution.TIGHT,
    interval: float | None = None,
    library: ReferenceAccountant | None = None,
) -> Risk:
    """Return what all the releases together let anyone find out about one unit.

    >>> one = Release(sampling_probability=1.0, noise_multiplier=1.0, count=1)
    >>> round(risk([one], neighboring_relation="zero_out").advantage, 4)
    0.3829

    Guarantees:
        * Every number is an upper bound, whichever of both neighbouring datasets is the
          real one: losses are rounded up.
        * Of the ideal noise, as epsilon is: what drawing it on a computer adds to delta
          is not counted.
        * Guessing for no releases, and certainty if one had no noise.

    Args:
        releases: What was released, in any order.
        neighboring_relation: What two neighbouring datasets are.
        group_size: How many units differ at once: all of them were in the data, or none.
        delta: The delta of the epsilon that is stated beside it. It decides nothing but
            which widths of buckets are tight.
        tolerance: About how much of itself that epsilon may be above the smallest bound.
            A larger one gives a valid risk sooner.
        interval: The width of the buckets of losses; by default that of epsilon.
        library: Accountants of ``dp_accounting`` that are to compose the losses.

    Raises:
        ValueError: As of :func:`epsilon`.
        UnsupportedOperationError: For a group of which batches were drawn by random
            allocation.

    References:
        Kulynych et al., "Attack-Aware Noise Calibration for Differential Privacy",
        2024: https://arxiv.org/abs/2407.02191; see also
        :mod:`dp.accounting._trade_off`.
    """
    deltas_at = _deltas_of(
        releases,
        neighboring_relation=neighboring_relation,
        group_size=group_size,
        delta=delta,
        tolerance=tolerance,
        interval=interval,
        library=library,
    )
    return _of_deltas(deltas_at)


def risk_curve(
    releases: Iterable[Release],
    *,
    neighboring_relation: NeighboringRelation,
    group_size: int = 1,
    delta: float = 1e-5,
    interval: float | None = None,
) -> tuple[tuple[float, float], ...]:
    """Return what an attack finds at most, by its false alarms, to be drawn.

    The arguments, guarantees and errors are those of :func:`risk`.

    Returns:
        Pairs of FPR and the largest TPR, from no false alarms to nothing else.
    """
    from dp.accounting._trade_off import Pairs  # noqa: PLC0415 -- numpy

    deltas_at = _deltas_of(
        releases,
        neighboring_relation=neighboring_relation,
        group_size=group_size,
        delta=delta,
        tolerance=_resolution.VAGUE,
        interval=interval,
        library=None,
    )
    pairs = Pairs(deltas_at)
    # Closer together where the curve is steep.
    rates = ((i / _NUM_POINTS) ** 2 for i in range(_NUM_POINTS + 1))
    return tuple((rate, pairs.true_positive_rate(rate)) for rate in rates)


def _deltas_of(
    releases: Iterable[Release],
    *,
    neighboring_relation: NeighboringRelation,
    group_size: int,
    delta: float,
    tolerance: float,
    interval: float | None,
    library: ReferenceAccountant | None,
) -> "DeltasAt":
    """Return the deltas of releases, or of a group, as :func:`risk` is asked for them."""
    _checks.open_unit(delta=delta)
    size = _checks.count(group_size=group_size)
    releases = merge_equal_releases(releases)
    truncated = any(release.truncation for release in releases)
    _checks.relation(
        neighboring_relation=neighboring_relation,
        truncated=truncated,
        allocated=is_allocated(releases),
        by_position=is_by_position(releases),
    )
    if size > 1:
        check_group(releases, size)
    if not releases:
        return lambda epsilons_E: 0 * epsilons_E
    if any(release.noise_multiplier == 0 for release in releases):
        return lambda epsilons_E: 0 * epsilons_E + 1
    # As of bound_of_group: one after the other where a group is no pair of its own.
    relation, together, chain = neighboring_relation, 1, 1
    if size > 1 and truncated:
        chain = size
    elif size > 1:
        relation, together = _ADD_OR_REMOVE, size
        chain = 2 if neighboring_relation == "replace_one" else 1
    counted = affordable(releases, delta, relation, together)
    if interval is None:
        if size > 1:
            tolerance = max(tolerance, GROUP_TOLERANCE)
        interval = interval_for(counted, delta, relation, together, tolerance)
    deltas_at = deltas_by_epsilon(
        counted,
        relation=relation,
        group_size=together,
        interval=_resolution.checked(interval),
        library=library,
    )
    return _chained(deltas_at, chain)


def risk_of_order(cost: float, order: float) -> Risk:
    """Return the risk of a Renyi divergence *cost* of *order*, either way.

    Its deltas are those of :func:`dp.accounting._renyi.epsilon_of_order`, solved for
    delta, so they are further above than those of losses.

    >>> round(risk_of_order(0.125, order=2.0).advantage, 3)
    0.283
    """
    import numpy as np  # noqa: PLC0415 -- a tenth of a second

    if cost == math.inf:
        return NO_BOUND
    spent = cost + math.log1p(-1 / order)

    def deltas_at(epsilons_E: "Floats") -> "Floats":
        exponents_E = (order - 1) * (spent - epsilons_E) - math.log(order)
        return np.exp(np.minimum(exponents_E, 0.0))

    return _of_deltas(deltas_at)


def risk_of_guarantee(
    guarantee: Guarantee, releases: Iterable[Release], *, order: float | None
) -> Risk:
    """Return the risk of what has a guarantee, in the buckets of its epsilon.

    Args:
        guarantee: What is guaranteed of the releases.
        releases: The releases.
        order: The order of the Renyi filter that guarantees it, whatever is released
            in the end; None for a guarantee of these releases.
    """
    if order is not None:
        return risk_of_order(
            cost_within(guarantee.epsilon, order, guarantee.delta), order
        )
    return risk(
        releases,
        neighboring_relation=guarantee.neighboring_relation,
        group_size=guarantee.group_size,
        delta=guarantee.delta,
        interval=guarantee.interval,
    )


def _chained(deltas_at: "DeltasAt", size: int) -> "DeltasAt":
    """Return the deltas of *size* changes, one after the other.

    Each costs a share of epsilon, and multiplies the delta of those before it by the
    exponential of that.
    """
    import numpy as np  # noqa: PLC0415 -- a tenth of a second

    if size == 1:
        return deltas_at

    def deltas_of_chain(epsilons_E: "Floats") -> "Floats":
        shares_E = epsilons_E / size
        growth_E = np.exp(np.outer(np.arange(size), shares_E)).sum(axis=0)
        deltas_E: Floats = deltas_at(shares_E) * growth_E
        return deltas_E

    return deltas_of_chain


def _of_deltas(deltas_at: "DeltasAt") -> Risk:
    from dp.accounting._trade_off import Pairs  # noqa: PLC0415 -- numpy

    pairs = Pairs(deltas_at)
    return Risk(
        advantage=pairs.advantage(),
        tpr_at_1_in_100=pairs.true_positive_rate(1e-2),
        tpr_at_1_in_1000=pairs.true_positive_rate(1e-3),
        odds_factor=pairs.odds_factor(EXCEPTIONS),
    )
