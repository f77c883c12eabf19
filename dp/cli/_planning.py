"""The commands that answer before a run is made: ``epsilon`` and ``calibrate``."""

import math

import typer

from dp._typing import NeighboringRelation
from dp.accounting import Release, epsilon
from dp.calibration import calibrate_noise_multiplier
from dp.cli import _plots
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
    _check_run(sampling_probability, steps, delta, group_size)
    release = Release(
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
        count=steps,
    )
    spent = epsilon(
        [release], delta=delta, neighboring_relation=relation, group_size=group_size
    )
    if plot is not None:
        _plots.draw_epsilon_over_steps(
            plot, release, delta=delta, relation=relation, group_size=group_size
        )
    if spent.epsilon == math.inf:
        typer.echo("NOT PRIVATE: there is no noise, so epsilon is infinite")
        return
    typer.echo(
        f"epsilon = {spent.epsilon:.4f} at delta = {delta:g} ({_about(relation, group_size)},"
        f" {spent.accountant})"
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
    _check_run(sampling_probability, steps, delta, group_size)

    def least_noise(spent: float) -> float:
        return calibrate_noise_multiplier(
            target_epsilon=spent,
            target_delta=delta,
            sampling_probability=sampling_probability,
            steps=steps,
            neighboring_relation=relation,
            group_size=group_size,
        )

    sigma = least_noise(target_epsilon)
    if plot is not None:
        _plots.draw_noise_over_epsilon(
            plot,
            least_noise,
            around=target_epsilon,
            title=f"q = {sampling_probability:g}, {steps} steps, delta = {delta:g},"
            f" {_about(relation, group_size)}",
        )
    typer.echo(f"noise multiplier = {sigma:g} ({_about(relation, group_size)})")


def _about(relation: NeighboringRelation, group_size: int) -> str:
    return relation if group_size == 1 else f"{relation}, any {group_size} rows at once"


def _check_run(
    sampling_probability: float, steps: int, delta: float, group_size: int
) -> None:
    check(
        probability={"--sampling-probability": sampling_probability},
        open_unit={"--delta": delta},
        count={"--steps": steps, "--group-size": group_size},
    )
