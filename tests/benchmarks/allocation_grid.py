"""Hold random allocation against bounds from below: ``python tests/benchmarks/allocation_grid.py``.

For every setting: epsilon, a lower bound that is computed in another way (epsilon must
not be below it), epsilon of Poisson sampling with the same noise, the noise that each
needs for that epsilon, and how long it took. Fails if an epsilon is below its lower
bound, or if an evaluation takes more than 2 s of processor time.
``--write`` puts the table into docs/reference/accounting.md.
"""

import argparse
import sys
import time
from pathlib import Path

from dp.accounting import Release, epsilon
from dp.accounting._lower_bounds import lower_bound
from dp.calibration import calibrate_noise_multiplier


PAGE = Path(__file__).parents[2] / "docs/reference/accounting.md"
DELTA = 1e-5
MOST_SECONDS = 2.0
GRID = (
    (0.5, 1000, 1),
    (0.8, 1000, 1),
    (1.0, 1000, 1),
    (0.8, 100, 10),
    (1.0, 100, 10),
    (1.0, 1000, 10),
    (2.0, 100, 100),
    (4.0, 1000, 50),
    (0.3, 10_000, 3),
    (0.5, 2, 5),
    (1.0, 8, 3),
    (1.0, 10_000, 1),
)


def main() -> None:
    """Print a line a setting; exit with 1 if one is wrong or slow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines, wrong = [], 0
    for sigma, num_steps, passes in GRID:
        figures, holds = check(sigma, num_steps, passes)
        wrong += not holds
        lines.append(f"| {sigma:g} | {num_steps} | {passes} | {' | '.join(figures)} |")
        print(lines[-1], "" if holds else "WRONG", flush=True)  # noqa: T201
    if options.write:
        write(lines)
    sys.exit(bool(wrong))


def check(sigma: float, num_steps: int, passes: int) -> tuple[list[str], bool]:
    """Return the figures of one setting, and whether ours is right."""
    about = {
        "sampling_probability": 1 / num_steps,
        "noise_multiplier": sigma,
        "count": num_steps * passes,
    }
    allocated = Release(**about, steps_per_pass=num_steps)
    start = time.process_time()
    ours = _epsilon(allocated)
    seconds = time.process_time() - start
    below = lower_bound((allocated,), DELTA, 1200)
    poisson = _epsilon(Release(**about))
    noise = calibrate_noise_multiplier(
        target_epsilon=ours,
        target_delta=DELTA,
        sampling_probability=1 / num_steps,
        steps=num_steps * passes,
        neighboring_relation="add_or_remove_one",
    )
    figures = [
        f"{below:.5g}",
        f"{ours:.6g}",
        f"{poisson:.6g}",
        f"{noise:.4g}",
        f"{100 * (sigma / noise - 1):+.1f} %",
        f"{seconds:.2f}",
    ]
    return figures, below <= ours and seconds <= MOST_SECONDS


def _epsilon(release: Release) -> float:
    return epsilon(
        [release], delta=DELTA, neighboring_relation="add_or_remove_one"
    ).epsilon


def write(lines: list[str]) -> None:
    """Put the table where it belongs."""
    text = PAGE.read_text("utf-8")
    start, end = "<!-- allocation -->\n", "<!-- end of allocation -->\n"
    before, rest = text.split(start)
    head = (
        "| sigma | steps a pass | passes | lower bound | dp | Poisson sampling |"
        " its sigma for the same epsilon | noise against it | seconds |"
    )
    table = "\n".join([head, "| --- " * 9 + "|", *lines])
    PAGE.write_text(f"{before}{start}\n{table}\n\n{end}{rest.split(end)[1]}", "utf-8")


if __name__ == "__main__":
    main()
