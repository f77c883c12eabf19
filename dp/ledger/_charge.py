"""One line of a ledger, and segments of them in plain types."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, final

from dp import _checks
from dp.accounting._release import Release, Truncation
from dp.exceptions import LedgerError


__all__ = ("VERSION", "Charge", "alike", "appended", "parsed")

VERSION: Final = 1
_FIELDS: Final = (
    "sampling_probability",
    "noise_multiplier",
    "max_grad_norm",
    "count",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A number of equal releases in a row.

    Attributes:
        sampling_probability: Probability of an example to be in a batch.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        max_grad_norm: Sensitivity of the sums that were noised.
        count: How many.
        truncation: How a batch was made smaller, if it was.
        steps_per_pass: Steps of a pass by random allocation, all of which are charged
            at once; None for Poisson samples.
    """

    sampling_probability: float
    noise_multiplier: float
    max_grad_norm: float
    count: int
    truncation: Truncation | None = None
    steps_per_pass: int | None = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Charge":
        """Return the charge that :meth:`to_dict` wrote; its numbers are not checked.

        Raises:
            AttributeError, TypeError, ValueError: If it is none.
        """
        truncation = row.get("truncation")
        smaller = None if truncation is None else Truncation(**truncation)
        return cls(**{**row, "truncation": smaller})

    def to_dict(self) -> dict[str, Any]:
        """Return the charge in plain types; nothing of a truncation if there is none."""
        row: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        if self.truncation is not None:
            row["truncation"] = asdict(self.truncation)
        if self.steps_per_pass is not None:
            row["steps_per_pass"] = self.steps_per_pass
        return row

    def to_release(self) -> Release:
        """Return what the accountant needs of it."""
        return Release(
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            count=self.count,
            truncation=self.truncation,
            steps_per_pass=self.steps_per_pass,
        )


def appended(segment: tuple[Charge, ...], charge: Charge) -> tuple[Charge, ...]:
    """Return *segment* with *charge*, counted together with an equal last one."""
    if segment and alike(segment[-1], charge):
        count = segment[-1].count + charge.count
        return (*segment[:-1], replace(charge, count=count))
    return (*segment, charge)


def alike(left: Charge, right: Charge) -> bool:
    """Whether two charges differ in their count at most."""
    return (
        left.noise_multiplier == right.noise_multiplier
        and left.max_grad_norm == right.max_grad_norm
        and left.sampling_probability == right.sampling_probability
        and left.truncation == right.truncation
        and left.steps_per_pass == right.steps_per_pass
    )


def parsed(state_dict: Mapping[str, Any]) -> dict[str, tuple[Charge, ...]]:
    """Return the segments that a ledger's state holds, each charge checked.

    Raises:
        LedgerError: If it is of another version, or damaged.
    """
    if not isinstance(state_dict, Mapping) or state_dict.get("version") != VERSION:
        raise LedgerError(
            f"the ledger is not of version {VERSION}: it is damaged, or another"
            " release of this package wrote it"
        )
    segments = state_dict.get("segments")
    if not isinstance(segments, Mapping):
        raise LedgerError("the ledger has no segments: it is damaged")
    return {str(key): _segment(rows) for key, rows in segments.items()}


def _segment(rows: object) -> tuple[Charge, ...]:
    if not isinstance(rows, Sequence):
        raise LedgerError("the ledger holds a segment without charges: it is damaged")
    return tuple(map(_charge, rows))


def _charge(row: Mapping[str, Any]) -> Charge:
    try:
        charge = Charge.from_dict(row)
        charge.to_release()
        _checks.positive(max_grad_norm=charge.max_grad_norm)
    except (AttributeError, TypeError, ValueError) as error:
        raise LedgerError(f"the ledger holds a damaged charge: {error}") from error
    return charge
