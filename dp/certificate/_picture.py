"""Certificates as a picture."""

import math
from pathlib import Path
from typing import Any, Final

from dp.accounting import epsilon_curve
from dp.certificate._statement import Statement
from dp.certificate._text import RELATIONS, why_not


__all__ = ("draw", "epsilon_over_steps")

_NUM_POINTS: Final = 20


def draw(c: Statement, path: Path) -> None:
    """Draw epsilon over the planned number of steps beside epsilon of groups."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    over_steps, of_groups = figure.subplots(1, 2, width_ratios=[2, 1])
    if not c.is_private:
        figure.suptitle(f"NOT PRIVATE: {why_not(c)}", color="tab:red")
    else:
        figure.suptitle(
            f"epsilon = {c.epsilon:.3f} at delta = {c.delta:g}"
            f" ({c.unit_of_privacy}; {RELATIONS[c.neighboring_relation]})"
        )
        _draw_over_steps(c, over_steps)
        finite = {k: e for k, e in c.epsilon_of_groups.items() if math.isfinite(e)}
        finite[c.group_size] = c.epsilon
        sizes = sorted(finite)
        of_groups.bar([*map(str, sizes)], [finite[size] for size in sizes])
    over_steps.set(
        title="Epsilon over the steps",
        xlabel="step",
        ylabel="epsilon if planned to stop here",
        xlim=(0, None),
        ylim=(0, None),
    )
    of_groups.set(
        title="Of several units at once",
        xlabel="units that differ",
        ylabel="epsilon",
        ylim=(0, None),
    )
    figure.savefig(path, dpi=150)


def _draw_over_steps(c: Statement, axes: Any) -> None:
    """Draw what a run of each length would have cost, and where this one ended."""
    curve = epsilon_over_steps(c)
    if curve:
        axes.plot(*zip(*curve, strict=True), color="tab:red")
    else:
        axes.axhline(c.epsilon, color="tab:red", label=c.accountant)
    if any(run.remaining for run in c.runs):
        axes.axvline(c.steps, color="tab:gray", ls="--", label="ended here")
    for run in c.runs if len(c.runs) == 1 else ():
        if run.plan.target_epsilon is not None:
            axes.axhline(run.plan.target_epsilon, ls=":", label="target")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def epsilon_over_steps(c: Statement) -> list[tuple[float, float]]:
    """Return what runs of some numbers of steps would have cost, planned so.

    Under a Renyi filter there is no such curve: its epsilon holds at any end. Nor is
    there one of a run without steps.
    """
    if any(run.plan.renyi_order is not None for run in c.runs):
        return []
    charged = [charge.to_release() for charge in c.charges]
    curve = epsilon_curve(
        [*charged, *(release for run in c.runs for release in run.remaining)],
        delta=c.delta,
        neighboring_relation=c.neighboring_relation,
        group_size=c.group_size,
    )
    last = len(curve) - 1
    # Where epsilon_curve computes; between, it repeats the next value.
    points = sorted({math.ceil(last * i / _NUM_POINTS) for i in range(_NUM_POINTS + 1)})
    return [(step, curve[step]) for step in points if step]
