"""A law of forwarding: a short program that must not fail."""

import dataclasses
import textwrap
from typing import Literal, final


__all__ = ("Domain", "Law", "LawBrokenError")

Domain = Literal[
    "data",
    "settable",
    "deletable",
    "read-only",
    "method",
    "special",
    "fluent",
    "wrapper",
]


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """A property that every forwarding wrapper must have.

    Args:
        name: Its name in ``waive`` and in reports.
        statement: The law in one sentence; ``w`` is the wrapper, ``t`` the target.
        why: What goes wrong in practice where it is broken.
        script: The law as a program. ``NAME`` stands for an attribute, ``AT`` for
            the attribute that holds the target, ``BELOW`` for what the outermost
            wrapper wraps, ``INNERMOST`` for the wrapper of the target, ``LAYERS``
            for all wrappers, ``DEPTH`` for their number, ``FACTORY``,
            ``MAKE_TARGET``, ``LAZY`` and ``BIND`` for the user's callables.
        on: Which of the user's names the law speaks about; ``"wrapper"`` for a law
            about no attribute in particular.
        values: How many values, ``value`` and ``other``, the script uses.
        needs: Laws that this one is part of: it is not tried if one of them is waived.
        follows: Laws whose violation usually breaks this one too. Where one of them
            is broken, a report puts this one down to it.
        layers: The least number of layers at which the law says something.
        equal: Whether it is also tried on a copy of the value that the target has.
        nameless: The program for a wrapper with no name of the kind that the law speaks
            about; empty if the law then says nothing.
        special: Whether it also speaks about special methods, which it then calls as
            Python does, on the class.
        control: The program that must pass on the bare target before a wrapper is
            accused; ``None`` for the script itself, with the target as its own
            wrapper, and an empty one where a bare target says nothing.
    """

    name: str
    statement: str
    why: str
    script: str
    on: Domain
    values: int = 0
    needs: frozenset[str] = frozenset()
    follows: frozenset[str] = frozenset()
    layers: int = 1
    equal: bool = False
    nameless: str = ""
    special: bool = False
    control: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "script", textwrap.dedent(self.script).strip())
        object.__setattr__(self, "nameless", textwrap.dedent(self.nameless).strip())
        # With the target as its own wrapper most laws hold trivially; where one does
        # not, its probe does not work on this target.
        control = self.script if self.control is None else self.control
        object.__setattr__(self, "control", textwrap.dedent(control).strip())


class LawBrokenError(AssertionError):
    """A wrapper breaks a law; the message holds the counterexample.

    Args:
        message: The text that the reader sees.
        law: The law that was broken.
        counterexample: A minimal program that shows it.
    """

    def __init__(self, message: str, *, law: Law, counterexample: str) -> None:
        super().__init__(message)
        self.law = law
        self.counterexample = counterexample
