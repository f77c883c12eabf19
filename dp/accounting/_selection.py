"""The cost of the best of K runs, where K is drawn at random and kept secret.

Publishing the best of a fixed number of runs costs as much as publishing all. If K is
random, the best of them says little about any one, and costs little more than one run.
With ``rdp(a)`` the Renyi divergence of one run at order a, at most, the best run has

* K Poisson of mean m: ``rdp(a) + m delta(log(1 + 1 / (a - 1))) + log(m) / (a - 1)``,
  with ``delta(e)`` the delta of one run at epsilon e (Theorem 6);
* K truncated negative binomial, of shape n and parameter g: ``rdp(a) + (1 + n)
  ((1 - 1/b) rdp(b) + log(1/g) / b) + log(E K) / (a - 1)`` for any order b (Theorem 2).

Example: 1000 steps at q = 0.01 and sigma = 1 cost 1.83 at delta 1e-5. The best of 10
such runs on average costs 3.52 with the logarithmic law (n = 0), and all 10 cost 6.19.

References:
    Papernot and Steinke, "Hyperparameter Tuning with Renyi Differential Privacy", 2022,
    Theorems 2 and 6. https://arxiv.org/abs/2110.03620
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, final

from dp import _checks
from dp._typing import NeighboringRelation
from dp.accounting._dp_events import neighbors, to_dp_event
from dp.accounting._quiet import without_advice
from dp.accounting._release import Release, merge_equal_releases
from dp.accounting._renyi import epsilon_of_order


__all__ = (
    "NegativeBinomialRuns",
    "NumRuns",
    "PoissonRuns",
    "check_selectable",
    "selection_epsilon",
)

ORDERS: Final = (
    *(1 + twentieths / 20 for twentieths in range(1, 40)),
    *(quarters / 4 for quarters in range(12, 40)),
    *(float(whole) for whole in range(10, 64)),
    *(2.0 ** (eighths / 8) for eighths in range(48, 81)),
)
_LEAST_PARAMETER: Final = 1e-12
_NEGLIGIBLE: Final = 2.0**-64  # Of the law of K: no draw of 53 bits reaches it.


class NumRuns(ABC):
    """The law of the number of runs.

    Attributes:
        mean: How many runs there are on average.
    """

    mean: float

    @abstractmethod
    def probabilities(self) -> Iterator[tuple[int, float]]:
        """Yield numbers of runs and their probabilities, until the rest is negligible."""

    @abstractmethod
    def described(self) -> str:
        """Return the law in words."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonRuns(NumRuns):
    """A Poisson number of runs: close to its mean, and 0 now and then.

    >>> PoissonRuns(mean=10.0).described()
    'Poisson of mean 10'

    Args:
        mean: How many runs there are on average.

    Raises:
        ValueError: If *mean* is not in (0, 500].
    """

    mean: float

    def __post_init__(self) -> None:
        _check_mean(self.mean, least=0.0)

    def probabilities(self) -> Iterator[tuple[int, float]]:
        """Yield every number up to where the rest is negligible."""
        k, probability = 0, math.exp(-self.mean)
        while k <= self.mean or probability > _NEGLIGIBLE:
            yield k, probability
            k += 1
            probability *= self.mean / k

    def described(self) -> str:
        """Return the law in words."""
        return f"Poisson of mean {self.mean:g}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NegativeBinomialRuns(NumRuns):
    """A truncated negative binomial number of runs: at least 1, and sometimes many.

    Its cost grows with the logarithm of its mean. Shape 0 is the logarithmic law, which
    costs least and varies most; shape 1 the geometric one.

    >>> NegativeBinomialRuns(mean=10.0, shape=1.0).described()
    'truncated negative binomial of shape 1 and mean 10'

    Args:
        mean: How many runs there are on average.
        shape: The shape, from 0 to 10.

    Raises:
        ValueError: If *mean* is not in (1, 500], or *shape* is out of range.
    """

    mean: float
    shape: float = 0.0

    def __post_init__(self) -> None:
        _check_mean(self.mean, least=1.0)
        if not 0 <= _checks.non_negative(shape=self.shape) <= 10:  # noqa: PLR2004
            raise ValueError(f"shape must be in [0, 10], got {self.shape!r}")

    @property
    def parameter(self) -> float:
        """The parameter g in (0, 1) at which the mean is as stated."""
        low, high = math.log(_LEAST_PARAMETER), -1e-9
        for _ in range(200):  # The mean falls as g rises.
            middle = (low + high) / 2
            if _mean_of(math.exp(middle), self.shape) > self.mean:
                low = middle
            else:
                high = middle
        return math.exp(low)  # Where the mean is no smaller than stated.

    def probabilities(self) -> Iterator[tuple[int, float]]:
        """Yield every number up to where the rest is negligible."""
        g, shape = self.parameter, self.shape
        scale = (
            1 / math.log(1 / g)
            if shape == 0
            else shape / math.expm1(-shape * math.log(g))
        )
        k, probability = 1, (1 - g) * scale
        while k <= self.mean or probability > _NEGLIGIBLE:
            yield k, probability
            probability *= (1 - g) * (k + shape) / (k + 1)
            k += 1

    def described(self) -> str:
        """Return the law in words."""
        return f"truncated negative binomial of shape {self.shape:g} and mean {self.mean:g}"


