"""The commands that answer before a run is made: ``epsilon`` and ``calibrate``."""

import math
from dataclasses import dataclass
from typing import final

import typer

from dp._typing import NeighboringRelation
from dp.accounting import Guarantee, Release, epsilon
from dp.calibration import calibrate_noise_multiplier
from dp.cli import _plots
from dp.cli._options import (
    Delta,
    Epsilon,
    NoiseMultiplier,
    Plot,
    Probability,
    Relation,
    Steps,
    check,
)


__all__ = ("calibrate_command", "epsilon_command")


@final
@dataclass(frozen=True, slots=True)
class _Run:
    """A run that is planned, but for its noise: what both commands are asked about."""

    sampling_probability: float
    steps: int
    delta: float
    relation: NeighboringRelation

    def __post_init__(self) -> None:
        check(
            probability={"--sampling-probability": self.sampling_probability},
            open_unit={"--delta": self.delta},
            count={"--steps": self.steps},
        )

    def release(self, noise_multiplier: float) -> Release:
        """Return what it releases with so much noise."""
        return Release(
            sampling_probability=self.sampling_probability,
            noise_multiplier=noise_multiplier,
            count=self.steps,
        )

    def spent(self, noise_multiplier: float) -> Guarantee:
        """Return what it costs with so much noise."""
        return epsilon(
            [self.release(noise_multiplier)],
            delta=self.delta,
            neighboring_relation=self.relation,
        )

    def least_noise(self, target_epsilon: float) -> float:
        """Return the least noise multiplier with which it costs so much."""
        return calibrate_noise_multiplier(
            target_epsilon=target_epsilon,
            target_delta=self.delta,
            sampling_probability=self.sampling_probability,
            steps=self.steps,
            neighboring_relation=self.relation,
        )


def epsilon_command(
    *,
    noise_multiplier: NoiseMultiplier,
    sampling_probability: Probability,
    steps: Steps,
    delta: Delta = 1e-5,
    relation: Relation = "add_or_remove_one",
    plot: Plot = None,
) -> None:
    """Print the epsilon of a run before it is made; optionally plot it by step."""
    check(non_negative={"--noise-multiplier": noise_multiplier})
    run = _Run(sampling_probability, steps, delta, relation)
    spent = run.spent(noise_multiplier)
    if plot is not None:
        release = run.release(noise_multiplier)
        _plots.draw_epsilon_over_steps(plot, release, delta=delta, relation=relation)
    typer.echo(
        "NOT PRIVATE: there is no noise, so epsilon is infinite"
        if spent.epsilon == math.inf
        else f"epsilon = {spent.epsilon:.4f} at delta = {delta:g} ({relation},"
        f" {spent.accountant})"
    )


def calibrate_command(
    *,
    target_epsilon: Epsilon,
    sampling_probability: Probability,
    steps: Steps,
    delta: Delta = 1e-5,
    relation: Relation = "add_or_remove_one",
    plot: Plot = None,
) -> None:
    """Print the least noise multiplier that keeps an epsilon; optionally plot it."""
    check(positive={"--epsilon": target_epsilon})
    run = _Run(sampling_probability, steps, delta, relation)
    sigma = run.least_noise(target_epsilon)
    if plot is not None:
        _plots.draw_noise_over_epsilon(
            plot,
            run.least_noise,
            around=target_epsilon,
            title=f"q = {sampling_probability:g}, {steps} steps, delta = {delta:g},"
            f" {relation}",
        )
    typer.echo(f"noise multiplier = {sigma:g} ({relation})")
