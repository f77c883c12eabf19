"""A write-ahead record of releases.

A charge goes in before noise is drawn, so a crash can lose a release but never a
charge. Each process that charges writes under a random id of its own; a checkpoint
that is loaded brings the ids it knows. Two runs that go on from one checkpoint
therefore add up when their ledgers meet, and loading one's own state adds nothing.

Nothing here is remembered that a crash could leave out of date: what is spent is
computed from the charges, and every change of them is one assignment. What they add up
to is kept beside the very charges that it was added up from, and is true of no others.
"""

import threading
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, final

from dp.accounting import Guarantee, Query, Release, Truncation, merge_equal_releases
from dp.accounting._counted import NoiseBesideCount
from dp.exceptions import LedgerError
from dp.ledger._asked import Asked, planned_query
from dp.ledger._budget import Budget, cost, void
from dp.ledger._charge import Charge
from dp.ledger._claim import check_noise, claim, from_version_1
from dp.ledger._meter import Meter
from dp.ledger._paid_pass import PaidPass, check_noise_of_passes
from dp.ledger._remarks import Remarks
from dp.ledger._segments import Totals, appended, includes, merge, rows
from dp.ledger._state import VERSION, read
from dp.ledger._terms import Numbers, TermsOfSteps
from dp.ledger._writer import Writer
from dp.plan import PrivacyPlan
from dp.sampling import PassStep


__all__ = ("Ledger",)

DEBUGGING: Final = "noise came from a debugging seed, so anyone can repeat it"
_BUG: Final = "it is damaged, or this release of dp is. Please report it"
_IF_FIXED: Final = "if the number of steps was fixed beforehand"


