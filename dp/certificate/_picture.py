"""Certificates as a picture."""

import math
from pathlib import Path

from dp.accounting import epsilon_curve
from dp.certificate._statement import Statement


__all__ = ("draw",)


def draw(c: Statement, path: Path) -> None:
    """Draw epsilon over the steps beside epsilon of groups."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    over_steps, of_groups = figure.subplots(1, 2, width_ratios=[2, 1])
    if not c.is_private:
        figure.suptitle("NOT PRIVATE: a release had no noise", color="tab:red")
    else:
        figure.suptitle(
            f"epsilon = {c.epsilon:.3f} at delta = {c.delta:g}"
            f" ({c.neighboring_relation}, {c.unit_of_privacy})"
        )
        curve = epsilon_curve(
            [charge.to_release() for charge in c.charges],
            delta=c.delta,
            neighboring_relation=c.neighboring_relation,
            group_size=c.group_size,
        )
        over_steps.plot(range(len(curve)), curve, color="tab:red")
        finite = {k: e for k, e in c.epsilon_of_groups.items() if math.isfinite(e)}
        finite[c.group_size] = c.epsilon
        sizes = sorted(finite)
        of_groups.bar([*map(str, sizes)], [finite[size] for size in sizes])
    for run in c.runs if len(c.runs) == 1 else ():
        if run.plan.target_epsilon is not None:
            over_steps.axhline(run.plan.target_epsilon, ls=":", label="target")
            over_steps.legend()
    over_steps.set(xlabel="step", ylabel="epsilon spent", ylim=(0, None))
    of_groups.set(xlabel="units that differ", ylabel="epsilon", ylim=(0, None))
    figure.savefig(path, dpi=150)
