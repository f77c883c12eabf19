"""Compare dynamic targets and exact methods with code by hand.

``python tests/benchmarks/forwarding_dynamic.py`` prints a table for the interpreter that
runs it, and fails if a dynamic target takes over 1.30 times as long as a property that
calls the same look-up, or an exact method over 1.10 times as long as one by hand.
"""

import argparse
import contextvars
import gc
import platform
import sys
import threading
import weakref
from functools import cached_property
from typing import Any

from forwarding_speed import repeated, table, timed

from forwarding import forwarded, lazy, target


GOALS = {"dynamic": 1.30, "exact": 1.10}
STATEMENTS = {
    "get": "o.x",
    "set": "o.x = 1",
    "`m()`": "o.m()",
    "`m(1, b=2)`": "o.m(1, b=2)",
}


class Target:
    """What is wrapped."""

    def __init__(self):
        self.x = 0

    def m(self, a=0, b=0):
        return a + b


current: contextvars.ContextVar[Target] = contextvars.ContextVar("current")
local = threading.local()
stack = [Target()]
ALIVE = stack[0]


def top() -> Target:
    return stack[0]


def by_hand(look_up: str, **names: Any) -> type:
    """Return the class that a person would write around a look-up."""
    source = f"""
class Hand:
    @property
    def x(self):
        return {look_up}.x

    @x.setter
    def x(self, value):
        {look_up}.x = value

    def m(self, /, *args, **kwargs):
        return {look_up}.m(*args, **kwargs)
"""
    space: dict[str, Any] = dict(names)
    exec(source, space)  # noqa: S102 -- Ours, of above.
    return space["Hand"]


def declared(via: Any) -> type:
    class Declared:
        inner = target(Target, via=via)
        x = forwarded(inner.x)
        m = forwarded(inner.m)

    return Declared


class Cached(by_hand("self.inner")):
    """With the standard library's lazy attribute, which has no lock."""

    @cached_property
    def inner(self):
        return ALIVE


class ExactByHand(by_hand("self.inner")):
    """With a method that repeats the signature."""

    def m(self, a=0, b=0):
        return self.inner.m(a, b)


class Exact:
    """The same, declared."""

    inner = target(Target)
    x = forwarded(inner.x)
    m = forwarded(inner.m, exact=True)


def cases() -> dict[str, tuple[str, Any, Any]]:
    """Return goal, wrapper by hand and wrapper declared, by title."""
    current.set(ALIVE)
    local.inner = ALIVE
    weak, weak_by_hand = declared(weakref.ref)(), by_hand("self.reference()")()
    weak.inner, weak_by_hand.reference = ALIVE, weakref.ref(ALIVE)
    exact, exact_by_hand = Exact(), ExactByHand()
    exact.inner = exact_by_hand.inner = ALIVE
    return {
        "a function": ("dynamic", by_hand("top()", top=top)(), declared(top)()),
        "`ContextVar`": (
            "dynamic",
            by_hand("current.get()", current=current)(),
            declared(current)(),
        ),
        "`threading.local`": (
            "dynamic",
            by_hand("local.inner", local=local)(),
            declared(local)(),
        ),
        "`weakref.ref`": ("dynamic", weak_by_hand, weak),
        "`lazy`, beside `cached_property`": (
            "dynamic",
            Cached(),
            declared(lazy(lambda _: ALIVE))(),
        ),
        "`exact=True`, beside the signature by hand": ("exact", exact_by_hand, exact),
    }


def ratios(rounds: int) -> dict[tuple[str, str], float]:
    """Measure all in turn; return how often the code by hand each takes."""
    runs = {
        (title, operation, at): (repeated(statement), wrapper)
        for title, (_, *wrappers) in cases().items()
        for operation, statement in STATEMENTS.items()
        for at, wrapper in enumerate(wrappers)
    }
    best = dict.fromkeys(runs, float("inf"))
    gc.disable()
    for _ in range(rounds):
        for key, (run, wrapper) in runs.items():
            best[key] = min(best[key], timed(run, wrapper, 300))
    return {
        (title, operation): best[title, operation, 1] / best[title, operation, 0]
        for title, operation, _ in runs
    }


def main() -> None:
    """Measure, print, and compare with the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=150)
    found = ratios(parser.parse_args().rounds)
    rows = (
        [title, *(f"{found[title, operation]:.2f}" for operation in STATEMENTS)]
        for title in cases()
    )
    head = " | ".join(["", *STATEMENTS])
    print(f"CPython {platform.python_version()}\n\n{table(head, rows)}")  # noqa: T201
    over = [
        f"{title}, {operation}: {ratio:.2f}"
        for (title, operation), ratio in found.items()
        if ratio > GOALS[cases()[title][0]]
    ]
    if over:
        sys.exit(f"over the goal: {'; '.join(over)}")


if __name__ == "__main__":
    main()
