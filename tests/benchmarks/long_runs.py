"""Train every example and how-to for 1000 steps, and count what is told without cause.

    python tests/benchmarks/long_runs.py                  # all of them
    python tests/benchmarks/long_runs.py train-on-graphs  # those whose name has it

Plans are made longer, to 1000 steps, and nothing else is changed: the noise follows from
the target. What pages assert about their own shorter runs is not looked at, only what is
raised as an error of losses or gradients, and what is warned of them. Each page runs in
a process of its own, from its code blocks in their order.
"""

import argparse
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import dp
from dp.plan import PrivacyPlan


ROOT = Path(__file__).parents[2]
STEPS = 1000
TIMEOUT = 900  # Seconds for one page.
ALARMS = (dp.SampleMixingError, dp.WrongGradientError, dp.WrongReleaseError)
TRAINS = re.compile(r"(?s)(\bimport dp\b|from dp\b).*(\.step\(|\.train\(|\.fit\()")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def show(line: str) -> None:
    print(line, flush=True)  # noqa: T201 -- what this command is for


def pages() -> list[Path]:
    """Return what trains: pages with a private optimizer, and examples."""
    found = [
        *sorted(ROOT.glob("docs/how-to/*.md")),
        *sorted(ROOT.glob("docs/tutorial/*.md")),
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/examples/*.py")),
    ]
    return [p for p in found if TRAINS.search(p.read_text())]


def blocks_of(path: Path) -> list[str]:
    """Return the code of a page, without prompts and outputs."""
    text = path.read_text()
    if path.suffix == ".py":
        return [text]
    blocks = []
    for block in BLOCK.findall(text):
        lines = block.splitlines()
        if any(line.startswith(">>> ") for line in lines):
            lines = [
                x[4:] for x in lines if x.startswith((">>> ", "... ", ">>>", "..."))
            ]
        blocks.append("\n".join(lines))
    return blocks


def longer(steps: int, multiple: int) -> int:
    """Return how many steps a plan gets, in whole passes."""
    return -(-max(steps, STEPS) // multiple) * multiple


@contextmanager
def longer_plans() -> Iterator[list[None]]:
    """Make every plan a long one; yield a list with one entry for each step taken."""
    taken: list[None] = []
    make, plan_for, step = PrivacyPlan.__init__, dp.plan_for, dp.DPOptimizer.step

    def made(self: PrivacyPlan, **numbers: Any) -> None:
        if numbers.get("target_epsilon") is None:
            passes = getattr(numbers["sampling"], "steps_per_pass", 1)
            numbers["steps"] = longer(numbers["steps"], passes)
        make(self, **numbers)

    def planned(**numbers: Any) -> PrivacyPlan:
        q = numbers.get("sampling_probability")
        if numbers.get("steps") is not None:
            passes = round(1 / q) if isinstance(q, float) else 1
            numbers["steps"] = longer(numbers["steps"], passes)
        return plan_for(**numbers)

    def stepped(self: dp.DPOptimizer, *args: Any, **kwargs: Any) -> Any:
        taken.append(None)
        return step(self, *args, **kwargs)

    with (
        mock.patch.object(PrivacyPlan, "__init__", made),
        mock.patch.object(dp, "plan_for", planned),
        mock.patch.object(dp.DPOptimizer, "step", stepped),
    ):
        yield taken


def run(path: Path) -> None:
    """Run one page in this process; print what it took and what was told."""
    alarms, others = [], []
    space = {"__name__": "__main__", "__file__": str(path)}
    with (
        longer_plans() as taken,
        mock.patch.object(sys, "argv", [str(path)]),
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        for block in blocks_of(path):
            try:
                exec(compile(block, str(path), "exec"), space)  # noqa: S102 -- our pages
            except ALARMS as error:
                alarms.append(f"{type(error).__name__}: {error}")
            except BaseException as error:  # noqa: BLE001 -- what a page asserts, or lacks
                others.append(f"{type(error).__name__}: {error}")
    alarms += filter(None, map(alarm_of, told))
    show(f"{len(taken):6d} steps, {len(set(alarms))} alarms  {path.relative_to(ROOT)}")
    for text in dict.fromkeys([*(f"ALARM {a}" for a in alarms), *others]):
        show(f"        {' '.join(text.split())[:160]}")


def alarm_of(warning: warnings.WarningMessage) -> str | None:
    """Return what a warning says of losses or of weights; None if it is of others.

    That losses came finished is so, where they did, and no false alarm.
    """
    text = str(warning.message)
    is_one = issubclass(warning.category, dp.EvidenceWarning) and "finished" not in text
    return text if is_one or text.startswith("a private parameter") else None


def main() -> None:
    """Run pages, each in a process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--here", action="store_true", help="in this process")
    arguments = parser.parse_args()
    chosen = [
        p
        for p in pages()
        if not arguments.names or any(n in str(p) for n in arguments.names)
    ]
    if arguments.here:
        run(chosen[0])
        return
    for path in chosen:
        start = time.monotonic()
        command = [sys.executable, str(Path(__file__).resolve()), "--here", str(path)]
        try:
            with TemporaryDirectory() as place:  # Pages save models where they run.
                done = subprocess.run(
                    command,
                    cwd=place,
                    timeout=TIMEOUT,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            shown = [
                x
                for x in done.stdout.splitlines()
                if "steps, " in x or x.startswith("        ")
            ]
            show("\n".join(shown) or f"FAILED {path.name}: {done.stderr[-300:]}")
        except subprocess.TimeoutExpired:
            show(f"no end within {TIMEOUT} s: {path.relative_to(ROOT)}")
        show(f"        {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
