"""The commands that answer before a run is made: ``epsilon`` and ``calibrate``."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, final

import typer

from dp._typing import NeighboringRelation
from dp.accounting import Guarantee, Release, epsilon
from dp.calibration import calibrate_noise_multiplier, rough_noise_multiplier
from dp.cli import _neighbourhood, _plots
from dp.cli._options import (
    Delta,
    Epsilon,
    GroupSize,
    NoiseMultiplier,
    Plot,
    Probability,
    Relation,
    Steps,
    check,
)


__all__ = ("calibrate_command", "epsilon_command")

_ROUGH: Final = 2e-3  # In wide buckets, which takes less time.


@final
@dataclass(frozen=True, slots=True)
class _Run:
    """A run that is planned, but for its noise: what both commands are asked about."""

    sampling_probability: float
    steps: int
    delta: float
    relation: NeighboringRelation
    group_size: int

    def __post_init__(self) -> None:
        check(
            probability={"--sampling-probability": self.sampling_probability},
            open_unit={"--delta": self.delta},
            count={"--steps": self.steps, "--group-size": self.group_size},
        )

    def release(self, noise_multiplier: float) -> Release:
        """Return what it releases with so much noise."""
        return Release(
            sampling_probability=self.sampling_probability,
            noise_multiplier=noise_multiplier,
            count=self.steps,
        )

    def spent(self, noise_multiplier: float, **precision: Any) -> Guarantee:
        """Return what it costs with so much noise."""
        return epsilon(
            [self.release(noise_multiplier)],
            delta=self.delta,
            neighboring_relation=self.relation,
            group_size=self.group_size,
            **precision,
        )

    def least_noise(
        self,
        target_epsilon: float,
        *,
        find: Callable[..., float] = calibrate_noise_multiplier,
    ) -> float:
        """Return the least noise multiplier with which it costs so much."""
        return find(
            target_epsilon=target_epsilon,
            target_delta=self.delta,
            sampling_probability=self.sampling_probability,
            steps=self.steps,
            neighboring_relation=self.relation,
            group_size=self.group_size,
        )

    def roughly_spent(self, noise_multiplier: float) -> float:
        """Return about what it costs, in less time."""
        return self.spent(noise_multiplier, tolerance=_ROUGH).epsilon

    def rough_noise(self, target_epsilon: float) -> float:
        """Return about the least noise multiplier, in less time."""
        return self.least_noise(target_epsilon, find=rough_noise_multiplier)

    def nearby(self, what: str, number: Callable[["_Run"], float]) -> str:
        """Return a number of runs with about as many steps and as much sampling."""
        return _neighbourhood.table(
            what,
            lambda q, steps: number(replace(self, sampling_probability=q, steps=steps)),
            q=self.sampling_probability,
            steps=self.steps,
        )

    def public_numbers(self) -> dict[str, str]:
        """Return the arguments of a plan that both commands know, as code."""
        numbers = {"neighboring_relation": f'"{self.relation}"'}
        if self.group_size != 1:
            numbers["group_size"] = str(self.group_size)
        return numbers

    @property
    def neighbours(self) -> str:
        """What the guarantee is about, in a word or two."""
        if self.group_size == 1:
            return self.relation
        return f"{self.relation}, any {self.group_size} rows at once"


def epsilon_command(
    *,
    noise_multiplier: NoiseMultiplier,
    sampling_probability: Probability,
    steps: Steps,
    delta: Delta = 1e-5,
    relation: Relation = "add_or_remove_one",
    group_size: GroupSize = 1,
    plot: Plot = None,
) -> None:
    """Print the epsilon of a run before it is made; optionally plot it by step."""
    check(non_negative={"--noise-multiplier": noise_multiplier})
    run = _Run(sampling_probability, steps, delta, relation, group_size)
    spent = run.spent(noise_multiplier)
    if plot is not None:
        _plots.draw_epsilon_over_steps(
            plot,
            run.release(noise_multiplier),
            delta=delta,
            relation=relation,
            group_size=group_size,
        )
    typer.echo(
        "NOT PRIVATE: there is no noise, so epsilon is infinite"
        if spent.epsilon == math.inf
        else f"epsilon = {spent.epsilon:.4f} at delta = {delta:g} ({run.neighbours},"
        f" {spent.accountant})"
    )
    if spent.epsilon < math.inf:
        _tell(
            run.nearby("epsilon", lambda other: other.roughly_spent(noise_multiplier)),
            _neighbourhood.code_of_plan(
                q=sampling_probability,
                steps=steps,
                sigma=noise_multiplier,
                delta=delta,
                others=run.public_numbers(),
            ),
        )


def calibrate_command(
    *,
    target_epsilon: Epsilon,
    sampling_probability: Probability,
    steps: Steps,
    delta: Delta = 1e-5,
    relation: Relation = "add_or_remove_one",
    group_size: GroupSize = 1,
    plot: Plot = None,
) -> None:
    """Print the least noise multiplier that keeps an epsilon; optionally plot it."""
    check(positive={"--epsilon": target_epsilon})
    run = _Run(sampling_probability, steps, delta, relation, group_size)
    sigma = run.least_noise(target_epsilon)
    if plot is not None:
        _plots.draw_noise_over_epsilon(
            plot,
            run.least_noise,
            around=target_epsilon,
            title=f"q = {sampling_probability:g}, {steps} steps, delta = {delta:g},"
            f" {run.neighbours}",
        )
    typer.echo(f"noise multiplier = {sigma:g} ({run.neighbours})")
    _tell(
        run.nearby("noise multiplier", lambda other: other.rough_noise(target_epsilon)),
        _neighbourhood.code_of_calibrated_plan(
            q=sampling_probability,
            steps=steps,
            target_epsilon=target_epsilon,
            delta=delta,
            others=run.public_numbers(),
        ),
    )


def _tell(table: str, code: str) -> None:
    typer.echo(f"\n{table}\n\nThe plan of such a run:\n\n{code}")
