"""The computed numbers of a certificate, which can be recomputed.

A certificate is written with the numbers by which budgets were kept while training:
those of the vectorised losses of :mod:`dp.accounting`. ``verify`` recomputes them with
``dp_accounting``'s accountants alone. Were both of one kind, verifying would repeat a
mistake instead of finding it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from dp._typing import NeighboringRelation
from dp.accounting import (
    Guarantee,
    ReferenceAccountant,
    Release,
    Risk,
    epsilon,
    merge_equal_releases,
    risk,
)
from dp.accounting._groups import GROUP_TOLERANCE, bound_of_group
from dp.accounting._release import is_allocated
from dp.accounting._renyi import cost_within, epsilon_of_order, renyi_cost
from dp.accounting._risk import NO_BOUND, risk_of_order
from dp.accounting._rounds import is_cyclic
from dp.certificate._run import CertifiedRun
from dp.ledger import void
from dp.noise import GaussianNoise


__all__ = ("Numbers", "together")

GROUP_SIZES: Final = (2, 5, 10)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers computed from runs; ``verify`` recomputes them."""

    epsilon: float
    accountant: str
    epsilon_pld: float
    epsilon_rdp: float | None
    epsilon_unamplified: float
    epsilon_of_steps_taken: float
    epsilon_of_groups: Mapping[int, float]
    risk: Risk
    delta_error: float
    steps: int
    key_epochs: int
    intervals: Mapping[str, float]

    @classmethod
    def of(
        cls,
        runs: "Sequence[CertifiedRun]",
        *,
        delta: float,
        relation: NeighboringRelation,
        group_size: int = 1,
        library: ReferenceAccountant | None = None,
        intervals: Mapping[str, float] | None = None,
    ) -> "Numbers":
        """Compute them, for all runs together.

        Args:
            runs: The runs.
            delta: The delta of every epsilon.
            relation: What neighbouring datasets are.
            group_size: How many units differ at once, in all but epsilons of groups.
            library: Who is to compose, in place of this package; must be None where
                batches were drawn by random allocation, which ``dp_accounting`` has no
                losses of.
            intervals: In buckets of what widths, by the name of the epsilon; None
                chooses them.
        """
        given = intervals or {}
        about: dict[str, Any] = {
            "delta": delta,
            "neighboring_relation": relation,
            "library": library,
        }
        if any(run.has_failed for run in runs):
            return cls._without_guarantee(runs, delta, relation)
        claimed, charged = together(runs, claimed=True), together(runs, claimed=False)
        if charged and any(run.plan.renyi_order is not None for run in runs):
            return cls._under_filter(runs, delta, relation)
        of_claim = {**about, "group_size": group_size}
        spent = epsilon(claimed, interval=given.get("epsilon"), **of_claim)
        # Here, where the losses that it is read from are still known.
        at_risk = risk(claimed, interval=spent.interval, **of_claim)
        taken = (
            spent
            if charged == claimed
            else epsilon(
                charged, interval=given.get("epsilon_of_steps_taken"), **of_claim
            )
        )
        unamplified = epsilon(
            _unamplified(claimed),
            interval=given.get("epsilon_unamplified"),
            **of_claim,
        )
        of_groups = _of_groups(claimed, given, about)
        return cls(
            epsilon=spent.epsilon,
            accountant=spent.accountant,
            epsilon_pld=spent.epsilon_pld,
            epsilon_rdp=spent.epsilon_rdp,
            epsilon_unamplified=unamplified.epsilon,
            epsilon_of_steps_taken=taken.epsilon,
            epsilon_of_groups={size: cost for size, (cost, _) in of_groups.items()},
            risk=at_risk,
            delta_error=sum(_delta_error(run, spent.epsilon) for run in runs),
            steps=sum(run.steps for run in runs),
            key_epochs=sum(len(run.segments) for run in runs),
            intervals=_intervals(spent, taken, unamplified, of_groups),
        )

    @classmethod
    def _under_filter(
        cls,
        runs: "Sequence[CertifiedRun]",
        delta: float,
        relation: NeighboringRelation,
    ) -> "Numbers":
        """Compose runs of which some chose their noise, at the order of their filter.

        It bounds one unit only: a filter was kept for no group, and not without sampling.
        """
        (order,) = {run.plan.renyi_order for run in runs} - {None}
        assert order is not None, "removed"  # noqa: S101 -- of type checkers
        charged = renyi_cost(together(runs, claimed=False), order, relation)
        cost = math.fsum(_cost_of_run(run, order, relation) for run in runs)
        spent = epsilon_of_order(cost, order, delta)
        return cls(
            epsilon=spent,
            accountant=f"Renyi filter of order {order:g}",
            epsilon_pld=math.inf,
            epsilon_rdp=spent,
            epsilon_unamplified=math.inf,
            epsilon_of_steps_taken=epsilon_of_order(charged, order, delta),
            epsilon_of_groups=dict.fromkeys(GROUP_SIZES, math.inf),
            risk=risk_of_order(cost, order),
            delta_error=sum(_delta_error(run, spent) for run in runs),
            steps=sum(run.steps for run in runs),
            key_epochs=sum(len(run.segments) for run in runs),
            intervals={},
        )

    @classmethod
    def _without_guarantee(
        cls,
        runs: "Sequence[CertifiedRun]",
        delta: float,
        relation: NeighboringRelation,
    ) -> "Numbers":
        """Say that nothing bounds what the runs cost, whatever they were charged."""
        spent = void(epsilon((), delta=delta, neighboring_relation=relation))
        return cls(
            epsilon=spent.epsilon,
            accountant=spent.accountant,
            epsilon_pld=spent.epsilon_pld,
            epsilon_rdp=spent.epsilon_rdp,
            epsilon_unamplified=math.inf,
            epsilon_of_steps_taken=math.inf,
            epsilon_of_groups=dict.fromkeys(GROUP_SIZES, math.inf),
            risk=NO_BOUND,
            delta_error=math.inf,
            steps=sum(run.steps for run in runs),
            key_epochs=sum(len(run.segments) for run in runs),
            intervals={},
        )


