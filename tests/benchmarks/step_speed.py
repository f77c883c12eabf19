"""Measure private steps against ordinary ones: ``python tests/benchmarks/step_speed.py``.

Every way takes its steps in turn with the ordinary step, so that whatever else the
machine does meets both; a figure is the median of the ratios. Peak memory is that of
a process that takes three steps, above what it has before the first.

With ``--device cuda`` batches are larger, so that a GPU has something to do, GPT-2 is
there too, absolute times stand beside the ratios, and memory is what torch's allocator
gave out at most.
"""

import argparse
import copy
import gc
import inspect
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from step_models import LARGE, MODELS, ON_GPU
from step_ways import WAYS


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "benchmarks.md"
_USUAL = [way for way in WAYS if way not in ("non-private", "dp, fast noise")]
_FIRST_STEPS = 5  # At the first passes, everything is verified; later, now and then.
_MARKS = "<!-- engine {} -->", "<!-- end of engine {} -->"


def main() -> None:
    """Print a table for the models and ways that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--ways", nargs="*", default=_USUAL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=float, default=1.0, help="times the usual one")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=20.0, help="at most, a figure")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--write", help="the name of the table in the page")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    on_gpu = options.device != "cpu"
    options.models = options.models or [*MODELS, *(LARGE if on_gpu else ())]
    warnings.simplefilter("ignore")
    if options.peak:
        print(peak(*options.peak, options))  # noqa: T201
        return
    head = ["model", "batch", "non-private", *options.ways]
    rows = [row(name, options) for name in options.models]
    table = "\n".join(map(line, [head, ["---"] * len(head), *rows]))
    print(table)  # noqa: T201
    if options.write:
        write(options.write, table)


def line(cells: list[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def row(name: str, options: argparse.Namespace) -> list[str]:
    """Measure one model."""
    size = len(made(name, options).x)
    if options.memory:
        measure = in_subprocess if options.device == "cpu" else on_device
        base = measure(name, "non-private", options)
        found = [measure(name, way, options) for way in options.ways]
        cells = [f"{mb / base:.2f}" if mb and base else "cannot" for mb in found]
        return [name, str(size), f"{base:.0f} MB", *cells]
    base, cells = 0.0, []
    for way in options.ways:
        ratio, base = ratio_of(name, way, options, base)
        cells.append(cell(ratio, base, options.device) if ratio else "cannot")
        print(name, way, cells[-1], f"{base * 1e3:.1f} ms", file=sys.stderr)  # noqa: T201
    return [name, str(size), f"{base * 1e3:.1f} ms", *cells]


def cell(ratio: float, base: float, device: str) -> str:
    """Return what a table says of a way: on a GPU the milliseconds, too."""
    return (
        f"{ratio:.2f}"
        if device == "cpu"
        else f"{ratio * base * 1e3:.1f} ms, {ratio:.2f}"
    )


def made(name: str, options: argparse.Namespace) -> object:
    """Make a model and its batch."""
    torch.manual_seed(0)
    make, times = {**MODELS, **LARGE}[name], options.batch
    if options.device != "cpu":
        times *= ON_GPU.get(name, 1)
    usual = inspect.signature(make).parameters["B"].default
    with torch.device(options.device):
        return make(max(1, int(usual * times)))


def ratio_of(
    name: str, way: str, options: argparse.Namespace, known: float
) -> tuple[float, float]:
    """Return how often the ordinary step's time another takes, and that time."""
    subject = made(name, options)
    ordinary = WAYS["non-private"](copy.deepcopy(subject))
    try:
        other = WAYS[way](subject)
        ordinary()
        for _ in range(_FIRST_STEPS):
            other()
    except Exception as error:  # noqa: BLE001 -- whatever another library raises
        print(f"{name}, {way}: {error!r:.200}", file=sys.stderr)  # noqa: T201
        other = None
    if other is None:  # Here, where the error no longer holds what it was raised in.
        del subject, ordinary
        free(options.device)
        return 0.0, known
    ratios, bases = [], []
    deadline = time.perf_counter() + options.seconds
    while len(ratios) < options.rounds and (
        len(ratios) < 3 or time.perf_counter() < deadline
    ):
        base = seconds(ordinary, options.device)
        ratios.append(seconds(other, options.device) / base)
        bases.append(base)
    del subject, ordinary, other
    free(options.device)
    return statistics.median(ratios), statistics.median(bases)


def seconds(step: object, device: str) -> float:
    """Time one step: of the processor if there is one thread, else of the clock."""
    is_alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if is_alone else time.perf_counter
    start = clock()
    step()
    if device != "cpu":
        torch.accelerator.synchronize()
    return clock() - start


def free(device: str) -> None:
    """Give back what is not used any more."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def on_device(name: str, way: str, options: argparse.Namespace) -> float:
    """Return the peak memory of a way on a GPU, or 0 if it cannot do it."""
    try:
        found = peak(name, way, options)
    except Exception as error:  # noqa: BLE001 -- whatever another library raises
        print(f"{name}, {way}: {error!r:.200}", file=sys.stderr)  # noqa: T201
        found = 0.0
    free(options.device)
    return found


def in_subprocess(name: str, way: str, options: argparse.Namespace) -> float:
    """Return the peak memory of a way, or 0 if it cannot do it."""
    command = [sys.executable, __file__, "--peak", name, way]
    command += ["--batch", str(options.batch), "--threads", str(options.threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ
    )
    return float(done.stdout.split()[-1]) if done.returncode == 0 else 0.0


def peak(name: str, way: str, options: argparse.Namespace) -> float:
    """Return the megabytes that three steps take at most, above the idle model's."""
    step = WAYS[way](made(name, options))
    gc.collect()
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _ in range(3):
        step()
    return (status("VmHWM") - before) / 1024


def status(field: str) -> int:
    """Return a field of this process's status, in kilobytes."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text)[1])


def write(name: str, table: str) -> None:
    """Put a table into the page."""
    first, last = (mark.format(name) for mark in _MARKS)
    before, _, rest = PAGE.read_text().partition(first)
    _, _, after = rest.partition(last)
    PAGE.write_text(f"{before}{first}\n\n{table}\n\n{last}{after}")


if __name__ == "__main__":
    main()
