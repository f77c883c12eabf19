"""Measure private steps as users take them: ``python tests/benchmarks/step_in_hand.py``.

``DPOptimizer`` with its plan, ledger, tickets, checks and guards, beside the engine alone
and Opacus' modes. All ways of a model take their steps in turn with the ordinary step;
a figure is the median of the ratios of processor time on one thread.

* By default: steady state, with the first three steps, in which everything is verified.
* ``--by-hand``: steps that were written for one model, beside ``DPOptimizer``.
* ``--varying``: batches of a new size at every step.
* ``--memory``: peak memory above the idle model's, in steady state and of the first
  three steps, each in a process of its own.

``--write`` puts what was measured into the page.
"""

import argparse
import copy
import gc
import random
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from step_models import MODELS, Subject
from step_models_in_hand import IN_HAND
from step_ways import WAYS

from dp.noise._host.compiled_stage import verified_kernel


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "benchmarks.md"
SUBJECTS = {**IN_HAND, **{name: MODELS[name] for name in ("BERT", "LoRA")}}
OURS = ("dp, no noise", "DPOptimizer, no noise", "DPOptimizer")
BY_HAND = ("by hand, no noise", "by hand")
# Of which a private step is written by hand: see step_by_hand.
WRITTEN = (
    "MLP, 64",
    "MLP, 512",
    "30 tiny layers",
    "LSTM of 96",
    "ViT of 6 layers",
    "encoder",
    "decoder of 6 layers",
    "BERT",
)
OTHERS = ("Opacus hooks", "Opacus ew", "Opacus ghost")
# Of which memory and varying batches are measured; the others have nothing to show.
LARGE = (
    "MLP, 512",
    "CNN of MNIST",
    "WRN-16-4",
    "decoder of 6 layers",
    "GPT-2, 6 layers",
    "ViT of 6 layers",
    "table of 60,000",
    "LoRA",
)
VARYING = (
    "MLP, 64",
    "CNN of MNIST",
    "decoder of 6 layers",
    "30 tiny layers",
    "ViT of 6 layers",
)
_FIRST = 3  # Steps in which every gradient is verified.
_MARKS = "<!-- in hand: {} -->", "<!-- end of in hand: {} -->"

_Step = Callable[[], None]


def main() -> None:
    """Print a table, and put it into the page if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--ways", nargs="*", default=[*OURS, *OTHERS])
    parser.add_argument("--seconds", type=float, default=15.0, help="a model, about")
    parser.add_argument("--by-hand", action="store_true")
    parser.add_argument("--varying", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--peaks", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.peaks:
        print(*peaks(*options.peaks))  # noqa: T201
        return
    makers = {
        "memory": memory_rows,
        "varying": varying_rows,
        "by_hand": by_hand_rows,
        "time": time_rows,
    }
    kind = next((one for one in makers if getattr(options, one, False)), "time")
    rows = makers[kind](options)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    print(table)  # noqa: T201
    if options.write:
        first, last = (mark.format(kind) for mark in _MARKS)
        before, _, rest = PAGE.read_text().partition(first)
        PAGE.write_text(
            f"{before}{first}\n\n{table}\n\n{last}{rest.partition(last)[2]}"
        )


def made(name: str, size: int | None = None) -> Subject:
    """Make a model and its batch."""
    torch.manual_seed(0)
    return SUBJECTS[name]() if size is None else SUBJECTS[name](size)


def _head(*cells: str) -> list[list[str]]:
    return [[*cells], ["---"] * len(cells)]


def time_rows(options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the table of times."""
    firsts = [f"step {n}" for n in range(1, 1 + _FIRST)]
    rows = _head("model", "batch", "ordinary step", *options.ways, *firsts)
    verified_kernel()  # Which a run of a few seconds loads.
    for name in options.models or SUBJECTS:
        subject = made(name)
        steps, first = {}, [""] * _FIRST
        ordinary = WAYS["non-private"](copy.deepcopy(subject))
        for way in options.ways:
            step, spent = started(name, way)
            if step is not None:
                steps[way] = step
            if way == "DPOptimizer, no noise":
                first = spent
        base, ratios = in_turn(ordinary, steps, options.seconds)
        cells = [
            f"{ratios[way]:.2f}" if way in ratios else "cannot" for way in options.ways
        ]
        times = [f"{float(one) / base:.1f}" if one else "" for one in first]
        row = [name, str(len(subject.y)), f"{base * 1e3:.1f} ms", *cells, *times]
        print(*row, sep=" | ", file=sys.stderr, flush=True)  # noqa: T201
        rows.append(row)
    return rows


