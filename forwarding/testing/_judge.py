"""Judge a wrapper by all laws, or insist that it keeps them."""

import dataclasses
import textwrap
from collections.abc import Callable, Collection
from typing import Any, Literal, final

import hypothesis
from hypothesis import strategies as st
from hypothesis.errors import Flaky, Unsatisfiable

from forwarding.testing._law import Law, LawBrokenError
from forwarding.testing._laws import LAWS, known_laws
from forwarding.testing._script import ScriptFailedError
from forwarding.testing._subject import Case, Subject, Values
from forwarding.testing.probes import NotApplicableError


__all__ = ("Report", "Verdict", "check", "judge")

_NUM_EXAMPLES = 25

Status = Literal["holds", "broken", "waived", "not applicable"]


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one law.

    Args:
        law: The law.
        status: ``"holds"``, ``"broken"``, ``"waived"`` or ``"not applicable"``.
        detail: The counterexample of a broken law, or the reason of the status.
        needless: The law is waived although it holds; known only if ``strict``.
    """

    law: Law
    status: Status
    detail: str = ""
    needless: bool = False

    @property
    def summary(self) -> str:
        """The status, and the reason of one that is neither kept nor broken."""
        if self.status == "broken" or not self.detail:
            return self.status
        return f"{self.status}: {self.detail}"


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What was found about one wrapper, law by law.

    Args:
        label: The wrapper's name.
        verdicts: One for every law, in the order of ``LAWS``.
    """

    label: str
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        """Return a table with one line for each law."""
        width = max(len(verdict.law.name) for verdict in self.verdicts)
        return "\n".join(
            [
                self.label,
                *(f"{v.law.name:<{width}}  {v.summary}" for v in self.verdicts),
            ]
        )

    def __getitem__(self, law: str) -> Verdict:
        """Return the verdict on one law."""
        return next(v for v in self.verdicts if v.law.name == law)

    def named(self, status: Status) -> tuple[str, ...]:
        """Return the names of the laws with this status."""
        return tuple(v.law.name for v in self.verdicts if v.status == status)


