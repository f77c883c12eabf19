"""The commands that answer before a run is made: ``epsilon`` and ``calibrate``."""

import math
from typing import Final

import typer

from dp._typing import NeighboringRelation
from dp.accounting import Release, epsilon
from dp.calibration import calibrate_noise_multiplier, rough_noise_multiplier
from dp.cli import _neighbourhood, _plots
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

_ROUGH: Final = 2e-3


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
    _check_run(sampling_probability, steps, delta)
    release = Release(
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
        count=steps,
    )
    spent = epsilon([release], delta=delta, neighboring_relation=relation)
    if plot is not None:
        _plots.draw_epsilon_over_steps(plot, release, delta=delta, relation=relation)
    if spent.epsilon == math.inf:
        typer.echo("NOT PRIVATE: there is no noise, so epsilon is infinite")
        return
    typer.echo(
        f"epsilon = {spent.epsilon:.4f} at delta = {delta:g} ({relation},"
        f" {spent.accountant})\n"
    )

    def epsilon_at(q: float, count: int) -> float:
        return _rough_epsilon(noise_multiplier, q, count, delta, relation)

    _tell(
        _neighbourhood.table(
            "epsilon", epsilon_at, q=sampling_probability, steps=steps
        ),
        _neighbourhood.code_of_plan(
            q=sampling_probability,
            steps=steps,
            sigma=noise_multiplier,
            delta=delta,
            relation=relation,
        ),
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
    _check_run(sampling_probability, steps, delta)

    def least_noise(spent: float) -> float:
        return calibrate_noise_multiplier(
            target_epsilon=spent,
            target_delta=delta,
            sampling_probability=sampling_probability,
            steps=steps,
            neighboring_relation=relation,
        )

    sigma = least_noise(target_epsilon)
    if plot is not None:
        _plots.draw_noise_over_epsilon(
            plot,
            least_noise,
            around=target_epsilon,
            title=f"q = {sampling_probability:g}, {steps} steps, delta = {delta:g},"
            f" {relation}",
        )
    typer.echo(f"noise multiplier = {sigma:g} ({relation})\n")
    _tell(
        _neighbourhood.table(
            "noise multiplier",
            lambda q, count: rough_noise_multiplier(
                target_epsilon=target_epsilon,
                target_delta=delta,
                sampling_probability=q,
                steps=count,
                neighboring_relation=relation,
            ),
            q=sampling_probability,
            steps=steps,
        ),
        _neighbourhood.code_of_calibrated_plan(
            q=sampling_probability,
            steps=steps,
            target_epsilon=target_epsilon,
            delta=delta,
            relation=relation,
        ),
    )


def _rough_epsilon(
    sigma: float, q: float, count: int, delta: float, relation: NeighboringRelation
) -> float:
    """Return an epsilon for a table: in wide buckets, which takes less time."""
    release = Release(sampling_probability=q, noise_multiplier=sigma, count=count)
    return epsilon(
        [release], delta=delta, neighboring_relation=relation, tolerance=_ROUGH
    ).epsilon


def _tell(table: str, code: str) -> None:
    typer.echo(f"{table}\n\nThe plan of such a run:\n\n{code}")


def _check_run(sampling_probability: float, steps: int, delta: float) -> None:
    check(
        probability={"--sampling-probability": sampling_probability},
        open_unit={"--delta": delta},
        count={"--steps": steps},
    )
