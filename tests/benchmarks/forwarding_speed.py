"""Compare forwarding with hand-written code: ``python tests/benchmarks/forwarding_speed.py``.

Prints Markdown tables for the interpreter that runs it, and fails if an access
through ``Forwarded`` takes over 1.10 times that through hand-written code. Libraries
that are not installed are left out. ``--write`` puts the tables into the page.

Everything is measured in turn, for about a millisecond, and that again and again, in
several processes; a figure is the shortest time seen, so it is little disturbed by
other programs, or by where one process happens to keep its objects.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from forwarding_peers import Design, Target, peers

from forwarding import Forwarded, Forwarding, Wrapper, forwarded, target


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "benchmarks.md"
LAYERS = (1, 2, 4, 8)
GOAL = 1.10
UNROLLED = 10
STATEMENTS = {
    "get": "o.x",
    "set": "o.x = 1",
    "delete": "del o.y",
    "`m()`": "o.m()",
    "`m(1, b=2)`": "o.m(1, b=2)",
}


class Case(NamedTuple):
    """One statement on a stack of wrappers of one design."""

    design: str
    operation: str
    layers: int


class Hand:
    """What a person writes who does not know the methods' signatures."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def x(self):
        return self.inner.x

    @x.setter
    def x(self, value):
        self.inner.x = value

    @property
    def y(self):
        return self.inner.y

    @y.deleter
    def y(self):
        del self.inner.y

    def m(self, /, *args, **kwargs):
        return self.inner.m(*args, **kwargs)


class Ours:
    """The same, declared."""

    inner = target(Target)
    x = forwarded(inner.x)
    y = forwarded(inner.y)
    m = forwarded(inner.m)

    def __init__(self, inner):
        self.inner = inner


class OurWrapper(Wrapper[Target]):
    """The same, on the ready base."""

    x = Forwarded()
    y = Forwarded()
    m = Forwarded(kind="method")


class Exact(Hand):
    """With a method that repeats the target's signature."""

    def m(self, a=0, b=0):
        return self.inner.m(a, b)


class Positional(Hand):
    """With a method that takes no keywords."""

    def m(self, /, *args):
        return self.inner.m(*args)


class Branching(Hand):
    """With a method that passes keywords only if there are any."""

    def m(self, /, *args, **kwargs):
        if kwargs:
            return self.inner.m(*args, **kwargs)
        return self.inner.m(*args)


class Bound(Hand):
    """With a property that gives the target's own bound method."""

    m = Forwarded(to="inner", kind="data")


def ours() -> Iterator[tuple[str, Design]]:
    """Yield the reference first, then what must be as fast."""
    yield "by hand", Hand
    yield "`Forwarded`", Ours
    yield "`Forwarded` in a `Wrapper`", OurWrapper


def signatures() -> Iterator[tuple[str, Design]]:
    """Yield ways to forward a method."""
    yield "`def m(self, a=0, b=0)`, exact", Exact
    yield "`def m(self, /, *args, **kwargs)`", Hand
    yield "`Forwarded`", Ours
    yield "hand-written, `**kwargs` passed only if there are any", Branching
    yield "`def m(self, /, *args)`", Positional
    yield "property, gives the bound method", Bound


