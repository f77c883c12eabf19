"""What was released, written down before it is released.

A charge goes in before noise is drawn, so a crash can lose a release but never a
charge. Each process that charges writes under a random id of its own; a checkpoint
that is loaded brings the ids it knows. Two runs that go on from one checkpoint
therefore add up when their ledgers meet, and loading one's own state adds nothing.

Nothing here is remembered that a crash could leave out of date: what is spent is
computed from the charges, and every change of them is one assignment.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final, final

from dp import _checks
from dp.accounting import Guarantee, Release, Truncation, epsilon, merged
from dp.exceptions import BudgetExhaustedError, LedgerError
from dp.plan import PrivacyPlan


__all__ = ("Charge", "Ledger")

_VERSION: Final = 1
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
    """

    sampling_probability: float
    noise_multiplier: float
    max_grad_norm: float
    count: int
    truncation: Truncation | None = None

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
        return row

    def to_release(self) -> Release:
        """Return what the accountant needs of it."""
        return Release(
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            count=self.count,
            truncation=self.truncation,
        )


@final
class Ledger:
    """The charges of a run, and the budget they are held against.

    Guarantees:
        * :meth:`reserve` raises, and charges nothing, if the plan would be exceeded.
        * Charges are never removed: loading a state adds those it knows more of.
        * A copy is a fork: what it charges later is its own, and both add up.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._segments: dict[str, tuple[Charge, ...]] = {}
        self._writer = _Writer()
        self._found = _Found()
        self._steps_within_target: int | None = None

    @property
    def plan(self) -> PrivacyPlan:
        """The plan whose budget is enforced."""
        return self._plan

    @property
    def steps(self) -> int:
        """The number of releases that were charged, in every segment."""
        return sum(charge.count for charge in self.charges())

    @property
    def num_segments(self) -> int:
        """The number of processes that charged, resumes and forks included."""
        return len(self._segments)

    @property
    def segment(self) -> str:
        """The id under which this process charges."""
        return self._writer.key()

    def charge_as(self, segment: str | None) -> None:
        """Charge under an id that the processes of one run share; None makes a new one.

        Whoever shares it must charge the same: it counts once where ledgers meet.
        """
        self._writer = _Writer(segment)

    def segments(self) -> Mapping[str, tuple[Charge, ...]]:
        """Return the charges of each process that charged, under its id."""
        return MappingProxyType(self._segments)

    def charges(self) -> tuple[Charge, ...]:
        """Return every charge, in the order in which each segment made them."""
        return tuple(c for segment in self._segments.values() for c in segment)

    def releases(self) -> tuple[Release, ...]:
        """Return the releases that were charged, equal ones counted together."""
        return merged(charge.to_release() for charge in self.charges())

    def spent(self) -> Guarantee:
        """Return the guarantee of everything charged, at the plan's delta."""
        return self._cost(self.releases())

    @property
    def is_exhausted(self) -> bool:
        """Whether the plan allows no other step as planned."""
        if self.steps >= self._plan.steps:
            return True
        upcoming = self._plan.releases(self.steps + 1)[-1]
        return not self._allows(replace(upcoming, count=1))

    def reserve(
        self,
        *,
        sampling_probability: float,
        noise_multiplier: float,
        max_grad_norm: float,
        truncation: Truncation | None = None,
    ) -> None:
        """Charge one release, before anything of it exists.

        Raises:
            BudgetExhaustedError: If the plan does not allow it; nothing is charged.
        """
        charge = Charge(
            sampling_probability=sampling_probability,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            count=1,
            truncation=truncation,
        )
        if not self._allows(charge.to_release()):
            raise BudgetExhaustedError(
                f"the plan's budget is spent: {self.steps} of {self._plan.steps} steps"
                f" were taken, target_epsilon={self._plan.target_epsilon!r}; the step"
                " was not taken. Make a new plan to go on: its cost adds to this one's"
            )
        key = self._writer.key()
        longer = _appended(self._segments.get(key, ()), charge)
        self._segments = {**self._segments, key: longer}

    def state_dict(self) -> dict[str, Any]:
        """Return the charges in plain types, as ``torch.load`` reads by default."""
        return {
            "version": _VERSION,
            "segments": {
                key: [charge.to_dict() for charge in segment]
                for key, segment in self._segments.items()
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Add the charges of another ledger that this one does not know yet.

        Raises:
            LedgerError: If the state is damaged, of another version, or contradicts
                what this ledger knows of the same segment; nothing is loaded.
        """
        loaded = _parsed(state_dict)
        merged_segments = dict(self._segments)
        for key, segment in loaded.items():
            merged_segments[key] = self.longer(
                self._segments.get(key, ()), segment, key
            )
        self._writer = _Writer()  # What follows is a fork of that state.
        self._segments = merged_segments

    @staticmethod
    def longer(
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
            end = long[len(before)]
            if (
                before != long[: len(before)]
                or _kind(last) != _kind(end)
                or last.count > end.count
            ):
                raise LedgerError(
                    f"segment {key!r} of the loaded ledger contradicts what this ledger"
                    " knows of it; one of the two was altered"
                )
        return long

    def __deepcopy__(self, memo: dict[int, object]) -> "Ledger":
        fork = Ledger(self._plan)
        fork._segments = self._segments  # Replaced as a whole, never written to.
        return fork

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickled, (self._plan, self.state_dict())

    def _cost(self, releases: tuple[Release, ...]) -> Guarantee:
        return epsilon(
            releases,
            delta=self._plan.target_delta,
            neighboring_relation=self._plan.neighboring_relation,
        )

    def _allows(self, release: Release) -> bool:
        """Whether the plan allows one more release."""
        after = merged((*self.releases(), release))
        num_steps = self.steps + 1
        if num_steps > self._plan.steps:
            return False
        if after == merged(self._plan.releases(num_steps)):
            return num_steps <= self._affordable_as_planned()
        kind = replace(release, count=1)
        others = tuple(r for r in after if replace(r, count=1) != kind)
        count = num_steps - sum(r.count for r in others)
        if self._found.allows(others, kind, count):
            return True
        most = self._plan.steps - num_steps + count
        # Twice as far as last time, so that a run of equal steps asks rarely.
        for goal in (min(most, count + self._found.stride(others, kind)), count):
            if self._within_target((*others, replace(release, count=goal))):
                self._found = _Found(others, kind, goal, goal - count + 1)
                return True
        return False

    def _affordable_as_planned(self) -> int:
        """How many steps of the plan keep its target."""
        if self._steps_within_target is None:
            self._steps_within_target = self._most_steps_within_target()
        return self._steps_within_target

    def _most_steps_within_target(self) -> int:
        steps = self._plan.steps
        if self._plan.target_epsilon is None:
            return steps
        if self._within_target(self._plan.releases(steps)):
            return steps
        low, high = 0, steps  # `low` is within, or no step is; `high` is not.
        while high - low > 1:
            middle = (low + high) // 2
            within = self._within_target(self._plan.releases(middle))
            low, high = (middle, high) if within else (low, middle)
        return low

    def _within_target(self, releases: tuple[Release, ...]) -> bool:
        limit = self._plan.target_epsilon
        if limit is None:
            limit = self._cost(self._plan.releases(self._plan.steps)).epsilon
        return self._cost(releases).epsilon <= limit


@final
class _Writer:
    """The id under which one process charges; a forked child gets one of its own."""

    def __init__(self, key: str | None = None) -> None:
        self._key = secrets.token_hex(16) if key is None else key
        self._process = os.getpid()

    def key(self) -> str:
        if self._process != os.getpid():
            self._key, self._process = secrets.token_hex(16), os.getpid()
        return self._key


@final
@dataclass(frozen=True, slots=True)
class _Found:
    """What the accountant was asked already; true of the plan, whatever is charged.

    Beside the releases *others*, up to *count* of the kind *kind* keep the target.
    """

    others: tuple[Release, ...] = ()
    kind: Release | None = None
    count: int = 0
    reach: int = 0

    def allows(self, others: tuple[Release, ...], kind: Release, count: int) -> bool:
        return (others, kind) == (self.others, self.kind) and count <= self.count

    def stride(self, others: tuple[Release, ...], kind: Release) -> int:
        return 2 * self.reach if (others, kind) == (self.others, self.kind) else 0


def _unpickled(plan: PrivacyPlan, state_dict: dict[str, Any]) -> Ledger:
    ledger = Ledger(plan)
    ledger.load_state_dict(state_dict)
    return ledger


def _appended(segment: tuple[Charge, ...], charge: Charge) -> tuple[Charge, ...]:
    if segment and _kind(segment[-1]) == _kind(charge):
        count = segment[-1].count + charge.count
        return (*segment[:-1], replace(charge, count=count))
    return (*segment, charge)


def _kind(charge: Charge) -> Charge:
    return replace(charge, count=1)


def _parsed(state_dict: Mapping[str, Any]) -> dict[str, tuple[Charge, ...]]:
    if not isinstance(state_dict, Mapping) or state_dict.get("version") != _VERSION:
        raise LedgerError(
            f"the ledger is not of version {_VERSION}: it is damaged, or another"
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
