"""What a certificate can say of the losses of one process."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, final

from dp.exceptions import LedgerError


__all__ = ("Evidence", "longest", "of_segments")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen of the losses of the steps that one process charged.

    Only what the schedule made due is counted: on how many examples a look was, and
    how many looks surprising losses led to, depends on private data.

    Attributes:
        steps: How many steps it charged.
        evaluated: In how many the library evaluated a loss function itself.
        looks: In how many of these a second evaluation was due.
        other_sizes: Whether an example was also compared with itself alone, and in a
            smaller batch.
        inconclusive: Whether a look could not tell: the function did not repeat
            itself, or its examples could not be exchanged.
        checked: The day on which ``dp.check`` found nothing in all that is trained,
            as in ``2026-01-31``; None if it did not before the first finished losses.
    """

    steps: int = 0
    evaluated: int = 0
    looks: int = 0
    other_sizes: bool = False
    inconclusive: bool = False
    checked: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence in plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Evidence":
        """Return what :meth:`to_dict` wrote.

        Raises:
            LedgerError: If it is damaged.
        """
        counts = ("steps", "evaluated", "looks")
        sound = set(row) == {f.name for f in fields(cls)} and (
            all(type(row[name]) is int for name in counts)
            and 0 <= row["looks"] <= row["evaluated"] <= row["steps"]
            and type(row["other_sizes"]) is type(row["inconclusive"]) is bool
            and isinstance(row["checked"], str | None)
        )
        if not sound:
            raise LedgerError(f"the evidence {dict(row)!r} is damaged")
        return cls(**row)


def of_segments(
    known: Mapping[str, Evidence], steps: Mapping[str, int]
) -> dict[str, Evidence]:
    """Return the evidence of every segment of a ledger.

    Steps that were charged without an optimizer are steps of which nothing was seen.

    Args:
        known: What was recorded, by segment.
        steps: How many steps each segment charged.
    """
    return {
        key: replace(known.get(key, Evidence()), steps=number)
        for key, number in steps.items()
    }


def longest(known: Evidence | None, other: Evidence) -> Evidence:
    """Return that of two states of one process's evidence which knows more steps."""
    return other if known is None else max(known, other, key=lambda e: e.steps)
