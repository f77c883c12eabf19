"""What is read: reports of audits, checks and verifications, and values in words."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from decimal import ROUND_CEILING, Decimal
from html import escape
from numbers import Number
from typing import Final, final

from dp.exceptions import PrivacyError


__all__ = ("Described", "Finding", "Report", "bound", "lines_of", "shown")

_LONGEST_NAME: Final = 60  # Options are shorter; a longer text may be a row.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a report: what was looked at, and whether it holds.

    Attributes:
        claim: What was looked at.
        holds: Whether it is as it should be.
        detail: What was seen, with the numbers.
    """

    claim: str
    holds: bool
    detail: str


class Report(ABC):
    """A report that holds or does not, and can be read."""

    __slots__ = ()

    @property
    @abstractmethod
    def ok(self) -> bool:
        """Whether everything holds."""

    @abstractmethod
    def to_text(self) -> str:
        """Return the report for people to read."""

    def raise_if_failed(self) -> None:
        """Raise if something does not hold.

        Raises:
            PrivacyError: With the text of the report.
        """
        if not self.ok:
            raise PrivacyError(self.to_text())

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """Return the text with its columns, which Jupyter asks for."""
        return f"<pre>{escape(self.to_text())}</pre>"


def bound(value: float, decimals: int = 4) -> str:
    """Return an upper bound to read, rounded up: an epsilon that is shown holds, too.

    >>> bound(2.91571), bound(3.0), bound(2.001, decimals=2), bound(float("inf"))
    ('2.9158', '3.0000', '2.01', 'inf')
    """
    if not math.isfinite(value):
        return f"{value}"
    return f"{Decimal(value).quantize(Decimal(1).scaleb(-decimals), ROUND_CEILING)}"


def shown(value: object) -> str:
    """Return *value* as an error shows it, whatever was passed in its place.

    A dataset, a batch or a label that was passed for a number has private values in
    its text, and errors end up in logs: of such a value only the type is told.

    >>> shown(-1.5), shown("os"), shown([31, 41])
    ('-1.5', "'os'", 'a list')
    """
    is_option = value is None or isinstance(value, Number | type)
    is_name = isinstance(value, str) and len(value) <= _LONGEST_NAME
    is_empty = isinstance(value, list | tuple | dict) and not value
    if is_option or is_name or is_empty:
        return repr(value)
    return f"a {type(value).__name__}"


def lines_of(name: str, findings: Sequence[Finding]) -> list[str]:
    """Return a headline, and a line for each finding."""
    num_refuted = sum(not finding.holds for finding in findings)
    verdict = f"{num_refuted} of {len(findings)} REFUTED" if num_refuted else "holds"
    width = max(len(finding.claim) for finding in findings)
    return [f"{name}: {verdict}"] + [
        f"  {'yes' if f.holds else 'NO '}  {f.claim:{width}}  {f.detail}"
        for f in findings
    ]


class Described:
    """A dataclass whose ``str`` is a sentence, and which notebooks show as a table.

    Every field is said under its name, unless it has its default. ``repr`` stays the
    dataclass's own.
    """

    __slots__ = ()

    def _title(self) -> str:
        """Return what the value is, in a word or two."""
        return type(self).__name__

    def _facts(self) -> dict[str, str]:
        """Return what is said of it, by name."""
        return dict(_fields_of(self))

    def __str__(self) -> str:
        told = ", ".join(f"{name} {words}" for name, words in self._facts().items())
        return f"{self._title()}: {told}"

    def _repr_html_(self) -> str:
        """Return a table, which Jupyter asks for."""
        left = ' style="text-align: left"'
        rows = "".join(
            f"<tr><th{left}>{escape(name)}</th><td{left}>{escape(words)}</td></tr>"
            for name, words in self._facts().items()
        )
        return f"<table><caption>{escape(self._title())}</caption>{rows}</table>"


def _fields_of(value: object) -> Iterator[tuple[str, str]]:
    assert is_dataclass(value), "Described is for dataclasses"  # noqa: S101
    for field in fields(value):
        told = getattr(value, field.name)
        if field.default is MISSING or told != field.default:
            is_bound = field.name.startswith("epsilon") and isinstance(told, float)
            words = bound(told) if is_bound else _plain(told)
            yield field.name.replace("_", " "), words


def _plain(value: object) -> str:
    """Return a value to read.

    >>> _plain(2.91573123), _plain(1e-05), _plain(None)
    ('2.9157', '1e-05', 'none')
    """
    if isinstance(value, float):
        return f"{value:.5g}"
    return "none" if value is None else str(value)
