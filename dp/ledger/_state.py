"""Read the charges of a ledger's state, in plain types.

Nothing of this need be believed: what is written is read again at once, and what is
read is written again, and the ledger raises if either differs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dp import _checks
from dp.accounting._counted import check_counted
from dp.exceptions import LedgerError
from dp.ledger._charge import Charge
from dp.ledger._remarks import Remarks
from dp.ledger._segments import Segments


__all__ = ("VERSION", "Read", "read", "sound_charge")

VERSION: Final = 2
_KNOWN_VERSIONS: Final = (1, 2)


class Read(NamedTuple):
    """What a ledger's state says.

    Attributes:
        segments: The charges of each process, each checked.
        remarks: What has to be said of them besides.
    """

    segments: Segments
    remarks: Remarks


def read(state_dict: Mapping[str, Any]) -> Read:
    """Return what a ledger's state says.

    Raises:
        LedgerError: If it is of an unknown version, or damaged.
    """
    return Read(_segments(state_dict), Remarks.of_state(state_dict))


def _segments(state_dict: Mapping[str, Any]) -> Segments:
    # A version that is not known might count what this one does not: refused, not
    # guessed.
    version = state_dict.get("version") if isinstance(state_dict, Mapping) else None
    if version not in _KNOWN_VERSIONS:
        raise LedgerError(
            f"the ledger is of version {version!r}, and this release of dp reads"
            f" {' and '.join(map(str, _KNOWN_VERSIONS))}: it is damaged, or a later"
            " release wrote it, which can load it"
        )
    segments = state_dict.get("segments")
    if not isinstance(segments, Mapping):
        raise LedgerError("the ledger has no segments: it is damaged")
    return {str(key): _segment(rows) for key, rows in segments.items()}


def _segment(rows: object) -> tuple[Charge, ...]:
    if not isinstance(rows, Sequence):
        raise LedgerError("the ledger holds a segment without charges: it is damaged")
    return tuple(map(sound_charge, rows))


def sound_charge(row: Mapping[str, Any]) -> Charge:
    """Return the charge of a row; raise :class:`LedgerError` if it cannot be one."""
    try:
        charge = Charge.from_dict(row)
        # A release checks its own numbers: q in (0, 1], sigma not negative, a count of
        # 1 or more.
        charge.to_release()
        _check_bounded(charge)
        check_counted(charge.noise_multiplier, charge.noise_beside_count)
        _checks.positive(max_grad_norm=charge.max_grad_norm)
        charge.norm_range.check(charge.max_grad_norm)
    except (AttributeError, TypeError, ValueError) as error:
        raise LedgerError(f"the ledger holds a damaged charge: {error}") from error
    return charge


def _check_bounded(charge: Charge) -> None:
    """Raise if a charge is accounted at more noise, or less sampling, than was used."""
    # An altered row could state sigma 1.0 as used and 2.0 as planned: a part of the
    # cost.
    release = charge.to_release()
    if (
        release.noise_multiplier > charge.noise_multiplier
        or release.sampling_probability < charge.sampling_probability
    ):
        raise ValueError("it is accounted at less than it cost")
