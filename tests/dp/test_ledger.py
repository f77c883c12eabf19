"""That no release is ever missing from the ledger."""

import copy
import io
import json
import math
import os
import pickle
import sys
import threading
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from dp.accounting import Guarantee, Release, Truncation, epsilon
from dp.accounting._risk import NO_RISK
from dp.exceptions import BudgetExhaustedError, LedgerError, PrivacyError
from dp.ledger import Charge, Ledger
from dp.ledger._segments import appended
from dp.plan import PrivacyPlan
from dp.sampling import PoissonSampling
from dp.schedule import Schedule


PLANNED = {"sampling_probability": 0.5, "noise_multiplier": 1.0, "max_grad_norm": 1.0}
PUBLIC = {**PLANNED, "public": "a table made before the run"}


def plan(**changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.5),
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 10.0,
        "steps": 20,
        "target_delta": 1e-5,
    }
    return PrivacyPlan(**{**numbers, **changes})


def charged(count, **changes):
    ledger = Ledger(plan(**changes))
    for _ in range(count):
        ledger.reserve(**PLANNED)
    return ledger


def cheap_cost(releases, *, delta, neighboring_relation, group_size):
    """As the accountant, but a formula: what a ledger does with it is the same."""
    spent = sum(
        math.inf
        if r.noise_multiplier == 0
        else r.count * (r.sampling_probability / r.noise_multiplier) ** 2
        for r in releases
    )
    return Guarantee(
        epsilon=spent,
        delta=delta,
        neighboring_relation=neighboring_relation,
        accountant="PLD",
        epsilon_pld=spent,
        epsilon_rdp=None,
        group_size=group_size,
    )


def put_in_place(patch, cost=cheap_cost):
    """Put *cost* in the accountant's place, with no risk beside it."""
    patch.setattr("dp.ledger._budget.epsilon", cost)
    patch.setattr("dp.ledger._budget.risk_of_guarantee", lambda *_, **__: NO_RISK)


by_formula = pytest.mark.usefixtures("accountant")


@pytest.fixture
def accountant(monkeypatch):
    """Put the formula in the accountant's place; the list of what it was asked."""
    asked = []

    def cost(releases, **about):
        asked.append(tuple(releases))
        return cheap_cost(releases, **about)

    put_in_place(monkeypatch, cost)
    return asked


def test_a_new_ledger_is_empty():
    """Nothing was charged, so nothing was spent."""
    ledger = Ledger(plan())

    assert ledger.charges() == ledger.releases() == ()
    assert ledger.steps == ledger.num_segments == 0
    assert ledger.spent().epsilon == 0


@by_formula
def test_equal_charges_are_counted():
    """A long run is one line, and another kind of release begins another."""
    ledger = charged(3)
    ledger.reserve(**{**PUBLIC, "noise_multiplier": 2.0})
    ledger.reserve(**PLANNED)

    assert [charge.count for charge in ledger.charges()] == [3, 1, 1]
    assert {release.count for release in ledger.releases()} == {4, 1}
    assert ledger.steps == 5


def test_what_is_spent_is_what_the_releases_cost():
    """The real accountant's word on what was charged."""
    ledger = charged(2)
    by_hand = epsilon(
        [Release(sampling_probability=0.5, noise_multiplier=1.0, count=2)],
        delta=1e-5,
        neighboring_relation="add_or_remove_one",
    )

    assert replace(ledger.spent(), condition="") == by_hand


def test_the_number_of_steps_is_a_budget():
    """The step beyond raises, and changes nothing."""
    ledger = charged(20)
    before = ledger.state_dict()

    with pytest.raises(BudgetExhaustedError, match="20 of 20 steps were taken"):
        ledger.reserve(**PLANNED)
    assert ledger.state_dict() == before


@by_formula
def test_a_cheaper_step_counts_as_a_step_all_the_same():
    """Epsilon would allow it; the number of steps does not."""
    ledger = charged(20, target_epsilon=100.0)

    for kind in (PLANNED, PUBLIC):
        with pytest.raises(BudgetExhaustedError, match="20 of 20 steps were taken"):
            ledger.reserve(**{**kind, "noise_multiplier": 50.0})