@final
class Ledger:
    """The charges of a run, checked against its budget.

    Guarantees:
        * :meth:`reserve` raises, and charges nothing, if the plan would be exceeded.
        * Charges are never removed: loading a state adds those it knows more of.
        * A copy is a fork: what it charges later is its own, and both add up.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._segments: dict[str, tuple[Charge, ...]] = {}
        self._failure: str | None = None
        self._paid: PaidPass | None = None
        self._remarks = Remarks()
        self._asked = Asked()
        self._writer = Writer()
        self._budget = Budget(plan)
        self._terms = TermsOfSteps(plan, self._budget)
        self._totals = Totals(self._segments, steps=0, as_planned=True)
        self.meter: Meter = Meter(plan.unit_of_privacy)  # Counted where noise is added.
        self._lock = threading.RLock()  # What an interrupt leaves held is re-entered.

    @property
    def plan(self) -> PrivacyPlan:
        """The plan whose budget is enforced."""
        return self._plan

    @property
    def steps(self) -> int:
        """The number of releases that were charged, in every segment."""
        return self._current_totals().steps

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

        Processes that share it must charge the same: it counts once when ledgers merge.
        """
        self._writer = Writer(segment)

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
        """Return what everything charged so far composes to, at the plan's delta.

        It is a guarantee only if the number of steps was fixed beforehand, as its
        ``condition`` says; what holds whenever the run ends is :meth:`guarantee`.
        """
        self.check_meter()
        composed = cost(self._plan, self.releases())
        if self._failure is not None:
            return void(composed)
        has_begun = self.steps or self._plan.queries
        is_open = has_begun and self.steps < self._plan.steps
        return replace(composed, condition=_IF_FIXED) if is_open else composed

    def guarantee(self) -> Guarantee:
        """Return what holds of the run, at the plan's delta, whenever it ends.

        A run that ends before its plan costs what the plan costs: when it ends may have
        been decided by what was released. Stopping by private data that was not
        released is not covered.
        """
        self.check_meter()
        claimed = claim(self._plan, self.charges())
        return claimed if self._failure is None else void(claimed)

    def check_noise(self, noise_multiplier: float) -> None:
        """Raise if the next release may not have so little noise.

        Raises:
            PrivacyError: If it is less than planned, and the plan has no Renyi filter.
        """
        check_noise_of_passes(self._plan, noise_multiplier)
        check_noise(self._plan, noise_multiplier, self.steps)

    @property
    def failure(self) -> str | None:
        """Why no guarantee holds for what was charged; None if one does."""
        return self._failure

    def fail(self, reason: str) -> None:
        """Record that releases may have cost more than they were charged.

        It is kept like a charge: in copies, states and certificates, for ever. Later
        steps raise, and every epsilon is infinite.
        """
        if self._failure in {None, DEBUGGING}:
            self._failure = reason

    def check_meter(self) -> None:
        """Record a failure if a release has no charge: every epsilon is infinite then."""
        # Copied first: another thread may charge meanwhile, and then count.
        if copy(self.meter).misses(self._segments, failure=self._failure):
            self.fail(f"charges of its releases are missing: {_BUG}")

    def note_debugging_seed(self) -> None:
        """Record that noise comes from a debugging seed: steps go on, NOT PRIVATE.

        It is kept like a failure, but what only debugs may take further steps.
        """
        if self._failure is None:
            self._failure = DEBUGGING

    @property
    def num_advisories(self) -> int:
        """How many advisories the releases of dp that charged knew, the fewest of them."""
        return self._remarks.num_advisories

    @property
    def declared_public(self) -> tuple[str, ...]:
        """The tensors that were declared to be no data, one description each."""
        return self._remarks.declared_public

    def declare_public(self, tensors: Iterable[str]) -> None:
        """Record tensors that gradients are computed with as constants of the program.

        The charges hold only if they are, so the declaration stays with them: in
        copies, states and certificates.
        """
        self.remark(Remarks(declared_public=tuple(tensors)))

    @property
    def remarks(self) -> Remarks:
        """What a certificate has to say of the charges besides their numbers."""
        return self._remarks

    def remark(self, remarks: Remarks) -> None:
        """Record what else has to be said of the charges, by whoever certifies them."""
        self._remarks = self._remarks.joined(remarks)

    @property
    def is_exhausted(self) -> bool:
        """Whether the plan allows no other step as planned."""
        if self._has_failed:
            return True
        if self._paid is not None and self._paid.has_steps_left:
            return False
        if self.steps >= self._plan.steps:
            return True
        upcoming = self._plan.releases(self.steps + 1)[-1]
        return not self._budget.allows(self.releases(), replace(upcoming, count=1))

    def reserve(
        self,
        *,
        sampling_probability: float,
        noise_multiplier: float,
        max_grad_norm: float,
        truncation: Truncation | None = None,
        public: str | None = None,
        in_pass: PassStep | None = None,
        noise_beside_count: NoiseBesideCount | None = None,
    ) -> None:
        """Charge one release, before anything of it exists.

        A pass, by random allocation or of disjoint batches, or a round by cyclic Poisson
        sampling, is charged as a whole, at the first of its steps that is released; the
        others are paid for by then.

        Args:
            sampling_probability: Probability of an example to be in the batch.
            noise_multiplier: Standard deviation of the noise over *max_grad_norm*.
            max_grad_norm: Sensitivity of the sum.
            truncation: How the batch was made smaller, if it was.
            public: Why the numbers are public, where they are not the plan's: they were
                fixed beforehand, or follow from public facts alone.
            in_pass: Which step of which pass or round it is; None for Poisson samples.
            noise_beside_count: The noise on the sum and on a count beside it, where
                there is one: *noise_multiplier* is of the two together.

        Raises:
            ValueError: If the two have less noise together; nothing is charged.
            BudgetExhaustedError: If the plan does not allow it; nothing is charged.
            PrivacyError: If it costs more than planned, and neither *public* nor a
                Renyi filter covers that, or if the charge of a pass does not.
        """
        numbers = Numbers(
            sampling_probability,
            noise_multiplier,
            max_grad_norm,
            truncation,
            public,
            noise_beside_count,
        )
        with self._lock:
            self._check_sound()
            totals = self._current_totals()
            terms = self._terms.of(numbers, totals.steps, in_pass)
            if in_pass is not None and self._is_paid(in_pass, max_grad_norm):
                return
            charge = terms.charge
            as_planned = totals.as_planned and terms.is_planned
            if as_planned:
                self._budget.check_as_planned(totals.steps, charge.count)
            else:
                self._budget.check(self.releases(), terms.release)
            key = self._writer.key()
            segment = appended(self._segments.get(key, ()), charge)
            self._segments = {**self._segments, key: segment}
            steps = totals.steps + charge.count
            self._totals = Totals(self._segments, steps, as_planned)
            self._paid = None if in_pass is None else PaidPass(in_pass, max_grad_norm)

    def ask(self, name: str, *, num_values: int) -> Query:
        """Record that a planned query is asked, before its noise is drawn.

        It is part of every epsilon of the run already.

        Args:
            name: The query.
            num_values: How many numbers the answer has.

        Raises:
            BudgetExhaustedError: If it was asked before, or if what was charged leaves
                no room in the target; nothing is recorded.
            ValueError: If the plan has no such query, or one of other size.
        """
        with self._lock:
            self._check_sound()
            query = planned_query(self._plan, name, num_values)
            self._budget.check_query(self.releases(), name)
            self._asked = self._asked.once(query, self._writer.key())
            return query

    @property
    def asked(self) -> tuple[str, ...]:
        """The queries that were asked, in their order."""
        return tuple(query.name for query in self._asked.segments)

    def _is_paid(self, place: PassStep, max_grad_norm: float) -> bool:
        """Whether a step belongs to the pass that was charged last; it is taken then."""
        paid = self._paid and self._paid.followed_by(place, max_grad_norm)
        self._paid = paid or self._paid
        return paid is not None

    @property
    def _has_failed(self) -> bool:
        return self._failure not in {None, DEBUGGING}

    def _check_sound(self) -> None:
        if self._has_failed:
            raise LedgerError(
                f"no guarantee holds for this run any more ({self._failure}), so it"
                " takes no other step. Mend the cause, and start from weights that saw"
                " no private data"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the charges in plain types, as ``torch.load`` reads by default."""
        self.check_meter()
        segments, remarks = self._segments, self._remarks  # Others may charge.
        state: dict[str, Any] = {
            "version": VERSION,
            "unit_of_privacy": self._plan.unit_of_privacy,
            "segments": rows(segments),
            **remarks.to_dict(),
        }
        if self._failure is not None:
            state["failure"] = self._failure
        if self._asked.segments:
            state["queries"] = self._asked.rows()
        # What could not be read again is not written, so that reading and writing need
        # not be believed.
        if read(state) != (segments, remarks):
            raise LedgerError(f"the state of {self!r} says other charges: {_BUG}")
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Add the charges of another ledger that this one does not know yet.

        Raises:
            LedgerError: If the state is damaged, of another version or unit of privacy,
                or contradicts what this ledger knows of the same segment; nothing is
                loaded.
        """
        loaded, remarks = read(state_dict)
        if rows(loaded) != state_dict["segments"]:
            raise LedgerError(f"not all of the state's charges were read: {_BUG}")
        asked = Asked.of_state(state_dict, self._plan)
        self.meter.check_unit(state_dict)
        if state_dict["version"] == 1:
            loaded = from_version_1(self._plan, loaded)
        with self._lock:
            merged = dict(self._segments)
            for key, segment in loaded.items():
                known = self._segments.get(key, ())
                merged[key] = merge(known, segment, key)
            if state_dict.get("failure") == DEBUGGING:
                self.note_debugging_seed()
            elif state_dict.get("failure") is not None:
                self.fail(str(state_dict["failure"]))
            self._asked, twice = self._asked.merged(asked)
            if twice:
                self.fail(f"two runs that met asked the same queries: {twice}")
            self.remark(remarks)
            self._writer = Writer()  # What follows is a fork of that state.
            self._segments = merged
            self.meter.load(loaded, state_dict)

    def includes(self, other: "Ledger") -> bool:
        """Whether this ledger has every charge of *other*, and its failure."""
        if other.failure is not None and self._failure is None:
            return False
        if not self._asked.includes(other._asked):  # noqa: SLF001 -- of this class
            return False
        return includes(self._segments, other.segments())

    def __deepcopy__(self, memo: dict[int, object]) -> "Ledger":
        fork = Ledger(self._plan)
        # In this order: another thread may charge, and then count, meanwhile.
        fork.meter, fork._segments = copy(self.meter), self._segments
        fork._failure = self._failure
        fork._remarks = self._remarks
        fork._asked = self._asked
        return fork

    def __repr__(self) -> str:
        verdict = "" if self._failure is None else f", NOT PRIVATE: {self._failure}"
        return f"<Ledger: {self.steps} of {self._plan.steps} steps{verdict}>"

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickled, (self._plan, self.state_dict())

    def _current_totals(self) -> Totals:
        """Return where the ledger stands, adding up only what was not charged here."""
        if self._totals.segments is not self._segments:
            self._totals = Totals.of(self._segments, self._plan)
        return self._totals


def _unpickled(plan: PrivacyPlan, state_dict: dict[str, Any]) -> Ledger:
    ledger = Ledger(plan)
    ledger.load_state_dict(state_dict)
    return ledger
