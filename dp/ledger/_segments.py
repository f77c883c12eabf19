"""Segments: the charges of each process of a run, in the order in which it made them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final, Self, final

from dp.accounting import merge_equal_releases
from dp.exceptions import LedgerError
from dp.ledger._charge import Charge
from dp.plan import PrivacyPlan


__all__ = (
    "Segments",
    "Totals",
    "appended",
    "includes",
    "merge",
    "rows",
)

Segments = Mapping[str, tuple[Charge, ...]]
"""Charges by the id of the process that made them."""

# All of a charge but its count: compared at every step, without building a charge.
_kind_of: Final = attrgetter(*(f.name for f in fields(Charge) if f.name != "count"))


def appended(segment: tuple[Charge, ...], charge: Charge) -> tuple[Charge, ...]:
    """Return *segment* with *charge*, counted together with an equal last one."""
    # A run of 10 000 equal steps is one line that counts to 10 000.
    if segment and _alike(segment[-1], charge):
        last = segment[-1]
        count = last.count + charge.count
        if last.norms is None and last.max_grad_norm == charge.max_grad_norm:
            return (*segment[:-1], replace(charge, count=count))
        norms = last.norm_range.around(charge.max_grad_norm)
        moved = None if norms.least == norms.largest else norms
        return (*segment[:-1], replace(charge, count=count, norms=moved))
    return (*segment, charge)


def _alike(left: Charge, right: Charge) -> bool:
    """Whether two charges differ in their count at most, or in a norm that moves."""
    if left.norm_moves:
        right = replace(right, max_grad_norm=left.max_grad_norm, norms=left.norms)
    return bool(_kind_of(left) == _kind_of(right))


def _goes_on(earlier: Charge, later: Charge) -> bool:
    """Whether *later* is *earlier*, or that and more releases, counted together."""
    if not _alike(earlier, later) or earlier.count >= later.count:
        return earlier == later
    return later.norm_range.includes(earlier.norm_range)


def merge(
    ours: tuple[Charge, ...], theirs: tuple[Charge, ...], key: str
) -> tuple[Charge, ...]:
    """Return that of two states of one segment which continues the other.

    Raises:
        LedgerError: If neither does.
    """
    short, long = sorted(
        (ours, theirs), key=lambda s: (len(s), sum(c.count for c in s))
    )
    if short:
        before, last = short[:-1], short[-1]
        if before != long[: len(before)] or not _goes_on(last, long[len(before)]):
            raise LedgerError(
                f"segment {key!r} of the loaded ledger contradicts what this ledger"
                " knows of it; one of the two was altered"
            )
    return long


def includes(ours: Segments, theirs: Segments) -> bool:
    """Whether *ours* has every charge of *theirs*."""
    try:
        return all(
            merge(ours.get(key, ()), segment, key) == ours.get(key)
            for key, segment in theirs.items()
        )
    except LedgerError:
        return False


def rows(segments: Segments) -> dict[str, list[dict[str, Any]]]:
    """Return segments in plain types, as a state has them."""
    return {key: [c.to_dict() for c in segment] for key, segment in segments.items()}


@final
@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of some segments; they hold for these segments alone.

    ``as_planned``: whether the plan's first steps release just that.
    """

    segments: Segments
    steps: int
    as_planned: bool

    @classmethod
    def of(cls, segments: Segments, plan: PrivacyPlan) -> Self:
        """Add up the charges of segments."""
        charges = [charge for segment in segments.values() for charge in segment]
        steps = sum(charge.count for charge in charges)
        releases = merge_equal_releases(charge.to_release() for charge in charges)
        planned = merge_equal_releases(plan.releases(steps))
        return cls(segments, steps, as_planned=releases == planned)
