"""Compare real wrappers with their rewriting: ``python tests/benchmarks/forwarding_rewrites.py``.

Counts code lines, judges both by the laws, and times a get, a set and a call.
``--write`` fills the table of ``docs/reference/rewritten-wrappers.md``; install
gymnasium, sqlalchemy and django before.
"""

import argparse
import ast
import copy
import importlib.util
import inspect
import io
import sqlite3
import sys
import textwrap
import timeit
import tokenize
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from forwarding_laws import cause, rewritten
from forwarding_subjects import Target
from forwarding_wild import gymnasium_wrapper, linear
from hypothesis import settings

from forwarding.testing import Report, judge


DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reference" / "rewritten-wrappers.md"
ROUNDS, CALLS = 15, 4000


class Side(NamedTuple):
    """One of the two wrappers."""

    factory: Callable[[Any], Any]
    source: tuple[Any, ...]


class Pair(NamedTuple):
    """A wrapper and its rewriting, on the same targets."""

    title: str
    theirs: Side
    ours: Side
    make_target: Callable[[], Any]
    names: tuple[str, ...]
    get: str
    set: str
    call: str


def example(name: str) -> Any:
    """Import a file of the examples."""
    spec = importlib.util.spec_from_file_location(
        name, DOCS / "examples" / f"{name}.py"
    )
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pairs() -> Iterator[Pair]:
    """Yield the six, each on names that both are there to pass on."""
    yield environments()
    yield sessions()
    yield lazy_objects()
    yield averages()
    yield responses()
    yield connections()


def environments() -> Pair:
    theirs, make_env, names = gymnasium_wrapper()
    ours = example("wrap_gymnasium_env").EnvWrapper
    return Pair(
        "gymnasium `Wrapper`",
        Side(theirs, (theirs,)),
        Side(ours, (ours,)),
        make_env,
        names,
        get="w.observation_space",
        set="w.np_random = value",
        call="w.step(0)",
    )


def sessions() -> Pair:
    from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415

    ours = example("wrap_sqlalchemy_session").scoped_session

    def scoped(session: Any) -> Any:
        return scoped_session(lambda: session)

    def declared(session: Any) -> Any:
        return ours(lambda: session)

    return Pair(
        "SQLAlchemy `scoped_session`",
        Side(scoped, (scoped_session,)),
        Side(declared, (ours,)),
        Session,
        ("autoflush", "info", "bind", "dirty", "add", "commit", "execute"),
        get="w.is_active",
        set="w.autoflush = value",
        call="w.in_transaction()",
    )


def lazy_objects() -> Pair:
    from django.utils.functional import LazyObject, SimpleLazyObject  # noqa: PLC0415

    ours = example("wrap_lazily").lazy_object

    def simple(target: Any) -> Any:
        return SimpleLazyObject(lambda: target)

    def declared(target: Any) -> Any:
        return ours(Target, lambda: target)

    return Pair(
        "Django `SimpleLazyObject`",
        Side(simple, (LazyObject, SimpleLazyObject)),
        Side(declared, (ours,)),
        Target,
        ("a", "b", "serial", "m", "co"),
        get="w.a",
        set="w.a = value",
        call="w.m(0)",
    )


def averages() -> Pair:
    from torch.optim.swa_utils import AveragedModel  # noqa: PLC0415

    ema = example("wrap_torch_ema").EMA

    def ours(module: Any) -> Any:
        average = ema.__new__(ema)  # Of the module itself, which the laws are about.
        super(ema, average).__init__(module)
        average.decay, average.num_updates = 0.999, 0
        return average

    def theirs(module: Any) -> Any:
        average = AveragedModel(copy.deepcopy(module))
        average.module = module
        return average

    return Pair(
        "torch `AveragedModel`",
        Side(theirs, (AveragedModel,)),
        Side(ours, (ema,)),
        linear,
        ("training", "in_features", "bias"),
        get="w.training",
        set="w.training = value",
        call="w.extra_repr()",
    )