def together(runs: "Sequence[CertifiedRun]", *, claimed: bool) -> tuple[Release, ...]:
    """Return the releases of all runs that are *claimed*, or those that were charged."""
    return merge_equal_releases(
        release
        for run in runs
        for release in (run.claimed if claimed else run.releases)
    )


def _cost_of_run(
    run: CertifiedRun, order: float, relation: NeighboringRelation
) -> float:
    """Return what a run may have cost at *order*: all that its filter allowed."""
    cost = renyi_cost(run.claimed, order, relation)
    if run.plan.renyi_order is None or not run.steps:
        return cost
    kept = cost_within(run.plan.guarantee().epsilon, order, run.plan.target_delta)
    return max(cost, kept)  # Forks that met may have spent more.


def _of_groups(
    releases: Sequence[Release],
    intervals: Mapping[str, float],
    about: Mapping[str, Any],
) -> dict[int, tuple[float, float | None]]:
    """Return the epsilon of groups by their size, and in buckets of what width.

    There are none where batches were drawn by random allocation, or by cyclic Poisson
    sampling: no bound is proven.
    """
    if is_allocated(releases) or is_cyclic(releases):
        return {}
    return {
        size: bound_of_group(
            releases,
            group_size=size,
            tolerance=GROUP_TOLERANCE,
            interval=intervals.get(f"epsilon_of_{size}"),
            **about,
        )
        for size in GROUP_SIZES
    }


def _intervals(
    spent: Guarantee,
    taken: Guarantee,
    unamplified: Guarantee,
    of_groups: Mapping[int, tuple[float, float | None]],
) -> dict[str, float]:
    """Return the widths of buckets that were used, by the name of the epsilon."""
    widths = {
        "epsilon": spent.interval,
        "epsilon_of_steps_taken": taken.interval if taken is not spent else None,
        "epsilon_unamplified": unamplified.interval,
        **{f"epsilon_of_{size}": width for size, (_, width) in of_groups.items()},
    }
    return {name: width for name, width in widths.items() if width is not None}


def _delta_error(run: CertifiedRun, spent: float) -> float:
    asked = sum(query.num_values for query in run.plan.queries)
    if not run.steps and not asked:
        return 0.0
    num_elements = run.num_parameters * run.claimed_steps + asked
    return GaussianNoise(rng=run.rng).delta_error(num_elements, epsilon=spent)


def _unamplified(releases: tuple[Release, ...]) -> list[Release]:
    """Return what the releases cost if each is on all of the data.

    With correlated noise of b bands an example is then in every step, and changes the
    noised sums by no more than C sqrt(b T) in T of them: the convolution of T vectors
    with b coefficients is longer than the vectors by their sum at most, which is at most
    sqrt(b) where their norm is 1.
    """
    return [
        Release(
            sampling_probability=1.0,
            noise_multiplier=release.noise_multiplier / math.sqrt(release.bands or 1),
            count=release.count,
        )
        for release in releases
    ]