@by_formula
@pytest.mark.parametrize(
    ("steps", "changes"),
    [(20, {}), (6, {"target_epsilon": 6 / 4, "steps": 9})],
    ids=["steps", "epsilon"],
)
def test_a_ledger_says_when_it_allows_no_other_step(steps, changes):
    """So that a trainer can stop before one is refused."""
    ledger = charged(steps - 1, **changes)

    assert not ledger.is_exhausted
    ledger.reserve(**PLANNED)
    assert ledger.is_exhausted


def test_a_plan_that_is_followed_needs_no_accountant(accountant):
    """Its steps were counted out before; nothing is computed while it runs."""
    charged(20)

    assert accountant == []


def test_a_plan_within_its_target_asks_the_accountant_once(accountant):
    """All its steps together keep the target, so each of them does."""
    charged(20, target_epsilon=5.0)

    assert len(accountant) == 1


@by_formula
def test_epsilon_is_a_budget():
    """Forks that add up beyond the target stop before they exceed it."""
    ledger = charged(5, target_epsilon=9 / 4)
    other = copy.deepcopy(ledger)
    for fork in (ledger, other):
        for _ in range(2):
            fork.reserve(**PLANNED)
    ledger.load_state_dict(other.state_dict())  # 9 releases in all.
    before = ledger.state_dict()

    assert ledger.steps == 9
    assert ledger.spent().epsilon == 9 / 4
    with pytest.raises(BudgetExhaustedError, match="target_epsilon="):
        ledger.reserve(**PLANNED)
    assert ledger.state_dict() == before


@given(st.lists(st.sampled_from([0.25, 1.0, 2.0, 4.0])), st.floats(0.1, 20.0))
def test_whatever_is_asked_for_the_target_is_kept(noise_multipliers, target):
    """A release is charged if, and only if, it keeps the target."""
    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch)
        ledger = Ledger(plan(target_epsilon=target, steps=30))
        for noise_multiplier in noise_multipliers:
            kind = {**PUBLIC, "noise_multiplier": noise_multiplier}
            after = ledger.spent().epsilon + (0.5 / noise_multiplier) ** 2
            keeps = after <= target and ledger.steps < 30
            try:
                ledger.reserve(**kind)
            except BudgetExhaustedError:
                assert not keeps
            else:
                assert keeps


def test_equal_releases_ask_the_accountant_rarely(accountant):
    """How many more are allowed is found once for twice as many each time."""
    ledger = Ledger(plan(steps=1000))
    for _ in range(1000):
        ledger.reserve(**{**PLANNED, "noise_multiplier": 1.5})

    assert ledger.steps == 1000
    assert len(accountant) < 60


@by_formula
def test_a_target_below_the_plans_cost_ends_it_early():
    """The last step that fits is taken, the next is not."""
    limit = 6 / 4
    ledger = charged(6, target_epsilon=limit, steps=9)

    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(**PLANNED)
    assert ledger.steps == 6
    assert ledger.spent().epsilon == limit
    assert ledger.plan.steps == 9


@by_formula
@pytest.mark.parametrize("target", [None, 2.0])
def test_an_unplanned_release_is_compared_with_the_target_epsilon(target):
    """Less noise than planned is charged as what it is, or refused."""
    ledger = Ledger(plan(noise_multiplier=4.0, steps=4, target_epsilon=target))
    ledger.reserve(**{**PUBLIC, "noise_multiplier": 5.0})

    assert ledger.charges()[0].noise_multiplier == 5.0
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(**{**PUBLIC, "noise_multiplier": 0.3})
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(**{**PUBLIC, "noise_multiplier": 0.0})
    ledger.reserve(**{**PLANNED, "noise_multiplier": 4.0})
    assert ledger.steps == 2


