"""Pictures that help to plan a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dp._typing import NeighboringRelation
from dp.accounting import Release, epsilon_curve
from dp.cli._errors import InputError


__all__ = ("draw_epsilon_over_steps", "draw_noise_over_epsilon")


def draw_epsilon_over_steps(
    path: Path,
    release: Release,
    *,
    delta: float,
    relation: NeighboringRelation,
    group_size: int,
) -> None:
    """Draw an upper bound on epsilon after every step.

    Raises:
        InputError: If the picture cannot be written.
    """
    curve = epsilon_curve(
        [release], delta=delta, neighboring_relation=relation, group_size=group_size
    )
    _draw(
        path,
        (range(len(curve)), curve),
        xlabel="step",
        ylabel="epsilon if planned to stop here",
        title=f"q = {release.sampling_probability:g}, noise multiplier ="
        f" {release.noise_multiplier:g}, delta = {delta:g}, {relation}"
        + ("" if group_size == 1 else f", any {group_size} rows at once"),
    )


def draw_noise_over_epsilon(
    path: Path, least_noise: Callable[[float], float], *, around: float, title: str
) -> None:
    """Draw the least noise multiplier for epsilons from a quarter to four times one.

    Raises:
        InputError: If the picture cannot be written.
    """
    epsilons = [around * 2.0**power for power in (-2, -1, 0, 1, 2)]
    _draw(
        path,
        (epsilons, [least_noise(spent) for spent in epsilons]),
        marker=".",
        xlabel="epsilon",
        ylabel="least noise multiplier",
        title=title,
        xscale="log",
        yscale="log",
    )


def _draw(
    path: Path,
    points: tuple[Sequence[float], Sequence[float]],
    *,
    marker: str = "",
    **about: str,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*points, marker=marker, color="tab:red")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.set(**about)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {path} cannot be written: {error}") from error
