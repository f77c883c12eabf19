"""Try laws on a subject, on values that hypothesis draws."""

import contextlib
import copy
import dataclasses
from typing import Any, final

import hypothesis
from hypothesis import strategies as st
from hypothesis.errors import Flaky, Unsatisfiable

from forwarding.testing._case import Case
from forwarding.testing._law import Law
from forwarding.testing._laws import LAWS
from forwarding.testing._report import Report, Verdict
from forwarding.testing._script import ScriptFailedError
from forwarding.testing._subject import Subject
from forwarding.testing.probes import NotApplicableError


__all__ = ("Jury",)

_NUM_EXAMPLES = 25

_Example = dict[str, tuple[object, object]]


@final
class Jury:
    """Tries laws on one subject, each at most once.

    Values are drawn once and serve every law, the simplest first: most laws that are
    broken at all are broken by the first. Only for one that is not does hypothesis
    look for a simpler value.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._verdicts: dict[str, Verdict] = {}
        self._drawn: list[_Example] | None = None

    def report(self) -> Report:
        """Return the verdicts on all laws, each broken one with its cause."""
        verdicts = tuple(self.verdict(name) for name in LAWS)
        return Report(self.subject.label, verdicts, self.subject.depth)

    def verdict(self, name: str) -> Verdict:
        """Return the verdict on one law, with its cause if it is broken."""
        verdict = self._verdict(name)
        if verdict.status != "broken":
            return verdict
        return dataclasses.replace(verdict, cause=self._cause(LAWS[name]))

    def tried(self, name: str) -> Verdict:
        """Return what comes of a law that is tried although it may be waived."""
        if name not in self._verdicts:
            self._verdicts[name] = self._try(LAWS[name])
        return self._verdicts[name]

    def _verdict(self, name: str) -> Verdict:
        law, options = LAWS[name], self.subject.options
        if name in options.waived:
            needless = options.strict and self.tried(name).status == "holds"
            return Verdict(law, "waived", needless=needless)
        lacking = sorted(law.needs & options.waived)
        if lacking:
            reason = f"needs {lacking[0]!r}, which is waived"
            return Verdict(law, "not applicable", reason)
        return self.tried(name)

    def _cause(self, law: Law) -> str:
        """Return the root of a broken law, empty if it is one."""
        # In the order of the reports, so that the earliest cause is named: get, then
        # put-get, on which most of the others build.
        for name in LAWS:
            if (
                name in law.follows | law.needs
                and self._verdict(name).status == "broken"
            ):
                return self._cause(LAWS[name]) or name
        return ""

    def _try(self, law: Law) -> Verdict:
        names = self.subject.names_in(law.on)
        if law.special:
            names += self.subject.names_in("special")
        if law.nameless and not names:
            law, names = _without_names(law), ("",)
        trial = _Trial(law)
        for depth in range(law.layers, self.subject.depth + 1):
            for name in names:
                case = Case(self.subject, law, depth, name)
                for values in self._values(case):
                    if not trial.passes(case, values):
                        return Verdict(
                            law, "broken", self._simplest(trial, case, values)
                        )
        if trial.applied:
            return Verdict(law, "holds")
        return Verdict(law, "not applicable", trial.reason or self._nothing_for(law))

    def _values(self, case: Case) -> list[tuple[object, ...]]:
        """Return what to try: deeper stacks are given every second or third value."""
        if not case.law.values:
            return [()]
        # Depth adds layers of the same code; a value that only breaks a deep stack is
        # rare, and a run costs as many constructions as there are layers.
        examples = self._examples()[:: case.depth]
        drawn: list[tuple[object, ...]] = [example[case.name] for example in examples]
        return drawn + _equal(case) if case.law.equal else drawn

    def _examples(self) -> list[_Example]:
        if self._drawn is None:
            self._drawn = self._draw()
        return self._drawn

    def _draw(self) -> list[_Example]:
        subject, drawn = self.subject, list[_Example]()
        pairs = {
            name: st.tuples(subject.values[name], subject.values[name])
            for name in subject.names_in("settable")
        }

        def keep(example: _Example) -> None:
            drawn.append(example)

        search = hypothesis.given(st.fixed_dictionaries(pairs))(keep)
        try:
            self._quiet(hypothesis.Phase.generate)(search)()
        except Unsatisfiable as error:
            refused = [name for name in pairs if not self._is_satisfied(pairs[name])]
            raise ValueError(
                f"{subject.label}: the target stores none of the values tried for "
                f"{', '.join(refused or pairs)} as they are; pass values="
            ) from error
        return drawn

    def _is_satisfied(self, strategy: st.SearchStrategy[Any]) -> bool:
        """Whether a value can be drawn at all."""

        def ignore(_value: object) -> None: ...

        try:
            self._quiet(hypothesis.Phase.generate)(hypothesis.given(strategy)(ignore))()
        except Unsatisfiable:
            return False
        return True

    def _simplest(self, trial: "_Trial", case: Case, values: tuple[object, ...]) -> str:
        """Return the counterexample with the simplest values that hypothesis finds."""
        failure = trial.failure
        # The first example is the simplest that hypothesis knows.
        if not values or values is self._examples()[0][case.name]:
            return failure
        strategy = self.subject.values[case.name]

        def search(value: object, other: object) -> None:
            assert trial.passes(case, (value, other))  # noqa: S101  # what hypothesis minds

        given = hypothesis.given(strategy, strategy)(search)
        phases = hypothesis.Phase.generate, hypothesis.Phase.shrink
        trial.failure = ""
        with contextlib.suppress(AssertionError, Flaky, Unsatisfiable):
            self._quiet(*phases)(given)()
        return trial.failure or failure

    def _quiet(self, *phases: hypothesis.Phase) -> hypothesis.settings:
        """Return the settings, less what would print or stop a search."""
        # Any: pyright takes the members of HealthCheck for its metaclass.
        every_check: Any = tuple(hypothesis.HealthCheck)
        return hypothesis.settings(
            self.subject.options.settings
            or hypothesis.settings(max_examples=_NUM_EXAMPLES),
            database=None,
            deadline=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=every_check,
            verbosity=hypothesis.Verbosity.quiet,
        )

    def _nothing_for(self, law: Law) -> str:
        if law.layers > self.subject.depth:
            return f"needs {law.layers} layers"
        named = {
            "method": "method",
            "data": "data attribute",
            "fluent": "fluent method",
        }.get(law.on, f"{law.on} attribute")
        return f"no {named} among the names"


def _equal(case: Case) -> list[tuple[object, ...]]:
    """Return a copy of the value that a name has, where the target takes one.

    A wrapper that compares before it puts confuses what is equal with what is the same,
    and a value that equals the present one is seldom drawn.
    """
    subject = case.subject
    value = getattr(subject.make_target(), case.name)
    with contextlib.suppress(Exception):  # Not every value can be copied.
        twin = copy.copy(value)
        if twin is not value and subject.stores(case.name, twin):
            return [(twin, twin)]
    return []


def _without_names(law: Law) -> Law:
    """Return what a law says of a wrapper that has no name which it speaks about."""
    control, _, _ = law.nameless.partition("\n")  # It requires the same of the target.
    return dataclasses.replace(law, script=law.nameless, control=control, values=0)


@final
@dataclasses.dataclass(slots=True)
class _Trial:
    """One law on all its cases, and what became of it."""

    law: Law
    applied: bool = False
    reason: str = ""
    failure: str = ""
    controlled: dict[str, bool] = dataclasses.field(default_factory=dict[str, bool])

    def passes(self, case: Case, values: tuple[object, ...]) -> bool:
        """Run the law; keep why it fails, or says nothing.

        Its control runs first on every name, and again wherever the law fails, or
        where it failed before: what the bare target does not keep on these values,
        no wrapper is accused of.
        """
        # Once per name, since most probes bite on every value or on none; pydantic's
        # models, for example, ignore every property that is put on them.
        if not self.controlled.get(case.name, False):
            self.controlled[case.name] = self._bites(case, values)
            if not self.controlled[case.name]:
                return True
        try:
            case.run(values)
        except NotApplicableError as error:
            self.reason = str(error)
        except ScriptFailedError as error:
            if self._bites(case, values):
                self.failure = str(error)
                return False
        else:
            self.applied = True
        return True

    def _bites(self, case: Case, values: tuple[object, ...]) -> bool:
        if not self.law.control:
            return True
        try:
            dataclasses.replace(case, depth=0).run(values)
        except NotApplicableError as error:
            self.reason = str(error)
        except ScriptFailedError as error:
            self.reason = f"the bare target does not keep it: {error.lines[-1]}"
        else:
            return True
        return False
