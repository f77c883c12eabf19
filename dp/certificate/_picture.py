"""Certificates as a picture."""

import math
from pathlib import Path
from typing import Any, Final

from dp._reports import bound
from dp.accounting import epsilon_curve, risk_curve
from dp.certificate._numbers import together
from dp.certificate._statement import Statement
from dp.certificate._text import RELATIONS, why_not


__all__ = ("attack_curve", "draw", "epsilon_over_steps", "targets")

_NUM_POINTS: Final = 20


def draw(c: Statement, path: Path, target_epsilon: float | None) -> None:
    """Draw epsilon over the planned number of steps beside epsilon of groups."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    over_steps, of_groups, of_attacks = figure.subplots(1, 3, width_ratios=[2, 1, 1.3])
    if not c.is_private:
        figure.suptitle(f"NOT PRIVATE: {why_not(c)}", color="tab:red")
    else:
        figure.suptitle(
            f"epsilon = {bound(c.epsilon, 3)} at delta = {c.delta:g}"
            f" ({c.unit_of_privacy}; {RELATIONS[c.neighboring_relation]})"
        )
        _draw_over_steps(c, over_steps, target_epsilon)
        finite = {k: e for k, e in c.epsilon_of_groups.items() if math.isfinite(e)}
        finite[c.group_size] = c.epsilon
        sizes = sorted(finite)
        of_groups.bar([*map(str, sizes)], [finite[size] for size in sizes])
        of_attacks.plot(*zip(*attack_curve(c), strict=True), color="tab:red")
    of_attacks.plot([0, 1], [0, 1], ":", label="guessing")
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
    of_attacks.set(
        title="What an attack can find",
        xlabel="false alarms, a share",
        ylabel="found at most, a share",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    of_attacks.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def _draw_over_steps(c: Statement, axes: Any, target_epsilon: float | None) -> None:
    """Draw what a run of each length would have cost, and where this one ended."""
    curve = epsilon_over_steps(c)
    if curve:
        axes.plot(*zip(*curve, strict=True), color="tab:red")
    else:
        axes.axhline(c.epsilon, color="tab:red", label=c.accountant)
    if any(run.remaining for run in c.runs):
        axes.axvline(c.steps, color="tab:gray", ls="--", label="ended here")
    for target, label in targets(c, target_epsilon):
        axes.axhline(target, ls=":", label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def epsilon_over_steps(c: Statement) -> list[tuple[float, float]]:
    """Return what runs of some numbers of steps would have cost, planned so.

    Under a Renyi filter there is no such curve: its epsilon holds at any end. Nor is
    there one of a run without steps.
    """
    if _is_filtered(c):
        return []
    queries = [release for run in c.runs for release in run.plan.query_releases]
    charged = [charge.to_release() for charge in c.charges]
    curve = epsilon_curve(
        [*queries, *charged, *(release for run in c.runs for release in run.remaining)],
        delta=c.delta,
        neighboring_relation=c.neighboring_relation,
        group_size=c.group_size,
    )
    # Queries are counted from the start, and are no steps.
    curve = curve[sum(release.count for release in queries) :]
    last = len(curve) - 1
    # About where epsilon_curve computes; between, it repeats the next value.
    points = sorted({math.ceil(last * i / _NUM_POINTS) for i in range(_NUM_POINTS + 1)})
    return [(step, curve[step]) for step in points if step]


def targets(
    c: Statement, target_epsilon: float | None = None
) -> list[tuple[float, str]]:
    """Return the epsilons that were aimed at, in ascending order, and whose they are.

    *target_epsilon* is that of all runs together, if there was one. Any other is one
    run's, which what several cost together may well exceed.
    """
    if target_epsilon is not None:
        return [(target_epsilon, f"target {target_epsilon:.4g}")]
    numbers: dict[tuple[float, float], list[int]] = {}
    for number, run in enumerate(c.runs, start=1):
        if run.plan.target_epsilon is not None:
            target = run.plan.target_epsilon, run.plan.target_delta
            numbers.setdefault(target, []).append(number)
    return [
        (epsilon, _words_of_target(c, epsilon, delta, of_runs))
        for (epsilon, delta), of_runs in sorted(numbers.items())
    ]


def _words_of_target(
    c: Statement, epsilon: float, delta: float, of_runs: list[int]
) -> str:
    if len(c.runs) == 1:
        return f"target {epsilon:.4g}"
    whose = "each run"
    if len(of_runs) < len(c.runs):
        several = f"each of {len(of_runs)} runs"
        whose = f"run {of_runs[0]}" if len(of_runs) == 1 else several
    elsewhere = "" if delta == c.delta else f" at delta {delta:g}"
    return f"target of {whose}: {epsilon:.4g}{elsewhere}"


def attack_curve(c: Statement) -> list[tuple[float, float]]:
    """Return the most that an attack finds, by its share of false alarms.

    None is drawn under a Renyi filter, nor where nothing was released.
    """
    claimed = together(c.runs, claimed=True)
    if _is_filtered(c) or not claimed:
        return []
    return list(
        risk_curve(
            claimed,
            neighboring_relation=c.neighboring_relation,
            group_size=c.group_size,
            delta=c.delta,
            interval=c.intervals.get("epsilon"),
        )
    )


def _is_filtered(c: Statement) -> bool:
    return any(run.plan.renyi_order is not None for run in c.runs)
