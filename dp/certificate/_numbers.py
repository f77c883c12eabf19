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
    epsilon,
    merge_equal_releases,
)
from dp.accounting._groups import bound_of_group
from dp.accounting._release import is_allocated
from dp.certificate._run import CertifiedRun
from dp.ledger import void
from dp.noise import GaussianNoise


__all__ = ("Numbers",)

GROUP_SIZES: Final = (2, 5, 10)
# Of epsilons of groups, which are shown with two digits: dp_accounting takes a minute to
# confirm what is ten times as tight.
_GROUP_TOLERANCE: Final = 1e-3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers computed from runs; ``verify`` recomputes them."""

    epsilon: float
    accountant: str
    epsilon_pld: float
    epsilon_rdp: float | None
    epsilon_unamplified: float
    epsilon_of_groups: Mapping[int, float]
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
        library: ReferenceAccountant | None = None,
        intervals: Mapping[str, float] | None = None,
    ) -> "Numbers":
        """Compute them, for all runs together.

        Args:
            runs: The runs.
            delta: The delta of every epsilon.
            relation: What neighbouring datasets are.
            library: Who is to compose, in place of this package; must be None where
                batches were drawn by random allocation, which ``dp_accounting`` has no
                losses of.
            intervals: In buckets of what widths, by the name of the epsilon; None
                chooses them.
        """
        releases = merge_equal_releases(
            release for run in runs for release in run.releases
        )
        given = intervals or {}
        about: dict[str, Any] = {
            "delta": delta,
            "neighboring_relation": relation,
            "library": library,
        }
        spent = epsilon(releases, interval=given.get("epsilon"), **about)
        if any(run.failure is not None for run in runs):
            return cls._without_guarantee(runs, spent)
        unamplified = epsilon(
            _unamplified(releases), interval=given.get("epsilon_unamplified"), **about
        )
        of_groups = _of_groups(releases, given, about)
        return cls(
            epsilon=spent.epsilon,
            accountant=spent.accountant,
            epsilon_pld=spent.epsilon_pld,
            epsilon_rdp=spent.epsilon_rdp,
            epsilon_unamplified=unamplified.epsilon,
            epsilon_of_groups={size: cost for size, (cost, _) in of_groups.items()},
            delta_error=sum(_delta_error(run, spent.epsilon) for run in runs),
            steps=sum(run.steps for run in runs),
            key_epochs=sum(len(run.segments) for run in runs),
            intervals=_intervals(spent, unamplified, of_groups),
        )

    @classmethod
    def _without_guarantee(
        cls, runs: "Sequence[CertifiedRun]", spent: Guarantee
    ) -> "Numbers":
        """Say that nothing bounds what the runs cost, whatever they were charged."""
        spent = void(spent)
        return cls(
            epsilon=spent.epsilon,
            accountant=spent.accountant,
            epsilon_pld=spent.epsilon_pld,
            epsilon_rdp=spent.epsilon_rdp,
            epsilon_unamplified=math.inf,
            epsilon_of_groups=dict.fromkeys(GROUP_SIZES, math.inf),
            delta_error=math.inf,
            steps=sum(run.steps for run in runs),
            key_epochs=sum(len(run.segments) for run in runs),
            intervals={},
        )


def _of_groups(
    releases: Sequence[Release],
    intervals: Mapping[str, float],
    about: Mapping[str, Any],
) -> dict[int, tuple[float, float | None]]:
    """Return the epsilon of groups by their size, and in buckets of what width.

    There are none where batches were drawn by random allocation: no bound is proven.
    """
    if is_allocated(releases):
        return {}
    return {
        size: bound_of_group(
            releases,
            group_size=size,
            tolerance=_GROUP_TOLERANCE,
            interval=intervals.get(f"epsilon_of_{size}"),
            **about,
        )
        for size in GROUP_SIZES
    }


def _intervals(
    spent: Guarantee,
    unamplified: Guarantee,
    of_groups: Mapping[int, tuple[float, float | None]],
) -> dict[str, float]:
    """Return the widths of buckets that were used, by the name of the epsilon."""
    widths = {
        "epsilon": spent.interval,
        "epsilon_unamplified": unamplified.interval,
        **{f"epsilon_of_{size}": width for size, (_, width) in of_groups.items()},
    }
    return {name: width for name, width in widths.items() if width is not None}


def _delta_error(run: CertifiedRun, spent: float) -> float:
    if not run.steps:
        return 0.0
    num_elements = run.num_parameters * run.steps
    return GaussianNoise(rng=run.rng).delta_error(num_elements, epsilon=spent)


def _unamplified(releases: tuple[Release, ...]) -> list[Release]:
    return [
        Release(
            sampling_probability=1.0,
            noise_multiplier=release.noise_multiplier,
            count=release.count,
        )
        for release in releases
    ]
