"""Everything in a certificate that is computed, and so can be computed again.

A certificate is written with the numbers by which budgets were kept while training:
those of the closed form of :mod:`dp.accounting._sampled_losses`. ``verify`` computes them again by
``dp_accounting``'s accountants alone. Were both of one kind, verifying would repeat a
mistake and not find it; and a run would wait seconds for its certificate, with a
schedule minutes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from dp._typing import NeighboringRelation
from dp.accounting import (
    Guarantee,
    ReferenceAccountant,
    Release,
    epsilon,
    group_epsilon,
    merge_equal_releases,
)
from dp.certificate._run import CertifiedRun
from dp.ledger import void
from dp.noise import GaussianNoise


__all__ = ("Numbers",)

GROUP_SIZES: Final = (2, 5, 10)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Everything that is computed from runs; ``verify`` computes it again."""

    epsilon: float
    accountant: str
    epsilon_pld: float
    epsilon_rdp: float | None
    epsilon_unamplified: float
    epsilon_of_groups: Mapping[int, float]
    delta_error: float
    steps: int
    key_epochs: int

    @classmethod
    def of(
        cls,
        runs: "Sequence[CertifiedRun]",
        *,
        delta: float,
        relation: NeighboringRelation,
        library: ReferenceAccountant | None = None,
    ) -> "Numbers":
        """Compute them, for all runs together."""
        releases = merge_equal_releases(
            release for run in runs for release in run.releases
        )
        spent = epsilon(
            releases, delta=delta, neighboring_relation=relation, library=library
        )
        if any(run.failure is not None for run in runs):
            return cls._without_guarantee(runs, spent)
        return cls(
            epsilon=spent.epsilon,
            accountant=spent.accountant,
            epsilon_pld=spent.epsilon_pld,
            epsilon_rdp=spent.epsilon_rdp,
            epsilon_unamplified=_unamplified(releases, spent, library).epsilon,
            epsilon_of_groups={
                size: group_epsilon(
                    releases,
                    delta=delta,
                    neighboring_relation=relation,
                    group_size=size,
                    library=library,
                )
                for size in GROUP_SIZES
            },
            delta_error=sum(_delta_error(run, spent.epsilon) for run in runs),
            steps=sum(run.steps for run in runs),
            key_epochs=sum(len(run.segments) for run in runs),
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
        )


def _delta_error(run: CertifiedRun, spent: float) -> float:
    if not run.steps:
        return 0.0
    num_elements = run.num_parameters * run.steps
    return GaussianNoise(rng=run.rng).delta_error(num_elements, epsilon=spent)


def _unamplified(
    releases: tuple[Release, ...], spent: Guarantee, library: ReferenceAccountant | None
) -> Guarantee:
    return epsilon(
        [
            Release(
                sampling_probability=1.0,
                noise_multiplier=release.noise_multiplier,
                count=release.count,
            )
            for release in releases
        ],
        delta=spent.delta,
        neighboring_relation=spent.neighboring_relation,
        library=library,
    )
