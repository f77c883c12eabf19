"""Are rows of tables kept by counts with the noise that was charged, and noised so?

Each record has a row of its own in both tables of the canaries, so that a row is kept as
often as a count of one, or of none, is rounded to more than the threshold.

Shapes: ``T`` releases, ``M`` records that might be in the data, ``K`` kept rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch

from dp._reports import Finding
from dp.accounting._counted import NoiseBesideCount
from dp.audit._observation import Observation
from dp.audit._statistics import Floats, binomial_p, finding, mean_p, variance_p
from dp.audit._subject import DIRECTION, Bools
from dp.clipping import SparseClipping
from dp.exceptions import UnsupportedOperationError


__all__ = ("about_rows",)


@final
@dataclass(slots=True)
class _Rows:
    """What is seen of rows that are alike: of records drawn, or of others."""

    share: float  # What a contribution is there, over C.
    ps: list[float] = field(default_factory=list)
    num_kept: int = 0
    expected: float = 0.0
    noise: list[Floats] = field(default_factory=list)

    def add(self, values_M: Floats, chances: "_Chances", sigma: float) -> None:
        """Take down the rows of one release, in units of C."""
        if not values_M.size:
            return
        mean = self.share / sigma
        kept_M = chances.kept(values_M / sigma, mean, counted=self.share > 0)
        chance = chances.of_keeping(counted=self.share > 0)
        self.ps.append(binomial_p(int(kept_M.sum()), values_M.size, chance))
        self.num_kept += int(kept_M.sum())
        self.expected += chance * values_M.size
        self.noise.append(values_M[kept_M] / sigma - mean)


@final
@dataclass(frozen=True, slots=True)
class _Chances:
    """How likely a row is kept in one release.

    Attributes:
        least: What a noisy count has to reach, in standard deviations of its noise.
        spacing: Between values that noisy numbers are rounded to, in the same unit.
        count: What a record adds to a count, in the same unit.
    """

    least: float
    spacing: float
    count: float

    @classmethod
    def of(
        cls,
        observation: Observation,
        rule: SparseClipping,
        noises: NoiseBesideCount,
        max_grad_norm: float,
    ) -> "_Chances":
        stddev = noises.gradients * max_grad_norm
        noise = observation.optimizer.mechanism.noise
        spacing = noise.granularity(stddev=stddev) / stddev
        # Of a lattice of 1/16 and a threshold of 2, 33/16 is the least value beyond it,
        # which everything from 32.5/16 on is rounded to.
        least = rule.threshold
        if spacing:
            least = (math.floor(rule.threshold / spacing) + 1 / 2) * spacing
        touched = torch.tensor([float(len(rule.tables))], dtype=torch.float64)
        return cls(least, spacing, rule.weights(touched).item() / noises.count_stddev)

    def of_keeping(self, *, counted: bool) -> float:
        """Return how likely a row is kept that one record touched, or none."""
        return _beyond(self.least - (self.count if counted else 0.0))

    def kept(self, values_M: Floats, mean: float, *, counted: bool) -> Bools:
        """Return which rows were kept, drawing what cannot be seen.

        A kept row may have a gradient that is rounded to 0, as a row has that was not
        kept. Coins of the auditor tell such rows apart as often as they are either.
        """
        chance = self.of_keeping(counted=counted)
        of_zero = _beyond(-self.spacing / 2 - mean) - _beyond(self.spacing / 2 - mean)
        coin = chance * of_zero / (1 - chance + chance * of_zero)
        coins_M = np.random.default_rng().random(values_M.shape) < coin
        kept_M: Bools = (values_M != 0) | coins_M
        return kept_M


def _beyond(value: float) -> float:
    """Return how likely a standard normal number is beyond a value."""
    return math.erfc(value / math.sqrt(2)) / 2


def about_rows(observation: Observation) -> Iterator[Finding]:
    """Test which rows are kept, and the noise in them.

    Raises:
        UnsupportedOperationError: If the rule selects rows of one of the tables only.
    """
    rule = observation.optimizer.mechanism.clipping
    assert isinstance(rule, SparseClipping)  # noqa: S101 -- the caller has looked
    if len(rule.tables) != len(DIRECTION):
        raise UnsupportedOperationError(
            f"clipping=SparseClipping has tables={rule.tables!r}, and the model of this"
            " audit has two tables; let the training function take"
            " tables=SparseClipping.tables_of(model)"
        )
    seen = _seen(observation, rule)
    for drawn, where in ((False, "no record was drawn"), (True, "a record was drawn")):
        found = [rows for rows in seen[drawn] if rows.ps]
        if found:
            kept, expected = (
                sum(rows.num_kept for rows in found),
                sum(r.expected for r in found),
            )
            yield finding(
                f"rows: kept where {where}",
                *(p for rows in found for p in rows.ps),
                f"{kept} rows, of which {expected:.1f} are expected",
            )
    parts = [part_K for rows in seen.values() for r in rows for part_K in r.noise]
    noise_K = np.concatenate([np.empty(0), *parts])
    if noise_K.size:
        stddev = math.sqrt(float(np.square(noise_K).mean()))
        yield finding(
            "noise: scale in kept rows",
            variance_p(noise_K),
            mean_p(noise_K),
            f"{stddev:.4f} of the standard deviation that was charged",
        )


def _seen(observation: Observation, rule: SparseClipping) -> dict[bool, list[_Rows]]:
    """Return what is seen of both tables, where a record was drawn and where none was."""
    seen = {
        True: [_Rows(share) for share in DIRECTION],
        False: [_Rows(0.0), _Rows(0.0)],
    }
    drawn_TM, of_tables = observation.drawn(), observation.parts()
    sigmas_T = observation.noise_multipliers()[:, 0]
    for release, charge in enumerate(observation.charges):
        noises = charge.noise_beside_count
        if noises is None:  # It was not charged, which another finding tells.
            continue
        chances = _Chances.of(observation, rule, noises, charge.max_grad_norm)
        for table, values_TM in enumerate(of_tables):
            for drawn, rows in seen.items():
                values_M = values_TM[release, drawn_TM[release] == drawn]
                rows[table].add(values_M, chances, float(sigmas_T[release]))
    return seen
