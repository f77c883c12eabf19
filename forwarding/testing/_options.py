"""The options of a judgement, in one place for every entry."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self, TypedDict, final

import hypothesis
from hypothesis import strategies as st

from forwarding.testing._laws import known_laws


__all__ = ("Given", "Options", "Values")

Values = Mapping[str, st.SearchStrategy[Any]] | st.SearchStrategy[Any] | None


class Given(TypedDict, total=False):
    """The keywords of :func:`judge`, :func:`check`, :func:`law_tests`, :func:`machine_for`.

    :class:`Options` says what each means.
    """

    values: Values
    target: str | None
    read_only: Collection[str]
    fluent: Collection[str]
    leave_out: Collection[str] | None
    lazy: Callable[[Callable[[], Any]], Any] | None
    bind: Callable[[Any], Any] | None
    depth: int
    waive: Collection[str]
    strict: bool
    settings: hypothesis.settings | None


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of a judgement, beside the wrapper, its targets and the names.

    Args:
        values: What to assign: one strategy for all names or one for each; by
            default None, integers, text and lists. A value that the target itself
            refuses or alters is left out.
        target: The attribute in which the wrapper keeps its target, if it does not
            show in its ``__dict__``, its ``__slots__`` or as ``__wrapped__``.
        read_only: Those of the names that the wrapper should not let one change.
        fluent: Those of the names that return ``self``, and should return the wrapper.
        leave_out: Public names of the target that the wrapper need not cover. Only
            if it is given, an empty one too, is the law ``complete`` tried.
        lazy: Builds a wrapper of a target that is made later, by the function that it
            is given. Only if it is given is the law ``lazy`` tried.
        bind: Makes an object the target in the current thread and context, and
            returns the wrapper. Only if it is given is the law ``context`` tried.
        depth: How many layers of wrappers to try at most; fewer are tried where the
            factory cannot wrap its own result.
        waive: The laws that the wrapper does not promise; a mapping gives reasons.
        strict: Try waived laws too, and mark those that hold.
        settings: Hypothesis' settings; by default those of the current profile,
            with 25 examples.

    Raises:
        ValueError: ``depth`` is below 1, or ``waive`` names no law.
    """

    values: Values = None
    target: str | None = None
    read_only: Collection[str] = ()
    fluent: Collection[str] = ()
    leave_out: Collection[str] | None = None
    lazy: Callable[[Callable[[], Any]], Any] | None = None
    bind: Callable[[Any], Any] | None = None
    depth: int = 3
    waive: Collection[str] = ()
    strict: bool = False
    settings: hypothesis.settings | None = None

    def __post_init__(self) -> None:
        known_laws(self.waive)
        if self.depth < 1:
            raise ValueError(f"depth must be >= 1, got {self.depth}")

    @classmethod
    def of(cls, given: Given) -> Self:
        """Return the options of a call.

        Raises:
            TypeError: A keyword is no option.
        """
        strangers = sorted(given.keys() - cls.__dataclass_fields__.keys())
        if strangers:
            raise TypeError(
                f"{', '.join(strangers)}: no such option; "
                f"the options are {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**given)

    @property
    def waived(self) -> frozenset[str]:
        """The names of the waived laws."""
        return frozenset(self.waive)

    def reason(self, law: str) -> str:
        """Return why a law is waived, if that was said."""
        return str(self.waive[law]) if isinstance(self.waive, Mapping) else "waived"
