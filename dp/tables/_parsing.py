"""The value that a text stands for: a number, a date, a category, or none.

Every text is read by itself. Deciding by a whole column what its values are would let
one row change how all others are read: a single ``n/a`` would make a column of numbers
one of texts.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, final

import numpy as np

from dp.tables._values import Integers, Values, bucket_of


__all__ = ("Kind", "Parsing", "no_value_marks")

_NO_VALUE_MARKS: Final = frozenset(
    {
        *("", "?", "-", ".", "#N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "na"),
        *("NaN", "nan", "-nan", "NULL", "null", "None", "none", "NaT"),
    }
)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?", re.ASCII)
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_DAY: Final = 86400.0

Kind = Literal["auto", "text", "date"]
"""What a column is declared to hold: anything, categories only, or dates only."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parsing:
    """How texts are read: public, and declared by the user.

    Attributes:
        decimal: The decimal separator.
        date_format: The format of declared dates, as ``strptime`` has it; None for
            ISO 8601.
    """

    decimal: str = "."
    date_format: str | None = None

    def column(self, texts: Sequence[str], codes_N: Integers, kind: Kind) -> Values:
        """Return the values of a column.

        Args:
            texts: Every different text of the column.
            codes_N: Which of them each row has; -1 for none.
            kind: What the column was declared to hold.
        """
        read = [self._value(text.strip(), kind) for text in texts]
        read.append((math.nan, -1))  # What code -1 refers to.
        numbers, buckets = zip(*read, strict=True)
        return Values(
            np.array(numbers, dtype=np.float64)[codes_N],
            np.array(buckets, dtype=np.int64)[codes_N],
        )

    def _value(self, text: str, kind: Kind) -> tuple[float, int]:
        """Return a text's number, or NaN, and its bucket, or -1."""
        if text in _NO_VALUE_MARKS:
            return math.nan, -1
        if kind == "text":
            return math.nan, bucket_of(text)
        if kind == "date":
            return self._days(text), -1
        number = self._number(text)
        return number, bucket_of(text) if math.isnan(number) else -1

    def _number(self, text: str) -> float:
        plain = text.replace(self.decimal, ".") if self.decimal != "." else text
        if _NUMBER.fullmatch(plain):
            number = float(plain)
            # An overflow is a large number, too; infinity would have no cell.
            return math.copysign(min(abs(number), np.finfo(np.float64).max), number)
        return _iso_days(text) if _DATE.fullmatch(text) else math.nan

    def _days(self, text: str) -> float:
        if self.date_format is None:
            return _iso_days(text)
        try:
            return _since_epoch(datetime.strptime(text, self.date_format))  # noqa: DTZ007
        except ValueError:
            return math.nan


def _iso_days(text: str) -> float:
    try:
        return _since_epoch(datetime.fromisoformat(text))
    except ValueError:
        return math.nan


def _since_epoch(moment: datetime) -> float:
    """Return days since the year 2000; a time without a zone is taken as UTC."""
    zoned = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (zoned - _EPOCH).total_seconds() / _DAY


def no_value_marks() -> frozenset[str]:
    """Return the texts that stand for no value, in whatever column."""
    return _NO_VALUE_MARKS
