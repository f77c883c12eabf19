"""Pictures that help to plan a run."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from dp._typing import NeighboringRelation
from dp.accounting import Release, epsilon_curve
from dp.cli._errors import InputError


__all__ = ("draw_epsilon_over_steps", "draw_noise_over_epsilon")

_NUM_POINTS: Final = 20
_POWERS: Final = (-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2)  # Of two.


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
    last = len(curve) - 1
    # Where epsilon_curve computes; between, it repeats the next value.
    steps = sorted(
        {math.ceil(last * i / _NUM_POINTS) for i in range(1, _NUM_POINTS + 1)}
    )
    _draw(
        path,
        (steps, [curve[step] for step in steps]),
        mark=(last, curve[-1], f"epsilon {curve[-1]:.4g}"),
        xlabel="step",
        ylabel="epsilon if planned to stop here",
        title=f"q = {release.sampling_probability:g}, noise multiplier ="
        f" {release.noise_multiplier:g}, delta = {delta:g}, {relation}"
        + ("" if group_size == 1 else f", any {group_size} rows at once"),
    )


def draw_noise_over_epsilon(
    path: Path,
    least_noise: Callable[[float], float],
    *,
    asked: tuple[float, float],
    title: str,
) -> None:
    """Draw the least noise multiplier for epsilons from a quarter to four times one.

    Args:
        path: Where to.
        least_noise: Returns it for an epsilon.
        asked: The epsilon that was asked about, and its noise multiplier, to be marked.
        title: What else is fixed.

    Raises:
        InputError: If the picture cannot be written.
    """
    target, sigma = asked
    epsilons = [target * 2.0**power for power in _POWERS if power]
    points = sorted([asked, *((spent, least_noise(spent)) for spent in epsilons)])
    _draw(
        path,
        tuple(zip(*points, strict=True)),
        mark=(target, sigma, f"epsilon {target:.4g}: {sigma:.4g}"),
        xlabel="epsilon",
        ylabel="least noise multiplier",
        title=title,
        xscale="log",
        yscale="log",
    )


def _draw(
    path: Path,
    points: tuple[Sequence[float], ...],
    *,
    mark: tuple[float, float, str],
    **about: str,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*points, color="tab:red")
    axes.margins(y=0.12)  # Room for the words above the mark.
    x, y, words = mark
    axes.plot([x], [y], "o", color="tab:blue")
    falls = points[1][0] > points[1][-1]
    axes.annotate(
        words,
        (x, y),
        (8 if falls else -8, 6),  # Where the curve is not.
        textcoords="offset points",
        ha="left" if falls else "right",
        color="tab:blue",
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.set(**about)
    if about.get("xscale") == "log":
        _write_plainly(axes)
    else:
        axes.set(xlim=(0, None), ylim=(0, None))
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {path} cannot be written: {error}") from error


def _write_plainly(axes: Any) -> None:
    """Write ticks of logarithmic axes as numbers, and not as powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