def judge(
    factory: Callable[[Any], Any],
    make_target: Callable[[], Any],
    names: Collection[str],
    *,
    values: Values = None,
    target: str | None = None,
    read_only: Collection[str] = (),
    depth: int = 3,
    waive: Collection[str] = (),
    strict: bool = False,
    settings: hypothesis.settings | None = None,
) -> Report:
    """Try every law on a wrapper class, ours or foreign, and report.

    Args:
        factory: Wraps a target: the wrapper class, or a function that calls it.
        make_target: Builds a fresh target.
        names: The attributes and methods that the wrapper should forward.
        values: What to assign: one strategy for all names or one for each; by
            default None, integers, text and lists. A value that the target itself
            refuses or alters is left out.
        target: The attribute in which the wrapper keeps its target, if it does not
            show in its ``__dict__``, its ``__slots__`` or as ``__wrapped__``.
        read_only: Those of ``names`` that the wrapper should not let one change.
        depth: How many layers of wrappers to try.
        waive: The laws that the wrapper does not promise.
        strict: Try waived laws too, and mark those that hold.
        settings: Hypothesis' settings; by default those of the current profile,
            with 25 examples for a law.

    Raises:
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
    waived = known_laws(waive)
    subject = Subject.of(
        factory,
        make_target,
        names,
        values=values,
        target=target,
        read_only=read_only,
        depth=depth,
    )
    jury = _Jury(subject, waived, strict, settings)
    return Report(subject.label, tuple(map(jury.verdict, LAWS.values())))


def check(
    factory: Callable[[Any], Any],
    make_target: Callable[[], Any],
    names: Collection[str],
    *,
    values: Values = None,
    target: str | None = None,
    read_only: Collection[str] = (),
    depth: int = 3,
    waive: Collection[str] = (),
    strict: bool = False,
    settings: hypothesis.settings | None = None,
) -> None:
    """Insist that a wrapper class, ours or foreign, keeps every law.

    The arguments are those of :func:`judge`.

    Raises:
        LawBrokenError: A law is broken; the message shows the shortest program that
            breaks it and says why it matters. With ``strict`` also an
            ``AssertionError`` for a law that is waived although it holds.
        ValueError: An argument makes no sense, such as an unknown law in ``waive``.
    """
    __tracebackhide__ = True  # pytest then shows the test and the message only.
    report = judge(
        factory,
        make_target,
        names,
        values=values,
        target=target,
        read_only=read_only,
        depth=depth,
        waive=waive,
        strict=strict,
        settings=settings,
    )
    broken = [v for v in report.verdicts if v.status == "broken"]
    if broken:
        raise LawBrokenError(
            _message(report, broken[0]),
            law=broken[0].law,
            counterexample=broken[0].detail,
        )
    needless = [verdict.law.name for verdict in report.verdicts if verdict.needless]
    if needless:
        raise AssertionError(
            f"{report.label} keeps {', '.join(map(repr, needless))}: "
            "remove the needless waiver"
        )


def _message(report: Report, verdict: Verdict) -> str:
    law = verdict.law
    others = [name for name in report.named("broken") if name != law.name]
    parts = [
        f"{report.label} breaks the law {law.name!r}: {law.statement}",
        textwrap.indent(verdict.detail, "    "),
        textwrap.fill(f"Why it matters: {law.why}", 88),
        f"If it need not hold, pass waive={{{law.name!r}}}.",
    ]
    if others:
        parts.append(f"Also broken: {', '.join(others)}.")
    return "\n\n".join(parts)


@final
@dataclasses.dataclass(frozen=True, slots=True)
class _Jury:
    """Applies laws to one subject."""

    subject: Subject
    waived: frozenset[str]
    strict: bool
    settings: hypothesis.settings | None

    def verdict(self, law: Law) -> Verdict:
        if law.name in self.waived:
            needless = self.strict and self._try(law).status == "holds"
            return Verdict(law, "waived", needless=needless)
        lacking = sorted(law.needs & self.waived)
        if lacking:
            reason = f"needs {lacking[0]!r}, which is waived"
            return Verdict(law, "not applicable", reason)
        return self._try(law)

    def _try(self, law: Law) -> Verdict:
        trial = _Trial(law, list(self.subject.cases(law)))
        if not trial.cases:
            return Verdict(law, "not applicable", _nothing_for(law, self.subject.depth))
        try:
            self._explore(trial)
        except (ScriptFailedError, Flaky):
            return Verdict(law, "broken", trial.failure)
        if trial.applied:
            return Verdict(law, "holds")
        return Verdict(law, "not applicable", trial.reason)

    def _explore(self, trial: "_Trial") -> None:
        """Run the trial on values that hypothesis looks for and makes small."""
        count = trial.law.values
        if not count:
            return trial.run({})
        strategies = {
            case.name: st.tuples(*[self.subject.values[case.name]] * count)
            for case in trial.cases
        }
        search = hypothesis.given(st.fixed_dictionaries(strategies))(trial.run)
        try:
            self._quiet()(search)()
        except Unsatisfiable as error:
            raise ValueError(
                f"{self.subject.label}: the target stores none of the values tried as "
                "they are; pass values="
            ) from error

    def _quiet(self) -> hypothesis.settings:
        """Return the settings, less what would print or stop a search."""
        # Any: pyright takes the members of HealthCheck for its metaclass.
        every_check: Any = tuple(hypothesis.HealthCheck)
        return hypothesis.settings(
            self.settings or hypothesis.settings(max_examples=_NUM_EXAMPLES),
            database=None,
            deadline=None,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=every_check,
            verbosity=hypothesis.Verbosity.quiet,
        )


def _nothing_for(law: Law, depth: int) -> str:
    if law.layers > depth:
        return f"needs {law.layers} layers"
    if law.on == "method":
        return "no method among the names"
    if law.on == "data":
        return "no data attribute among the names"
    return f"no {law.on} attribute among the names"


@final
@dataclasses.dataclass(slots=True)
class _Trial:
    """One law on all its cases, and what became of it."""

    law: Law
    cases: list[Case]
    applied: bool = False
    reason: str = ""
    failure: str = ""

    def run(self, values: dict[str, tuple[object, ...]]) -> None:
        """Run every case on these values; stop at the first that fails."""
        for case in self.cases:
            try:
                case.run(self.law, values.get(case.name, ()))
            except NotApplicableError as error:
                self.reason = str(error)
            except ScriptFailedError as error:
                self.failure = str(error)
                raise
            else:
                self.applied = True