def shortest(options: argparse.Namespace) -> dict[Case, float]:
    """Measure in several processes: some things are slower all through one."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1, maxtasksperchild=1) as pool:
        runs = pool.map(measured, [options] * options.processes, chunksize=1)
    return {case: min(run[case] for run in runs) for case in runs[0]}


def measured(options: argparse.Namespace) -> dict[Case, float]:
    """Return nanoseconds per statement; a case that does not work is missing."""
    designs = {**dict(signatures()), **dict(ours()), **dict(peers())}
    cases = {
        Case(design, operation, layers): (repeated(statement), stack(build, layers))
        for operation, statement in STATEMENTS.items()
        for layers in LAYERS
        for design, build in designs.items()
    }
    loops = {}
    for case, (run, top) in cases.items():
        if works(designs[case.design], run, top):
            once = min(timed(run, top, 50) for _ in range(3))
            count = int(options.milliseconds * 1e6 / (once * UNROLLED))
            loops[case] = (run, top, max(20, count))
    best = dict.fromkeys(loops, float("inf"))
    gc.disable()
    for _ in range(options.rounds):
        for case, loop in loops.items():
            best[case] = min(best[case], timed(*loop))
    return best


def stack(build: Design, layers: int) -> Any:
    top = Target()
    for _ in range(layers):
        top = build(top)
    return top


def repeated(statement: str) -> Callable[[Any, int], None]:
    body = f"        {statement}\n" * UNROLLED
    namespace: dict[str, Any] = {}
    exec(f"def run(o, n):\n    for _ in range(n):\n{body}", namespace)  # noqa: S102
    return namespace["run"]


def works(build: Design, run: Callable[[Any, int], None], top: Any) -> bool:
    """Say whether the design can do it, and does it to what is wrapped."""
    below = build(Target())
    try:
        run(top, 1)
        run(build(below), 1)
    except (AttributeError, TypeError):
        return False
    return below.x == top.x


def timed(run: Callable[[Any, int], None], top: Any, count: int) -> float:
    start = time.perf_counter_ns()
    run(top, count)
    return (time.perf_counter_ns() - start) / (count * UNROLLED)


def table(heading: str, rows: Iterator[list[str]]) -> str:
    rule = " | ".join("---" for _ in heading.split("|"))
    return "\n".join(f"| {line} |" for line in (heading, rule, *map(" | ".join, rows)))


def own_rows(ns: dict[Case, float]) -> Iterator[list[str]]:
    for operation in STATEMENTS:
        for name, _ in ours():
            cells = (cell(ns, Case(name, operation, k), "by hand") for k in LAYERS)
            yield [operation, name, *cells]


def signature_rows(ns: dict[Case, float]) -> Iterator[list[str]]:
    exact = next(signatures())[0]
    for operation in list(STATEMENTS)[3:]:
        for name, _ in signatures():
            cells = (cell(ns, Case(name, operation, k), exact) for k in LAYERS)
            yield [operation, name, *cells]


def peer_rows(ns: dict[Case, float]) -> Iterator[list[str]]:
    for name, _ in peers():
        cells = (
            " / ".join(ratio(ns, Case(name, operation, k), "by hand") for k in (1, 8))
            for operation in STATEMENTS
        )
        yield [name, *cells]


def cell(ns: dict[Case, float], case: Case, reference: str) -> str:
    if case not in ns:
        return "cannot"
    figure = f"{ns[case]:.0f} ns"
    if case.design == reference:
        return figure
    return f"{figure}, {ratio(ns, case, reference)}"


def ratio(ns: dict[Case, float], case: Case, reference: str) -> str:
    if case not in ns:
        return "cannot"
    return f"{ns[case] / ns[case._replace(design=reference)]:.2f}"


def building() -> float:
    """Return the milliseconds that a class with 50 declarations takes."""
    best = float("inf")
    for round_ in range(20):
        names = [f"name_{round_}_{number}" for number in range(50)]
        start = time.perf_counter()
        type("Fifty", (Forwarding,), {name: Forwarded(to="inner") for name in names})
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def importing() -> float:
    """Return the milliseconds that the import adds to a bare interpreter."""
    best = dict.fromkeys(("pass", "import forwarding"), float("inf"))
    # Compiled once, as an installed package is.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(20):
        for statement in best:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", statement], check=True, env=environment
            )
            now = time.perf_counter() - start
            best[statement] = min(best[statement], now)
    return (best["import forwarding"] - best["pass"]) * 1e3


def report(ns: dict[Case, float]) -> str:
    """Return the tables in Markdown."""
    layers = " | ".join(f"{k} layer{'s' * (k > 1)}" for k in LAYERS)
    head = f"operation | written as | {layers}"
    parts = [
        f"### CPython {platform.python_version()}",
        f"Nanoseconds, and as a multiple of hand-written code; at most {GOAL:.2f}:",
        table(head, own_rows(ns)),
        "Others, as how often hand-written code, at 1 / 8 layers:",
        table(" | ".join(["", *STATEMENTS]), peer_rows(ns)),
        "Ways to forward a method, and how often the exact signature:",
        table(head, signature_rows(ns)),
        f"A class with 50 declarations takes {building():.1f} ms to build.",
        f"`import forwarding` adds {importing():.0f} ms to a bare interpreter.",
    ]
    return "\n\n".join(parts)


def worst(ns: dict[Case, float]) -> tuple[float, Case]:
    """Return the largest ratio of ours to hand-written code, and where it is."""
    names = [name for name, _ in ours()][1:]
    return max(
        (figure / ns[case._replace(design="by hand")], case)
        for case, figure in ns.items()
        if case.design in names
    )


def write(text: str) -> None:
    """Put the tables of this version of Python into the page."""
    version = "CPython " + ".".join(platform.python_version_tuple()[:2])
    before, start, rest = PAGE.read_text().partition(f"<!-- {version} -->\n")
    _, end, after = rest.partition(f"<!-- end of {version} -->\n")
    if not (start and end):
        sys.exit(f"{PAGE} has no place for {version}")
    PAGE.write_text(f"{before}{start}\n{text}\n\n{end}{after}")


def main() -> None:
    """Measure, print, and compare with the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--milliseconds", type=float, default=1.0)
    parser.add_argument("--write", action="store_true", help=f"fill {PAGE.name}")
    options = parser.parse_args()
    ns = shortest(options)
    text = report(ns)
    print(text)  # noqa: T201
    if options.write:
        write(text)
    largest, case = worst(ns)
    verdict = f"{largest:.3f} at most, for {case}"
    print(verdict)  # noqa: T201
    if largest > GOAL:
        sys.exit(f"over the goal of {GOAL}")


if __name__ == "__main__":
    main()