def _mean_of(g: float, shape: float) -> float:
    if shape == 0:
        return (1 / g - 1) / math.log(1 / g)
    return shape * (1 - g) / (g * -math.expm1(shape * math.log(g)))


def _check_mean(mean: float, *, least: float) -> None:
    if not least < _checks.positive(mean=mean) <= 500:  # noqa: PLR2004 -- runs
        raise ValueError(f"mean must be in ({least:g}, 500], got {mean!r}")


def check_selectable(
    releases: Sequence[Release], relation: NeighboringRelation, group_size: int
) -> None:
    """Raise unless the Renyi divergences of one run are known.

    Raises:
        ValueError: With what is in the way.
    """
    obstacle = None
    if any(release.steps_per_pass is not None for release in releases):
        obstacle = "passes, as by random allocation; plan with PoissonSampling"
    elif any(release.bands is not None for release in releases):
        obstacle = "cyclic Poisson sampling; plan with PoissonSampling"
    elif any(release.truncation is not None for release in releases):
        obstacle = "truncated batches; plan with PoissonSampling"
    elif relation == "replace_one":
        obstacle = "'replace_one'; plan for 'add_or_remove_one' or 'zero_out'"
    elif group_size != 1:
        obstacle = f"groups of {group_size}; draw each group as one unit"
    if obstacle is not None:
        raise ValueError(
            f"the best of several runs has no bound with plans of {obstacle}"
        )


def selection_epsilon(
    candidates: Sequence[Sequence[Release]],
    runs: NumRuns,
    *,
    delta: float,
    relation: NeighboringRelation,
) -> float:
    """Return the epsilon at *delta* of the best of a random number of runs.

    Args:
        candidates: What a run with each candidate releases. The bound is that of the
            worst one, at every order.
        runs: The law of the number of runs.
        delta: The delta of the guarantee.
        relation: What two neighbouring datasets are.

    Returns:
        An upper bound, infinite if a candidate has releases without noise.

    Raises:
        ValueError: If a candidate's divergences are not known.
    """
    kinds = {merge_equal_releases(releases) for releases in candidates}
    for releases in kinds:
        check_selectable(releases, relation, 1)
    if any(release.noise_multiplier == 0 for kind in kinds for release in kind):
        return math.inf
    rdp = [
        max(at_order)
        for at_order in zip(*(_rdp(k, relation) for k in kinds), strict=True)
    ]
    added = _added(rdp, runs, kinds, relation)
    return min(
        epsilon_of_order(cost + more, order, delta)
        for order, cost, more in zip(ORDERS, rdp, added, strict=True)
    )


@lru_cache(maxsize=64)
def _rdp(releases: tuple[Release, ...], relation: NeighboringRelation) -> list[float]:
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    accountant = RdpAccountant(list(ORDERS), neighbors(relation))
    with without_advice():
        accountant.compose(to_dp_event(releases))
    return [max(0.0, float(cost)) for cost in accountant.rdp]


def _added(
    rdp: Sequence[float],
    runs: NumRuns,
    kinds: set[tuple[Release, ...]],
    relation: NeighboringRelation,
) -> list[float]:
    """Return what choosing adds to the divergence of one run, by order."""
    of_mean = [max(0.0, math.log(runs.mean)) / (order - 1) for order in ORDERS]
    if isinstance(runs, NegativeBinomialRuns):
        g = runs.parameter
        once = min(
            (1 - 1 / order) * cost - math.log(g) / order
            for order, cost in zip(ORDERS, rdp, strict=True)
        )
        return [(1 + runs.shape) * once + more for more in of_mean]
    deltas = _deltas(kinds, relation)
    return [runs.mean * d + more for d, more in zip(deltas, of_mean, strict=True)]


def _deltas(
    kinds: set[tuple[Release, ...]], relation: NeighboringRelation
) -> list[float]:
    """Return the largest delta of a run at epsilon log(1 + 1/(order - 1)), by order."""
    by_kind = [_deltas_of_one(releases, relation) for releases in kinds]
    return [max(at_order) for at_order in zip(*by_kind, strict=True)]


@lru_cache(maxsize=64)
def _deltas_of_one(
    releases: tuple[Release, ...], relation: NeighboringRelation
) -> list[float]:
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    accountant = PLDAccountant(neighbors(relation))
    with without_advice():
        accountant.compose(to_dp_event(releases))
    return [
        float(accountant.get_delta(math.log1p(1 / (order - 1)))) for order in ORDERS
    ]