@by_formula
def test_planned_steps_after_dearer_ones_are_compared_with_the_target():
    """Twenty planned steps keep it; two dearer ones leave room for twelve."""
    ledger = Ledger(plan(target_epsilon=20 / 4))
    for _ in range(2):
        ledger.reserve(**{**PUBLIC, "noise_multiplier": 0.5})
    for _ in range(12):
        ledger.reserve(**PLANNED)

    assert ledger.spent().epsilon == ledger.plan.target_epsilon
    with pytest.raises(BudgetExhaustedError, match="14 of 20 steps were taken"):
        ledger.reserve(**PLANNED)


def test_a_truncated_release_is_not_the_planned_one(monkeypatch):
    """Truncation may cost more than the plan: what was charged is what is compared."""

    def cost(releases, **about):
        dearer = [
            r if r.truncation is None else replace(r, noise_multiplier=0.1)
            for r in releases
        ]
        return cheap_cost(dearer, **about)

    put_in_place(monkeypatch, cost)
    truncation = Truncation(max_batch_size=3, dataset_size=10)
    ledger = Ledger(plan(target_epsilon=20 / 4))
    ledger.reserve(**PLANNED)

    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(**PUBLIC, truncation=truncation)
    assert [charge.truncation for charge in ledger.charges()] == [None]


@by_formula
def test_releases_that_only_truncation_tells_apart_are_charged_apart():
    """One line for both would charge the cheaper kind for all of them."""
    ledger = charged(2)
    truncation = Truncation(max_batch_size=3, dataset_size=10)
    ledger.reserve(**PUBLIC, truncation=truncation)

    assert [(c.count, c.truncation) for c in ledger.charges()] == [
        (2, None),
        (1, truncation),
    ]


def test_state_is_plain():
    """``torch.load`` reads it with ``weights_only=True``."""
    ledger = charged(3)
    file = io.BytesIO()
    torch.save(ledger.state_dict(), file)
    file.seek(0)
    other = Ledger(plan())
    other.load_state_dict(torch.load(file, weights_only=True))

    assert other.releases() == ledger.releases()


def test_loading_ones_own_state_adds_nothing():
    """A checkpoint of oneself is known already."""
    ledger = charged(3)
    ledger.load_state_dict(ledger.state_dict())

    assert ledger.steps == 3


def test_a_resume_goes_on_in_a_segment_of_its_own():
    """Two that resume from one checkpoint add up when they meet."""
    checkpoint = charged(3).state_dict()
    one, other = Ledger(plan()), Ledger(plan())
    for resumed in (one, other):
        resumed.load_state_dict(checkpoint)
        resumed.reserve(**PLANNED)
    one.load_state_dict(other.state_dict())

    assert one.num_segments == 3
    assert one.steps == 5


def test_going_back_to_an_older_checkpoint_forgets_nothing():
    """What was released after it was released all the same."""
    ledger = charged(2)
    checkpoint = ledger.state_dict()
    for _ in range(3):
        ledger.reserve(**PLANNED)
    ledger.load_state_dict(checkpoint)

    assert ledger.steps == 5


def pickled(ledger):
    return pickle.loads(pickle.dumps(ledger))  # noqa: S301 -- its own


COPIES = (copy.deepcopy, pickled)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_a_fork(copied):
    """Both may go on, and both count."""
    ledger = charged(2)
    fork = copied(ledger)
    ledger.reserve(**PLANNED)
    fork.reserve(**PLANNED)
    fork.reserve(**PLANNED)

    assert ledger.steps == 3
    assert fork.steps == 4
    ledger.load_state_dict(fork.state_dict())
    assert ledger.steps == 5


