"""One line of a ledger, and segments of them in plain types."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, final

from dp import _checks
from dp._typing import Assignment
from dp.accounting._counted import NoiseBesideCount, check_counted
from dp.accounting._release import Release, Truncation
from dp.exceptions import LedgerError


__all__ = (
    "VERSION",
    "Charge",
    "alike",
    "appended",
    "known_advisories",
    "parsed",
    "parsed_declarations",
    "sound_charge",
)

VERSION: Final = 2
_KNOWN_VERSIONS: Final = (1, 2)
_FIELDS: Final = (
    "sampling_probability",
    "noise_multiplier",
    "max_grad_norm",
    "count",
)
_FIELDS_OFF_PLAN: Final = (
    "planned_noise_multiplier",
    "planned_sampling_probability",
    "public",
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
        steps_per_pass: Steps of a pass by random allocation, or of disjoint batches,
            all of which are charged at once; None for Poisson samples.
        disjoint: How the disjoint batches of a pass are assigned; None for samples.
        bands: Steps of a round by cyclic Poisson sampling, all of which are charged at
            once; None for Poisson samples.
        planned_noise_multiplier: What they are accounted at where more noise was added
            than planned: the plan's, since the surplus may depend on earlier releases.
        planned_sampling_probability: The same where less was sampled than planned.
        public: Why the numbers are public, where they are not the plan's and were
            declared so.
        noise_beside_count: The noise on the sum and on a count of the gradients within
            ``max_grad_norm``, where one was released beside it: then
            ``noise_multiplier`` is what the two are charged as.
    """

    sampling_probability: float
    noise_multiplier: float
    max_grad_norm: float
    count: int
    truncation: Truncation | None = None
    steps_per_pass: int | None = None
    disjoint: Assignment | None = None
    bands: int | None = None
    planned_noise_multiplier: float | None = None
    planned_sampling_probability: float | None = None
    public: str | None = None
    noise_beside_count: NoiseBesideCount | None = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Charge":
        """Return the charge that :meth:`to_dict` wrote; its numbers are not checked.

        Raises:
            AttributeError, TypeError, ValueError: If it is none.
        """
        truncation = row.get("truncation")
        smaller = None if truncation is None else Truncation(**truncation)
        split = row.get("noise_beside_count")
        noises = None if split is None else NoiseBesideCount(**split)
        return cls(**{**row, "truncation": smaller, "noise_beside_count": noises})

    def to_dict(self) -> dict[str, Any]:
        """Return the charge in plain types, without what it has not."""
        # What a charge has not is left out, so that the row of an ordinary one reads
        # the same as before these fields existed.
        row: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        for name in _FIELDS_OFF_PLAN:
            if getattr(self, name) is not None:
                row[name] = getattr(self, name)
        if self.truncation is not None:
            row["truncation"] = asdict(self.truncation)
        if self.noise_beside_count is not None:
            row["noise_beside_count"] = asdict(self.noise_beside_count)
        if self.steps_per_pass is not None:
            row["steps_per_pass"] = self.steps_per_pass
        if self.disjoint is not None:
            row["disjoint"] = self.disjoint
        if self.bands is not None:
            row["bands"] = self.bands
        return row

    def to_release(self) -> Release:
        """Return what the accountant composes: the plan's step where that costs more."""
        # Example: planned with sigma 1.0, released with 1.2, charged as 1.0. Whether
        # there was more noise may have been decided by earlier releases, which no sum
        # of privacy losses allows for; at least the planned noise is a fact that does
        # not depend on them.
        sigma, q = self.planned_noise_multiplier, self.planned_sampling_probability
        return Release(
            sampling_probability=self.sampling_probability if q is None else q,
            noise_multiplier=self.noise_multiplier if sigma is None else sigma,
            count=self.count,
            truncation=self.truncation,
            steps_per_pass=self.steps_per_pass,
            disjoint=self.disjoint,
            bands=self.bands,
        )


def appended(segment: tuple[Charge, ...], charge: Charge) -> tuple[Charge, ...]:
    """Return *segment* with *charge*, counted together with an equal last one."""
    # A run of 10 000 equal steps is one line that counts to 10 000.
    if segment and alike(segment[-1], charge):
        count = segment[-1].count + charge.count
        return (*segment[:-1], replace(charge, count=count))
    return (*segment, charge)


def alike(left: Charge, right: Charge) -> bool:
    """Whether two charges differ in their count at most."""
    return replace(left, count=right.count) == right


def parsed(state_dict: Mapping[str, Any]) -> dict[str, tuple[Charge, ...]]:
    """Return the segments that a ledger's state holds, each charge checked.

    Raises:
        LedgerError: If it is of an unknown version, or damaged.
    """
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


def parsed_declarations(state_dict: Mapping[str, Any]) -> list[str]:
    """Return the tensors that a ledger's state says were declared public.

    Raises:
        LedgerError: If it is damaged.
    """
    declared = state_dict.get("declared_public", [])
    if not isinstance(declared, list) or not all(
        isinstance(one, str) for one in declared
    ):
        raise LedgerError(
            "the ledger does not list the tensors that were declared public by their"
            " descriptions: it is damaged"
        )
    return declared


def known_advisories(state_dict: Mapping[str, Any]) -> int:
    """Return how many advisories were known where a ledger's state was written.

    Raises:
        LedgerError: If that is no number of them.
    """
    known = state_dict.get("advisories", 0)  # Version 1 was written before the first.
    if not isinstance(known, int) or known < 0:
        raise LedgerError(f"the ledger states {known!r} advisories: it is damaged")
    return known


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
