"""What was released, written down before it is released.

A charge goes in before noise is drawn, so a crash can lose a release but never a
charge. Each process that charges writes under a random id of its own; a checkpoint
that is loaded brings the ids it knows. Two runs that go on from one checkpoint
therefore add up when their ledgers meet, and loading one's own state adds nothing.

Nothing here is remembered that a crash could leave out of date: what is spent is
computed from the charges, and every change of them is one assignment. What they add up
to is kept beside the very charges that it was added up from, and is true of no others.
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, final

from dp.accounting import Guarantee, Release, Truncation, epsilon, merge_equal_releases
from dp.exceptions import BudgetExhaustedError, LedgerError
from dp.ledger._charge import VERSION, Charge, alike, appended, parsed
from dp.plan import PrivacyPlan


__all__ = ("Charge", "Ledger")


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
        self._found = _BudgetCache()
        self._standing = _Totals(self._segments, steps=0, as_planned=True)
        self._steps_within_target: int | None = None

    @property
    def plan(self) -> PrivacyPlan:
        """The plan whose budget is enforced."""
        return self._plan

    @property
    def steps(self) -> int:
        """The number of releases that were charged, in every segment."""
        return self._stands().steps

    @property
    def num_segments(self) -> int:
        """The number of processes that charged, resumes and forks included."""
        return len(self._segments)

    @property
    def segment(self) -> str:
        """The id under which this process charges."""
        return self._writer.key()

    def use_segment(self, segment: str | None) -> None:
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
        return merge_equal_releases(charge.to_release() for charge in self.charges())

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
        stands = self._stands()
        planned = stands.as_planned and self._is_planned(charge, stands.steps)
        if not (
            self._allows_as_planned(stands.steps + 1)
            if planned
            else self._allows(charge.to_release())
        ):
            raise BudgetExhaustedError(
                f"the plan's budget is spent: {self.steps} of {self._plan.steps} steps"
                f" were taken, target_epsilon={self._plan.target_epsilon!r}; the step"
                " was not taken. Make a new plan to go on: its cost adds to this one's"
            )
        key = self._writer.key()
        merge_segment = appended(self._segments.get(key, ()), charge)
        self._segments = {**self._segments, key: merge_segment}
        self._standing = _Totals(self._segments, stands.steps + 1, planned)

    def state_dict(self) -> dict[str, Any]:
        """Return the charges in plain types, as ``torch.load`` reads by default."""
        return {
            "version": VERSION,
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
        loaded = parsed(state_dict)
        merged_segments = dict(self._segments)
        for key, segment in loaded.items():
            merged_segments[key] = self.merge_segment(
                self._segments.get(key, ()), segment, key
            )
        self._writer = _Writer()  # What follows is a fork of that state.
        self._segments = merged_segments

    @staticmethod
    def merge_segment(
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
                or not alike(last, end)
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

    def _stands(self) -> "_Totals":
        """Return where the ledger stands, adding up only what was not charged here."""
        if self._standing.segments is not self._segments:
            steps = sum(charge.count for charge in self.charges())
            as_planned = self.releases() == merge_equal_releases(
                self._plan.releases(steps)
            )
            self._standing = _Totals(self._segments, steps, as_planned)
        return self._standing

    def _is_planned(self, charge: Charge, step: int) -> bool:
        plan = self._plan
        return (
            charge.noise_multiplier == plan.noise_multiplier_at(step)
            and charge.sampling_probability == plan.sampling_probability
            and charge.truncation == plan.truncation
        )

    def _allows_as_planned(self, num_steps: int) -> bool:
        return num_steps <= min(self._plan.steps, self._affordable_as_planned())

    def _allows(self, release: Release) -> bool:
        """Whether the plan allows one more release."""
        after = merge_equal_releases((*self.releases(), release))
        num_steps = self.steps + 1
        if num_steps > self._plan.steps:
            return False
        if after == merge_equal_releases(self._plan.releases(num_steps)):
            return self._allows_as_planned(num_steps)
        kind = replace(release, count=1)
        others = tuple(r for r in after if replace(r, count=1) != kind)
        count = num_steps - sum(r.count for r in others)
        if self._found.allows(others, kind, count):
            return True
        most = self._plan.steps - num_steps + count
        # Twice as far as last time, so that a run of equal steps asks rarely.
        for goal in (min(most, count + self._found.stride(others, kind)), count):
            if self._within_target((*others, replace(release, count=goal))):
                self._found = _BudgetCache(others, kind, goal, goal - count + 1)
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
class _Totals:
    """What some segments add up to; true of them alone, whatever came after.

    ``as_planned``: whether the plan's first steps release just that.
    """

    segments: Mapping[str, tuple[Charge, ...]]
    steps: int
    as_planned: bool


@final
@dataclass(frozen=True, slots=True)
class _BudgetCache:
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