def test_another_process_id_is_another_segment(monkeypatch):
    """A ledger that finds itself in a child stops writing under its parent's id."""
    ledger = charged(2)
    monkeypatch.setattr("dp.ledger._writer.os.getpid", lambda: -1)
    ledger.reserve(**PLANNED)
    ledger.reserve(**PLANNED)

    assert [charge.count for charge in ledger.charges()] == [2, 2]
    assert ledger.num_segments == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_charges_under_an_id_of_its_own():
    """Parent and child go on from one ledger, and both count when they meet."""
    ledger = charged(2)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover -- another process
        ledger.reserve(**PLANNED)
        os.write(writing, json.dumps(ledger.state_dict()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    ledger.reserve(**PLANNED)
    ledger.load_state_dict(json.loads(os.read(reading, 1 << 16)))
    os.close(reading)
    os.close(writing)

    assert ledger.steps == 4


def test_processes_of_one_run_charge_under_one_id():
    """What they share counts once where they meet; without it they are forks."""
    one, other = charged(1), charged(1)
    for ledger in (one, other):
        ledger.use_segment("shared")
        ledger.reserve(**PLANNED)
    one.load_state_dict(other.state_dict())

    assert other.segment == "shared"
    assert (one.steps, one.num_segments) == (3, 3)
    other.use_segment(None)
    assert other.segment != "shared"


def damaged(**changes):
    row = {**PLANNED, "count": 1, **changes}
    return {"version": 1, "segments": {"a": [row]}}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({}, "is of version None, and this release of dp reads 1 and 2"),
        ([], "is of version None"),
        ({"version": 3, "segments": {}}, "a later release wrote it, which can load it"),
        ({"version": 1}, "has no segments"),
        ({"version": 1, "segments": []}, "has no segments"),
        ({"version": 1, "segments": {"a": 7}}, "segment without charges"),
        ({"version": 1, "segments": {"a": [{}]}}, "damaged charge"),
        ({"version": 1, "segments": {"a": [7]}}, "damaged charge"),
        (damaged(count=0), "count must be a whole number >= 1, got 0"),
        (damaged(noise_multiplier=-1.0), "noise_multiplier must be >= 0"),
        (damaged(max_grad_norm=math.nan), "max_grad_norm must be > 0"),
        (damaged(planned_noise_multiplier=2.0), "accounted at less than it cost"),
        (damaged(planned_sampling_probability=0.1), "accounted at less than it cost"),
    ],
)
def test_a_damaged_state_is_refused(state, told):
    """Nothing of it is loaded, and nothing is lost."""
    ledger = charged(2)
    before = ledger.state_dict()

    with pytest.raises(LedgerError, match=told):
        ledger.load_state_dict(state)
    assert ledger.state_dict() == before


@by_formula
@pytest.mark.parametrize(
    "alter",
    [
        lambda rows: rows[0].update(noise_multiplier=9.0),
        lambda rows: rows[1].update(count=1, max_grad_norm=3.0),
        lambda rows: rows[0].update(count=3),
    ],
    ids=["another noise", "another norm", "more of the first"],
)
def test_a_state_that_contradicts_what_is_known_is_refused(alter):
    """Two states of one segment: one must continue the other."""
    ledger = charged(2)
    ledger.reserve(**{**PLANNED, "noise_multiplier": 2.0})
    ledger.reserve(**{**PLANNED, "noise_multiplier": 2.0})
    state = ledger.state_dict()
    (rows,) = state["segments"].values()
    alter(rows)

    with pytest.raises(LedgerError, match="contradicts what this ledger knows"):
        ledger.load_state_dict(state)


@pytest.mark.parametrize("loads", ["the longer", "the shorter"])
def test_a_segment_cannot_have_made_fewer_of_the_same_charges(loads):
    """Five of a kind are not continued by three of it and two of another."""
    state = charged(5).state_dict()
    (rows,) = state["segments"].values()
    altered = copy.deepcopy(state)
    (others,) = altered["segments"].values()
    others[0]["count"] = 3
    others.append({**rows[0], "count": 2, "noise_multiplier": 2.0})
    first, second = (state, altered) if loads == "the longer" else (altered, state)
    ledger = Ledger(plan())
    ledger.load_state_dict(first)

    with pytest.raises(LedgerError, match="contradicts what this ledger knows"):
        ledger.load_state_dict(second)
    assert ledger.state_dict() == first


def test_a_charge_knows_its_release():
    """The clipping norm is for people; the accountant needs the multiplier."""
    charge = Charge(**PLANNED, count=4)

    assert charge.to_release().count == 4
    assert charge.to_release().noise_multiplier == 1.0


