"""What was released, written down before it is released.

A charge goes in before noise is drawn, so a crash can lose a release but never a
charge. Each process that charges writes under a random id of its own; a checkpoint
that is loaded brings the ids it knows. Two runs that go on from one checkpoint
therefore add up when their ledgers meet, and loading one's own state adds nothing.
"""

import secrets
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final, final

from dp import _checks
from dp.accounting import Guarantee, Release, epsilon, merged
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
    """

    sampling_probability: float
    noise_multiplier: float
    max_grad_norm: float
    count: int

    def to_release(self) -> Release:
        """Return what the accountant needs of it."""
        return Release(
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            count=self.count,
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
        self._segments: dict[str, list[Charge]] = {}
        self._id = secrets.token_hex(16)
        self._affordable: int | None = None
        self._spent: Guarantee | None = None

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

    def charges(self) -> tuple[Charge, ...]:
        """Return every charge, in the order in which each segment made them."""
        return tuple(c for segment in self._segments.values() for c in segment)

    def releases(self) -> tuple[Release, ...]:
        """Return the releases that were charged, equal ones counted together."""
        return merged(charge.to_release() for charge in self.charges())

    def spent(self) -> Guarantee:
        """Return the guarantee of everything charged, at the plan's delta."""
        if self._spent is None:
            self._spent = self._cost(self.releases())
        return self._spent

    def reserve(
        self,
        *,
        sampling_probability: float,
        noise_multiplier: float,
        max_grad_norm: float,
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
        )
        affordable = self._still_affordable(charge.to_release())
        if affordable < 1:
            raise BudgetExhaustedError(
                f"the plan's budget is spent: {self.steps} of {self._plan.steps} steps"
                f" were taken, target_epsilon={self._plan.target_epsilon!r}; the step"
                " was not taken. Make a new plan to go on: its cost adds to this one's"
            )
        _append(self._segments.setdefault(self._id, []), charge)
        self._affordable = affordable - 1
        self._spent = None

    def state_dict(self) -> dict[str, Any]:
        """Return the charges in plain types, as ``torch.load`` reads by default."""
        return {
            "version": _VERSION,
            "segments": {
                key: [{name: getattr(charge, name) for name in _FIELDS} for charge in s]
                for key, s in self._segments.items()
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
            merged_segments[key] = _longer(self._segments.get(key, []), segment, key)
        self._segments = merged_segments
        self._id = secrets.token_hex(16)  # What follows is a fork of that state.
        self._affordable = self._spent = None

    def __deepcopy__(self, memo: dict[int, object]) -> "Ledger":
        fork = Ledger(self._plan)
        fork._segments = deepcopy(self._segments, memo)
        return fork

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickled, (self._plan, self.state_dict())

    def _cost(self, releases: tuple[Release, ...]) -> Guarantee:
        return epsilon(
            releases,
            delta=self._plan.target_delta,
            neighboring_relation=self._plan.neighboring_relation,
        )

    def _still_affordable(self, release: Release) -> int:
        """How many more releases the plan allows, if all are like *release*."""
        (planned,) = self._plan.releases(1)
        by_steps = self._plan.steps - self.steps
        if release != planned:
            return min(by_steps, self._affordable_by_epsilon(release, most=1))
        if self._affordable is None:
            as_planned = self.releases() in ((), self._plan.releases(self.steps))
            if as_planned and self._plan.target_epsilon is None:
                self._affordable = by_steps
            else:
                self._affordable = self._affordable_by_epsilon(release, most=by_steps)
        return self._affordable

    def _affordable_by_epsilon(self, release: Release, *, most: int) -> int:
        limit = self._plan.target_epsilon
        if limit is None:
            limit = self._cost(self._plan.releases(self._plan.steps)).epsilon
        known = self.releases()

        def fits(count: int) -> bool:
            return self._cost((*known, _like(release, count))).epsilon <= limit

        if most < 1 or fits(most):
            return most
        low, high = 0, most  # `low` fits, or is none at all; `high` does not.
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def _unpickled(plan: PrivacyPlan, state_dict: dict[str, Any]) -> Ledger:
    ledger = Ledger(plan)
    ledger.load_state_dict(state_dict)
    return ledger


def _like(release: Release, count: int) -> Release:
    return Release(
        sampling_probability=release.sampling_probability,
        noise_multiplier=release.noise_multiplier,
        count=count,
    )


def _append(segment: list[Charge], charge: Charge) -> None:
    if segment and _kind(segment[-1]) == _kind(charge):
        charge = Charge(**_kind(charge), count=segment[-1].count + charge.count)
        segment[-1] = charge
    else:
        segment.append(charge)


def _kind(charge: Charge) -> dict[str, float]:
    return {
        "sampling_probability": charge.sampling_probability,
        "noise_multiplier": charge.noise_multiplier,
        "max_grad_norm": charge.max_grad_norm,
    }


def _longer(ours: list[Charge], theirs: list[Charge], key: str) -> list[Charge]:
    """Of two states of one segment, one continues the other: return that one."""
    short, long = sorted(
        (ours, theirs), key=lambda s: (len(s), sum(c.count for c in s))
    )
    if short:
        *before, last = short
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


def _parsed(state_dict: Mapping[str, Any]) -> dict[str, list[Charge]]:
    if not isinstance(state_dict, Mapping) or state_dict.get("version") != _VERSION:
        raise LedgerError(
            f"the ledger is not of version {_VERSION}: it is damaged, or another"
            " release of this package wrote it"
        )
    segments = state_dict.get("segments")
    if not isinstance(segments, Mapping):
        raise LedgerError("the ledger has no segments: it is damaged")
    return {str(key): [_charge(row) for row in rows] for key, rows in segments.items()}


def _charge(row: Mapping[str, Any]) -> Charge:
    try:
        charge = Charge(**{name: row[name] for name in _FIELDS})
        charge.to_release()
        _checks.positive(max_grad_norm=charge.max_grad_norm)
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"the ledger holds a damaged charge: {error}") from error
    return charge
