"""The commands that answer before a run is made: ``epsilon`` and ``calibrate``."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, final

import typer

from dp._reports import bound
from dp._typing import NeighboringRelation
from dp.accounting import Guarantee, Release, Risk, epsilon, risk
from dp.calibration import (
    RiskTarget,
    calibrate_noise_multiplier,
    rough_noise_multiplier,
)
from dp.cli import _neighbourhood, _plots
from dp.cli._errors import InputError
from dp.cli._options import (
    Advantage,
    Delta,
    GroupSize,
    NoiseMultiplier,
    OddsFactor,
    Plot,
    Probability,
    Relation,
    Steps,
    TargetEpsilon,
    TprAt100,
    TprAt1000,
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

    def risk(self, noise_multiplier: float) -> Risk:
        """Return what anyone can find out with so much noise."""
        return risk(
            [self.release(noise_multiplier)],
            neighboring_relation=self.relation,
            group_size=self.group_size,
            delta=self.delta,
        )

    def least_noise(
        self,
        goal: "_Goal",
        *,
        find: Callable[..., float] = calibrate_noise_multiplier,
    ) -> float:
        """Return the least noise multiplier with which it keeps a goal."""
        return find(
            target_epsilon=goal.epsilon,
            target_risk=goal.risk,
            target_delta=self.delta,
            sampling_probability=self.sampling_probability,
            steps=self.steps,
            neighboring_relation=self.relation,
            group_size=self.group_size,
        )

    def roughly_spent(self, noise_multiplier: float) -> float:
        """Return about what it costs, in less time."""
        return self.spent(noise_multiplier, tolerance=_ROUGH).epsilon

    def rough_noise(self, goal: "_Goal") -> float:
        """Return about the least noise multiplier, in less time."""
        return self.least_noise(goal, find=rough_noise_multiplier)

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


@final
@dataclass(frozen=True, slots=True)
class _Goal:
    """What noise is to keep: an epsilon, or a risk."""

    epsilon: float | None
    risk: RiskTarget | None = None

    @classmethod
    def of(cls, epsilon: float | None, **risks: float | None) -> "_Goal":
        """Return what the options ask for.

        Raises:
            InputError: If they ask for both or neither, or for what cannot be kept.
        """
        names = ", ".join(f"--{name.replace('_', '-')}" for name in risks)
        is_risk = any(value is not None for value in risks.values())
        if is_risk == (epsilon is not None):
            raise InputError(
                f"give either --epsilon or a risk ({names}), one of the two"
            )
        check(positive={"--epsilon": epsilon})
        try:
            return cls(epsilon, RiskTarget(**risks) if is_risk else None)
        except ValueError as error:
            name, *rest = str(error).split(" ")
            message = " ".join([f"--{name.replace('_', '-')}", *rest])
            raise InputError(message) from error

    @property
    def code(self) -> dict[str, str]:
        """The argument of a plan that says so."""
        if self.risk is None:
            return {"target_epsilon": repr(self.epsilon)}
        given = ", ".join(f"{name}={x!r}" for name, x in self.risk.given.items())
        return {"target_risk": f"dp.RiskTarget({given})"}


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
    """Print the epsilon and the risk of a run before it is made; optionally plot it."""
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
    if spent.epsilon == math.inf:
        typer.echo("NOT PRIVATE: there is no noise, so epsilon is infinite")
        return
    typer.echo(_claim(run, spent))
    _tell_risk(run, noise_multiplier)
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
    target_epsilon: TargetEpsilon = None,
    advantage: Advantage = None,
    tpr_at_1_in_100: TprAt100 = None,
    tpr_at_1_in_1000: TprAt1000 = None,
    odds_factor: OddsFactor = None,
    sampling_probability: Probability,
    steps: Steps,
    delta: Delta = 1e-5,
    relation: Relation = "add_or_remove_one",
    group_size: GroupSize = 1,
    plot: Plot = None,
) -> None:
    """Print the least noise multiplier that keeps an epsilon, or a risk.

    Every risk that is given is kept.
    """
    goal = _Goal.of(
        target_epsilon,
        advantage=advantage,
        tpr_at_1_in_100=tpr_at_1_in_100,
        tpr_at_1_in_1000=tpr_at_1_in_1000,
        odds_factor=odds_factor,
    )
    run = _Run(sampling_probability, steps, delta, relation, group_size)
    sigma = run.least_noise(goal)
    spent = run.spent(sigma)
    if plot is not None:
        _plots.draw_noise_over_epsilon(
            plot,
            lambda target: run.least_noise(_Goal(target)),
            asked=(goal.epsilon or spent.epsilon, sigma),
            title=f"q = {sampling_probability:g}, {steps} steps, delta = {delta:g},"
            f" {run.neighbours}",
        )
    typer.echo(f"noise multiplier = {sigma:g} ({run.neighbours})")
    if goal.risk is not None:
        typer.echo(_claim(run, spent))
    _tell_risk(run, sigma)
    _tell(
        run.nearby("noise multiplier", lambda other: other.rough_noise(goal)),
        _neighbourhood.code_of_calibrated_plan(
            goal.code,
            q=sampling_probability,
            steps=steps,
            delta=delta,
            others=run.public_numbers(),
        ),
    )


def _claim(run: _Run, spent: Guarantee) -> str:
    return (
        f"epsilon = {bound(spent.epsilon)} at delta = {run.delta:g} ({run.neighbours},"
        f" {spent.accountant})"
    )


def _tell_risk(run: _Run, noise_multiplier: float) -> None:
    at_risk = run.risk(noise_multiplier)
    for sentence in at_risk.sentences(run.relation, group_size=run.group_size):
        typer.echo(f"- {sentence}")


def _tell(table: str, code: str) -> None:
    typer.echo(f"\n{table}\n\nThe plan of such a run:\n\n{code}")
