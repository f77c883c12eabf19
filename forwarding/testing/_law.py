"""What a law of forwarding is: a short program that must not fail."""

import dataclasses
import textwrap
from typing import Literal, final


__all__ = ("Domain", "Law", "LawBrokenError")

Domain = Literal["data", "settable", "deletable", "read-only", "method", "wrapper"]


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """One thing that every forwarding wrapper must do.

    Args:
        name: What ``waive`` and the reports call it.
        statement: The law in one sentence; ``w`` is the wrapper, ``t`` the target.
        why: What goes wrong in practice where it is broken.
        script: The law as a program. ``NAME`` stands for an attribute, ``AT`` for
            the attribute that holds the target, ``BELOW`` for what the outermost
            wrapper wraps, ``INNERMOST`` for the wrapper of the target, ``LAYERS``
            for all wrappers, ``DEPTH`` for their number, ``FACTORY`` and
            ``MAKE_TARGET`` for the user's callables.
        on: Which of the user's names the law speaks about; ``"wrapper"`` for a law
            about no attribute in particular.
        values: How many values, ``value`` and ``other``, the script uses.
        needs: The laws without which this one cannot hold.
        layers: The least number of layers at which the law says something.
    """

    name: str
    statement: str
    why: str
    script: str
    on: Domain
    values: int = 0
    needs: frozenset[str] = frozenset()
    layers: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "script", textwrap.dedent(self.script).strip())


class LawBrokenError(AssertionError):
    """A wrapper breaks a law; the message holds the counterexample.

    Args:
        message: What the reader sees.
        law: The law that was broken.
        counterexample: A minimal program that shows it.
    """

    def __init__(self, message: str, *, law: Law, counterexample: str) -> None:
        super().__init__(message)
        self.law = law
        self.counterexample = counterexample