class ByHand:
    """An adapter as it is usually written."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def ok(self) -> bool:
        return self.inner.ok and self.inner.status_code != 304


def responses() -> Pair:
    from requests import Response  # noqa: PLC0415

    ours = example("wrap_requests_response").Lenient

    def make_response() -> Any:
        response = Response()
        response.status_code, response._content = 200, b"{}"
        return response

    return Pair(
        "adapter of `requests.Response`, by `__getattr__`",
        Side(ByHand, (ByHand,)),
        Side(ours, (ours,)),
        make_response,
        ("status_code", "url", "headers", "reason", "json", "raise_for_status"),
        get="w.status_code",
        set="w.url = value",
        call="w.raise_for_status()",
    )


class NotedByHand:
    """A connection as it is usually written."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.statements: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __enter__(self) -> Any:
        self.inner.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self.inner.__exit__(*error)

    def execute(self, sql: str, /, *parameters: Any) -> Any:
        self.statements.append(sql)
        return self.inner.execute(sql, *parameters)


def connections() -> Pair:
    ours = example("wrap_sqlite_connection").Noted

    def make_connection() -> Any:
        return sqlite3.connect(":memory:")

    return Pair(
        "`sqlite3.Connection` with a log, by `__getattr__`",
        Side(NotedByHand, (NotedByHand,)),
        Side(ours, (ours,)),
        make_connection,
        ("row_factory", "isolation_level", "total_changes", "commit", "cursor"),
        get="w.total_changes",
        set="w.row_factory = value",
        call="w.getlimit(0)",
    )


def code_lines(source: tuple[Any, ...]) -> int:
    """Return the number of lines that are no blanks, comments or docstrings."""
    return sum(map(_code_lines, source))


def _code_lines(thing: Any) -> int:
    text = textwrap.dedent(inspect.getsource(thing))
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            docstrings.update(range(first.lineno, (first.end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def judged(pair: Pair, side: Side) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = settings(max_examples=25, derandomize=True)
        return judge(side.factory, pair.make_target, pair.names, settings=search)


def nanoseconds(pair: Pair, statement: str) -> tuple[float, float] | None:
    """Return the least time of both, measured in turns; None if one cannot."""
    timers = []
    for side in (pair.theirs, pair.ours):
        wrapper = side.factory(pair.make_target())
        timer = timeit.Timer(statement, globals={"w": wrapper, "value": None})
        try:
            timer.timeit(1)
        except Exception:  # noqa: BLE001 -- It does not forward that.
            return None
        timers.append(timer)
    rounds = [[timer.timeit(CALLS) for timer in timers] for _ in range(ROUNDS)]
    theirs, ours = (min(column) / CALLS * 1e9 for column in zip(*rounds, strict=True))
    return theirs, ours


def row(pair: Pair) -> str:
    """Return the row of a pair: theirs / ours."""
    lines = f"{code_lines(pair.theirs.source)} / {code_lines(pair.ours.source)}"
    laws = []
    for side in (pair.theirs, pair.ours):
        report = judged(pair, side)
        kept, broken = len(report.named("holds")), len(report.named("broken"))
        causes = ", ".join(cause(report, root) for root in report.roots)
        laws.append(f"{kept} kept, {broken} broken" + (f": {causes}" if causes else ""))
    cells = [pair.title, lines, *laws]
    for statement in (pair.get, pair.set, pair.call):
        times = nanoseconds(pair, statement)
        code = f"`{statement}`"
        cells.append(
            f"{code} {times[0]:.0f} / {times[1]:.0f}" if times else f"{code} not theirs"
        )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return all rows."""
    head = (
        "wrapper",
        "lines",
        "laws, theirs",
        "laws, ours",
        "get, ns",
        "set, ns",
        "call, ns",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *map(row, pairs())])


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"fill {PAGE}")
    options = parser.parse_args()
    found = table()
    print(found)  # noqa: T201
    if options.write:
        PAGE.write_text(rewritten(PAGE.read_text(), "rewrites", found))


if __name__ == "__main__":
    main()