class Life(RuleBasedStateMachine):
    """Runs that train, save, crash, resume, fork and meet.

    The model is the set of everything that ever left a process: each release as
    ``(run, number)``. A ledger must know at least those that its state was built on.
    """

    ledgers = Bundle("ledgers")
    checkpoints = Bundle("checkpoints")

    def __init__(self):
        super().__init__()
        self.known = {}  # The releases behind each ledger.
        self.num_released = 0
        self.patch = pytest.MonkeyPatch()
        put_in_place(self.patch)

    def teardown(self):
        self.patch.undo()

    def remember(self, ledger, releases):
        self.known[id(ledger)] = (ledger, frozenset(releases))
        return ledger

    def releases_of(self, ledger):
        return self.known[id(ledger)][1]

    @rule(target=ledgers)
    def begin(self):
        return self.remember(Ledger(plan(steps=10_000)), ())

    @rule(ledger=ledgers, crash=st.booleans(), noise=st.sampled_from([1.0, 2.0]))
    def step(self, ledger, crash, noise):
        """A crash after the charge loses the release, never the charge."""
        if len(self.releases_of(ledger)) > 20:
            return
        ledger.reserve(**{**PLANNED, "noise_multiplier": noise})
        if not crash:
            self.num_released += 1
            self.remember(ledger, self.releases_of(ledger) | {self.num_released})

    @rule(target=checkpoints, ledger=ledgers)
    def save(self, ledger):
        return copy.deepcopy(ledger.state_dict()), self.releases_of(ledger)

    @rule(target=ledgers, checkpoint=checkpoints)
    def resume(self, checkpoint):
        state, releases = checkpoint
        ledger = Ledger(plan(steps=10_000))
        ledger.load_state_dict(state)
        return self.remember(ledger, releases)

    @rule(ledger=ledgers, checkpoint=checkpoints)
    def meet(self, ledger, checkpoint):
        state, releases = checkpoint
        ledger.load_state_dict(state)
        self.remember(ledger, self.releases_of(ledger) | releases)

    @rule(target=ledgers, ledger=ledgers, copied=st.sampled_from(COPIES))
    def fork(self, ledger, copied):
        return self.remember(copied(ledger), self.releases_of(ledger))

    @invariant()
    def nothing_is_missing(self):
        """A ledger has charged at least every release that led to its state."""
        for ledger, releases in self.known.values():
            assert ledger.steps >= len(releases)


Life.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None
)
test_no_release_is_ever_missing = Life.TestCase


@by_formula
def test_a_failure_is_kept_like_a_charge():
    """In copies, states and what is loaded from them; nothing is guaranteed any more."""
    ledger = Ledger(plan(steps=5))
    ledger.reserve(**PLANNED)
    ledger.fail("examples were mixed")
    other = Ledger(plan(steps=5))
    other.load_state_dict(json.loads(json.dumps(ledger.state_dict())))

    for failed in (
        ledger,
        copy.deepcopy(ledger),
        pickle.loads(pickle.dumps(ledger)),  # noqa: S301 -- our own
        other,
    ):
        assert failed.failure == "examples were mixed"
        assert failed.spent().epsilon == failed.spent().epsilon_pld == math.inf
        assert failed.is_exhausted
        with pytest.raises(LedgerError, match="examples were mixed"):
            failed.reserve(**PLANNED)
        assert failed.steps == 1


def test_the_first_failure_is_the_one_that_counts():
    """What comes after it may be its consequence."""
    ledger = Ledger(plan())
    ledger.fail("first")
    ledger.fail("second")

    assert ledger.failure == "first"


@by_formula
def test_declarations_of_public_tensors_stay_with_the_charges():
    """Copies, pickles and loaded states keep them; what is declared twice counts once."""
    ledger = Ledger(plan())
    ledger.declare_public(["basis", "mask"])
    ledger.reserve(**PLANNED)
    other = Ledger(plan())
    other.declare_public(["mask", "positions"])
    other.load_state_dict(ledger.state_dict())

    assert other.declared_public == ("mask", "positions", "basis")
    for kept in (
        copy.deepcopy(ledger),
        pickle.loads(pickle.dumps(ledger)),  # noqa: S301 -- our own
    ):
        assert kept.declared_public == ("basis", "mask")


