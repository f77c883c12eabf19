"""One pytest test for each law."""

import functools
from collections.abc import Callable, Collection
from typing import Any, Unpack

from forwarding.testing._judge import broken
from forwarding.testing._jury import Jury
from forwarding.testing._law import LawBrokenError
from forwarding.testing._laws import LAWS
from forwarding.testing._options import Given, Options
from forwarding.testing._subject import Subject, label


__all__ = ("law_tests",)


def law_tests(
    factory: Callable[[Any], Any],
    make_target: Callable[[], Any],
    names: Collection[str],
    **options: Unpack[Given],
) -> Callable[[str], None]:
    """Return a pytest test that is run once for each law.

    Assign it to a name that pytest collects; the arguments are those of
    :func:`judge`::

        test_car = law_tests(Car, Engine, ["rpm", "start"], waive={"delete": "#12"})

    Each law is a test with an id of its own, ``test_car[put-get]``, so that ``-k``,
    ``--lf`` and reports work. A law that says nothing about the wrapper is
    skipped with the reason. One that is waived is expected to fail, and under
    ``strict`` must. One that is broken because another is, is reported as an
    expected failure that names the other, so that one mistake is one failure.

    Raises:
        TypeError: There is no such option.
        ValueError: ``depth`` or ``waive`` makes no sense. Wrong names are reported by
            the tests, for no target is built before they run.
    """
    import pytest  # noqa: PLC0415  # the rest of the kit does without

    given = Options.of(options)

    # At the first test, not at collection: a target may open a file or a connection.
    @functools.cache
    def jury() -> Jury:
        return Jury(Subject.of(factory, make_target, names, given))

    @pytest.mark.parametrize("law", [_parameter(law, given) for law in LAWS])
    def test_law(law: str) -> None:
        __tracebackhide__ = True  # The message says it all.
        _settle(jury(), law)

    test_law.law_subject = label(factory, "factory")  # type: ignore[attr-defined]
    return test_law


def _parameter(law: str, options: Options) -> Any:
    import pytest  # noqa: PLC0415

    marks = []
    if law in options.waived:
        strict = {"strict": True} if options.strict else {}
        reason = options.reason(law)
        marks = [pytest.mark.xfail(reason=reason, raises=LawBrokenError, **strict)]
    return pytest.param(law, id=law.replace(" ", "-"), marks=marks)


def _settle(jury: Jury, law: str) -> None:
    """Give the verdict on a law to pytest; on a waived one too, which may fail."""
    import pytest  # noqa: PLC0415

    __tracebackhide__ = True
    is_waived = law in jury.subject.options.waived
    verdict = jury.tried(law) if is_waived else jury.verdict(law)
    if verdict.status == "not applicable":
        pytest.skip(verdict.detail)
    if verdict.cause:
        pytest.xfail(f"follows from {verdict.cause!r}, which is broken")
    if verdict.status == "broken":
        raise broken(jury.subject.label, verdict)