def by_hand_rows(options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the table of steps by hand."""
    options.ways, options.models = [*BY_HAND, *OURS], options.models or WRITTEN
    return time_rows(options)


def started(name: str, way: str) -> tuple[_Step | None, list[str]]:
    """Return a way after its first steps, and their times; None if it cannot do it."""
    try:
        step = WAYS[way](made(name))
        spent = [str(seconds(step)) for _ in range(_FIRST + 1)]
    except Exception as error:  # noqa: BLE001 -- whatever another library raises
        print(f"{name}, {way}: {error!r:.150}", file=sys.stderr)  # noqa: T201
        return None, [""] * _FIRST
    return step, spent[:_FIRST]


def in_turn(
    ordinary: _Step, steps: dict[str, _Step], limit: float
) -> tuple[float, dict[str, float]]:
    """Return the ordinary step's time, and the median ratio of every other way."""
    ratios: dict[str, list[float]] = {way: [] for way in steps}
    bases: list[float] = []
    ordinary()
    end = time.perf_counter() + limit
    while len(bases) < 3 or (time.perf_counter() < end and len(bases) < 200):
        bases.append(seconds(ordinary))
        for way, step in steps.items():
            ratios[way].append(seconds(step) / bases[-1])
    medians = {way: statistics.median(some) for way, some in ratios.items()}
    return statistics.median(bases), medians


def seconds(step: _Step) -> float:
    """Time one step, on the processor."""
    start = time.process_time()
    step()
    return time.process_time() - start


def varying_rows(options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the table of batches of other sizes."""
    rows = _head("model", "batches", "steps", "first 10 steps", "the last half")
    for name in options.models or VARYING:
        usual = len(made(name).y)
        draw = random.Random(0)  # noqa: S311 -- sizes of a benchmark
        sizes = [draw.randint(usual // 2, 3 * usual // 2) for _ in range(400)]
        ours, ordinary = _of_size(name, OURS[1]), _of_size(name, "non-private")
        ratios = _alternated(ours, ordinary, sizes, 2 * options.seconds)
        cells = [_ratio(ratios[:10]), _ratio(ratios[len(ratios) // 2 :])]
        rows.append(
            [name, f"{usual // 2} to {3 * usual // 2}", str(len(ratios)), *cells]
        )
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)  # noqa: T201
    return rows


def _alternated(
    ours: Callable[[int], None],
    ordinary: Callable[[int], None],
    sizes: Sequence[int],
    limit: float,
) -> list[tuple[float, float]]:
    """Return the times of both ways, size by size."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + limit
    for size in sizes:
        one, other = partial(ours, size), partial(ordinary, size)
        times.append((seconds(one), seconds(other)))
        if time.perf_counter() > end and len(times) > 20:
            break
    return times


def _of_size(name: str, way: str) -> Callable[[int], None]:
    """Return a step of one way on batches of any size."""
    subject = made(name)
    step = WAYS[way](subject)

    def of_size(size: int) -> None:
        batch = made(name, size)
        subject.x, subject.y = batch.x, batch.y
        step()

    return of_size


def _ratio(times: Sequence[tuple[float, float]]) -> str:
    ours, ordinary = (sum(some) for some in zip(*times, strict=True))
    return f"{ours / ordinary:.2f}"


def memory_rows(options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the table of memory."""
    ways = [way for way in options.ways if way != OURS[0]]
    rows = _head("model", "ordinary step", *ways, "its first three steps")
    for name in options.models or LARGE:
        (base, _), *found = (_peaks_of(name, way) for way in ("non-private", *ways))
        cells = [f"{one / base:.2f}" if one else "cannot" for one, _ in found]
        rows.append([name, f"{base:.0f} MB", *cells, f"{found[0][1] / base:.2f}"])
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)  # noqa: T201
    return rows


def _peaks_of(name: str, way: str) -> tuple[float, float]:
    command = [sys.executable, __file__, "--peaks", name, way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    steady, first = done.stdout.split()[-2:] if done.returncode == 0 else (0, 0)
    return float(steady), float(first)


def peaks(name: str, way: str) -> tuple[float, float]:
    """Return megabytes above the idle model: of a later step, and of the first ones."""
    subject = made(name)
    step = WAYS[way](subject)
    # After a step there are gradients, which the next one frees before it begins.
    trained = [p for p in subject.model.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained) / 2**20
    first = _peak(step, _FIRST)
    step()
    return _peak(step, 2) + gradients, first


def _peak(step: _Step, count: int) -> float:
    """Return the megabytes that some steps take at most, above what there was before."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(count):
        step()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text)[1]) / 1024


if __name__ == "__main__":
    main()