@by_formula
@pytest.mark.parametrize("declared", ["basis", [1]], ids=str)
def test_declarations_that_are_no_descriptions_are_refused(declared):
    """A damaged state loads nothing."""
    ledger = Ledger(plan())
    ledger.reserve(**PLANNED)
    state = {**ledger.state_dict(), "declared_public": declared}
    other = Ledger(plan())

    with pytest.raises(LedgerError, match="declared public"):
        other.load_state_dict(state)
    assert other.steps == 0


@by_formula
def test_charges_of_another_unit_are_refused():
    """What one example costs says nothing of what a person costs."""
    ledger = Ledger(plan())
    ledger.reserve(**PLANNED)
    state = ledger.state_dict()
    other = Ledger(plan(unit_of_privacy="one value of user_id"))

    with pytest.raises(LedgerError, match="'one training example'"):
        other.load_state_dict(state)
    assert other.steps == 0
    del state["unit_of_privacy"]  # As earlier versions wrote it.
    other.load_state_dict(state)
    assert other.steps == 1


@by_formula
def test_no_charge_of_any_thread_is_lost():
    """Four threads that interrupt each other all the time."""
    ledger = Ledger(plan(steps=10_000))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(
                target=lambda: [ledger.reserve(**PLANNED) for _ in range(100)]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert ledger.steps == 400


@pytest.mark.parametrize(
    "field", [field.name for field in fields(Charge) if field.name != "count"]
)
def test_charges_that_differ_are_counted_apart(field):
    """In whatever: the second would be accounted as the first."""
    first = Charge(
        sampling_probability=0.5, noise_multiplier=1.0, max_grad_norm=1.0, count=2
    )
    other = replace(first, **{field: "another value"})

    assert appended((first,), first) == (replace(first, count=4),)
    assert appended((first,), other) == (first, other)


def test_a_state_that_would_lose_a_charge_is_not_written(monkeypatch):
    """What is written is read again at once: a defect in either is an error."""
    ledger = charged(3)
    whole = Charge.to_dict
    monkeypatch.setattr(Charge, "to_dict", lambda c: {**whole(c), "count": 1})

    with pytest.raises(LedgerError, match="says other charges"):
        ledger.state_dict()


def test_a_state_of_which_a_charge_would_be_lost_is_not_read(monkeypatch):
    """What is read is written again and compared, before anything is loaded."""
    state, ledger = charged(3).state_dict(), charged(0)
    whole = Charge.from_dict
    monkeypatch.setattr(Charge, "from_dict", lambda row: replace(whole(row), count=1))

    with pytest.raises(LedgerError, match="not all of the state's charges"):
        ledger.load_state_dict(state)
    assert ledger.steps == 0


def test_noise_that_was_enough_is_refused_once_more_is_planned():
    """The numbers of the release are those of the step before; the plan's are not."""
    ledger = Ledger(plan(noise_multiplier=Schedule([(1, 1.0), (9, 1.5)])))
    ledger.reserve(**{**PLANNED, "noise_multiplier": 1.2})

    with pytest.raises(PrivacyError, match=r"1\.2 is below the plan's 1\.5 at step 1"):
        ledger.reserve(**{**PLANNED, "noise_multiplier": 1.2})

    assert ledger.steps == 1


def test_more_noise_is_charged_as_what_each_step_was_planned_with():
    """Equal releases are two charges, where the plan has other noise for them."""
    ledger = Ledger(plan(noise_multiplier=Schedule([(2, 1.0), (8, 1.5)])))
    for _ in range(3):
        ledger.reserve(**{**PLANNED, "noise_multiplier": 2.0})

    charged_as = [(c.count, c.planned_noise_multiplier) for c in ledger.charges()]

    assert charged_as == [(2, 1.0), (1, 1.5)]
