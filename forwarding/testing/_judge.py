"""Judge a wrapper by all laws, or insist that it keeps them."""

import textwrap
from collections.abc import Callable, Collection
from typing import Any, Unpack

from forwarding.testing._jury import Jury
from forwarding.testing._law import LawBrokenError
from forwarding.testing._options import Given, Options
from forwarding.testing._report import Report, Verdict
from forwarding.testing._subject import Subject


__all__ = ("broken", "check", "judge")


def judge(
    factory: Callable[[Any], Any],
    make_target: Callable[[], Any],
    names: Collection[str],
    **options: Unpack[Given],
) -> Report:
    """Try every law on a wrapper class, ours or foreign, and report.

    Args:
        factory: Wraps a target: the wrapper class, or a function that calls it.
        make_target: Builds a fresh target, another one at each call.
        names: The attributes and methods that the wrapper should forward.
        options: Those of :class:`Options`.

    Raises:
        TypeError: There is no such option.
        ValueError: An argument makes no sense, such as an unknown law in ``waive``.

    >>> from types import SimpleNamespace
    >>> class Wrapper:
    ...     def __init__(self, inner): self.inner = inner
    ...     def __getattr__(self, name): return getattr(self.inner, name)
    >>> report = judge(Wrapper, lambda: SimpleNamespace(a=1), ["a"])
    >>> report["get"].status, report["put-get"].status
    ('holds', 'broken')
    >>> print(report["put-get"].detail)
    value = None
    target = make_target()
    wrapper = Wrapper(target)
    wrapper.a = value
    assert target.a is value  # fails: 1 is None
    """
    subject = Subject.of(factory, make_target, names, Options.of(options))
    return Jury(subject).report()


def check(
    factory: Callable[[Any], Any],
    make_target: Callable[[], Any],
    names: Collection[str],
    **options: Unpack[Given],
) -> None:
    """Insist that a wrapper class, ours or foreign, keeps every law.

    The arguments are those of :func:`judge`.

    Raises:
        LawBrokenError: A law is broken; the message shows the shortest program that
            breaks it and says why it matters. With ``strict`` also an
            ``AssertionError`` for a law that is waived although it holds.
        TypeError: There is no such option.
        ValueError: An argument makes no sense, such as an unknown law in ``waive``.
    """
    __tracebackhide__ = True  # pytest then shows the test and the message only.
    report = judge(factory, make_target, names, **options)
    if report.roots:
        raise broken(report.label, report[report.roots[0]], _others(report))
    needless = [verdict.law.name for verdict in report.verdicts if verdict.needless]
    if needless:
        raise AssertionError(
            f"{report.label} keeps {', '.join(map(repr, needless))}: "
            "remove the needless waiver"
        )


def _others(report: Report) -> list[str]:
    """Return what to say of the other broken laws."""
    first, *further = report.roots
    followers = report.follow(first)
    parts = [f"So it also breaks: {', '.join(followers)}."] if followers else []
    if further:
        parts.append(f"For causes of their own it breaks: {', '.join(further)}.")
    return parts


def broken(
    label: str, verdict: Verdict, others: Collection[str] = ()
) -> LawBrokenError:
    """Return the error that tells of a broken law all that is needed to mend it."""
    law = verdict.law
    parts = [
        f"{label} breaks the law {law.name!r}: {law.statement}",
        textwrap.indent(verdict.detail, "    "),
        textwrap.fill(f"Why it matters: {law.why}", 88),
        f"If it need not hold, pass waive={{{law.name!r}}}.",
        *(textwrap.fill(other, 88) for other in others),
    ]
    return LawBrokenError("\n\n".join(parts), law=law, counterexample=verdict.detail)
