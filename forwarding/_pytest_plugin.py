"""The pytest plugin of forwarding's law kit: one line a wrapper in the summary.

pytest imports it when it starts, in every project of the environment. So it imports
neither the law kit nor hypothesis: a suite without laws pays for ``import forwarding``
alone, which comes with any module of the package.
"""

from collections import Counter
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import pytest

__all__ = ("pytest_itemcollected", "pytest_terminal_summary")

_PROPERTY = "laws of forwarding"
_TOLD = {
    "passed": "hold",
    "failed": "broken",
    "error": "in error",
    "xfailed": "broken as expected",
    "xpassed": "hold unexpectedly",
    "skipped": "not applicable",
}


def pytest_itemcollected(item: "pytest.Item") -> None:
    """Note whose laws a test tries, so that it travels with the report."""
    subject = getattr(getattr(item, "function", None), "law_subject", None)
    if subject is not None:
        item.user_properties.append((_PROPERTY, subject))


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """Print how many laws each wrapper keeps."""
    counts: dict[str, Counter[str]] = {}
    for outcome in _TOLD:
        for report in terminalreporter.stats.get(outcome, ()):
            # A module that is skipped as a whole is reported without properties.
            properties = dict(getattr(report, "user_properties", ()))
            subject = properties.get(_PROPERTY)
            if subject is not None:
                counts.setdefault(subject, Counter())[outcome] += 1
    if counts:
        terminalreporter.section("laws of forwarding")
    for subject, outcomes in sorted(counts.items()):
        told = (
            f"{outcomes[outcome]} {_TOLD[outcome]}"
            for outcome in _TOLD
            if outcomes[outcome]
        )
        terminalreporter.line(f"{subject}: {', '.join(told)}")
