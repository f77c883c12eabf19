"""Hold epsilon against others: ``python tests/benchmarks/accounting_grid.py``.

For every setting: ours, ``PLDAccountant`` of dp-accounting in buckets of the same width
(ours must equal it to 1e-6), a rigorous lower bound (losses rounded down; ours must not be below it), and
Opacus' RDP and PRV (ours must not be above them by more than their stated error). Fails
if one does not hold. ``--plan`` times calibration instead: at most 10 s of processor time a setting.
``--write`` puts the table into docs/reference/accounting.md.

Needs ``pip install opacus``.
"""

import argparse
import itertools
import math
import sys
import time
import warnings
from pathlib import Path

from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation

import dp
from dp.accounting import Guarantee, Release, epsilon, to_dp_event


PAGE = Path(__file__).parents[2] / "docs/reference/accounting.md"
GRID = list(
    itertools.product(
        (0.5, 0.8, 1.0, 2.0, 4.0), (0.001, 0.004, 0.01, 0.1), (1000, 10_000)
    )
)
DELTA = 1e-5
PRV_ERROR = 0.01


def main() -> None:
    """Print a line a setting; exit with 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", action="store_true", help="time calibration instead")
    parser.add_argument("--every", type=int, default=1, help="take every n-th setting")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    settings = GRID[:: options.every]
    if options.plan:
        sys.exit(time_planning())
    lines, wrong = [], 0
    for sigma, q, steps in settings:
        figures, holds = check(sigma, q, steps)
        wrong += not holds
        lines.append(f"| {sigma:g} | {q:g} | {steps} | {' | '.join(figures)} |")
        print(lines[-1], "" if holds else "WRONG", flush=True)  # noqa: T201
    if options.write:
        text = PAGE.read_text("utf-8")
        start, end = "<!-- grid -->\n", "<!-- end of grid -->\n"
        before, rest = text.split(start)
        head = (
            "| sigma | q | steps | lower bound | dp | dp-accounting | of which |"
            " Opacus RDP | Opacus PRV | seconds |"
        )
        table = "\n".join([head, "| --- " * 10 + "|", *lines])
        PAGE.write_text(
            f"{before}{start}\n{table}\n\n{end}{rest.split(end)[1]}", "utf-8"
        )
    sys.exit(bool(wrong))


def check(sigma: float, q: float, steps: int) -> tuple[list[str], bool]:
    """Return the figures of one setting, and whether ours is right."""
    release = Release(sampling_probability=q, noise_multiplier=sigma, count=steps)
    start = time.process_time()
    ours: Guarantee = epsilon(
        [release], delta=DELTA, neighboring_relation="add_or_remove_one"
    )
    seconds = time.process_time() - start
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, ours.interval)
    accountant.compose(to_dp_event([release]))
    theirs = accountant.get_epsilon(DELTA)
    below = lower_bound(sigma, q, steps)
    rdp, prv = opacus(sigma, q, steps)
    holds = ours.epsilon >= below
    if ours.accountant == "PLD":  # Beyond epsilons that say anything, RDP is smaller.
        holds = (
            holds
            and math.isclose(ours.epsilon_pld, theirs, rel_tol=1e-6)
            and ours.epsilon <= rdp * (1 + 1e-6)
            and not ours.epsilon > prv + PRV_ERROR  # It may not be a number.
        )
    figures = [
        f"{below:.4g}",
        f"{ours.epsilon:.6g}",
        f"{theirs:.6g}",
        ours.accountant,
        f"{rdp:.4g}",
        f"{prv:.4g}",
        f"{seconds:.2f}",
    ]
    return figures, holds


def lower_bound(sigma: float, q: float, steps: int) -> float:
    """Return an epsilon that the mechanism certainly exceeds or equals."""
    optimistic = pld.from_gaussian_mechanism(
        standard_deviation=sigma,
        sampling_prob=q,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=1e-4,
    )
    return max(0.0, optimistic.self_compose(steps).get_epsilon_for_delta(DELTA))


def opacus(sigma: float, q: float, steps: int) -> tuple[float, float]:
    """Return the bounds of Opacus' accountants; NaN where one gives up."""
    from opacus.accountants import PRVAccountant, RDPAccountant  # noqa: PLC0415

    found = []
    for accountant in (RDPAccountant(), PRVAccountant()):
        accountant.history = [(sigma, q, steps)]
        try:
            options = (
                {}
                if isinstance(accountant, RDPAccountant)
                else {"eps_error": PRV_ERROR}
            )
            found.append(float(accountant.get_epsilon(DELTA, **options)))
        except (ArithmeticError, RuntimeError, ValueError):
            found.append(math.nan)
    return found[0], found[1]


def time_planning() -> bool:
    """Calibrate the noise for four epsilons; return whether one took too long."""
    slow = False
    for target in (0.1, 1.0, 3.0, 8.0):
        for q, steps in itertools.product((0.001, 0.01, 0.1), (1000, 10_000)):
            start = time.process_time()
            plan = dp.plan_for(
                target_epsilon=target,
                target_delta=DELTA,
                steps=steps,
                sampling_probability=q,
                expected_batch_size=1,
                max_grad_norm=1.0,
            )
            seconds = time.process_time() - start
            spent = plan.guarantee().epsilon
            over = seconds > 10 or spent > target
            slow = slow or over
            print(  # noqa: T201
                f"epsilon {target:g}, q {q:g}, {steps} steps: noise multiplier"
                f" {plan.noise_multiplier}, epsilon {spent:.5f}, {seconds:.1f} s",
                "TOO SLOW OR TOO MUCH" if over else "",
                flush=True,
            )
    return slow


if __name__ == "__main__":
    main()
