"""What the meter of releases notices of defects in the ledger.

The ledger's files leave the page of what must be believed since every release is counted
beside it: a charge that is lost, or too small, shows before an epsilon is stated.
"""

import copy
import math
import pickle
from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, PrivacyError, PrivacyPlan, WrongReleaseError
from dp._mechanism import witness
from dp._mechanism.metering import counting
from dp.accounting import Truncation
from dp.ledger import Charge, Kind, Ledger, Meter, _ledger
from dp.ledger._terms import TermsOfSteps


PLAN = {
    "sampling": dp.PoissonSampling(sampling_probability=0.5),
    "noise_multiplier": 1.0,
    "max_grad_norm": 0.5,
    "expected_batch_size": 10.0,
    "steps": 20,
    "target_delta": 1e-5,
}


def make_run(plan=None, **changes):
    """Return a private optimizer of a small model, and its loader."""
    plan = PrivacyPlan(**{**PLAN, **changes}) if plan is None else plan
    model = nn.Linear(3, 1)
    loader = plan.loader(TensorDataset(torch.randn(20, 3)))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, DPOptimizer(inner, plan=plan, loader=loader), loader


def train(run, num_steps):
    model, optimizer, loader = run
    for (x,), _ in zip(loader, range(num_steps), strict=False):
        optimizer.backward(lambda batch: model(batch).squeeze(1).square(), x)
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def compared_at_first(monkeypatch):
    """Let no release after the first three be compared by the witness."""
    monkeypatch.setattr(witness, "_EVERY", 10**9)


def the_last_alone(_segment, charge):
    return (charge,)


def never_counted_together(right):
    """Take two charges for one if they are in a row."""
    return lambda segment, charge: segment or right(segment, charge)


def first_terms(right):
    """Charge all steps as the first one."""
    kept = {}

    def wrong(self, *args):
        return kept.setdefault(id(self), right(self, *args))

    return wrong


def whatever_is_planned(right):
    """Take no notice of what the plan says of a step, if the numbers are the same."""
    kept = {}

    def wrong(self, numbers, *args):
        key = id(self), numbers
        if key not in kept:
            kept[key] = right(self, numbers, *args)
        return kept[key]

    return wrong


def without_earlier(right):
    """Lose all charges of other processes with the next one's."""

    def wrong(self, **numbers):
        right(self, **numbers)
        self._segments = {self.segment: self._segments[self.segment]}

    return wrong


# By file: what is wrong of releases after the third.
LOST = {
    "_ledger: earlier charges": patch.object(
        Ledger, "reserve", lambda self, **_: setattr(self, "_segments", {})
    ),
    "_ledger: no charge": patch.object(Ledger, "reserve"),
    "_segments: all but the last": patch.object(_ledger, "appended", the_last_alone),
    "_segments: equal ones count once": patch.object(
        _ledger, "appended", never_counted_together(_ledger.appended)
    ),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.usefixtures("compared_at_first")
def test_a_charge_that_is_lost_makes_every_epsilon_infinite(name):
    """Also where no release is compared any more."""
    run = make_run()
    train(run, 3)
    with LOST[name]:
        train(run, 2)
    ledger = run[1].ledger

    assert ledger.guarantee().epsilon == math.inf
    assert ledger.spent().epsilon == math.inf
    assert "charges of its releases are missing" in ledger.state_dict()["failure"]
    assert run[1].certificate().epsilon == math.inf


def test_a_charge_that_is_lost_ends_the_run_where_releases_are_compared():
    """It is told apart from a release that was charged twice or never."""
    run, other = make_run(), make_run()
    train(other, 2)
    run[1].ledger.load_state_dict(other[1].ledger.state_dict())

    with (
        patch.object(Ledger, "reserve", without_earlier(Ledger.reserve)),
        pytest.raises(WrongReleaseError, match="no charge any more"),
    ):
        train(run, 1)


@pytest.mark.usefixtures("compared_at_first")
def test_charges_of_other_noise_make_every_epsilon_infinite():
    """Steps with less noise than the first ones are charged as these."""
    schedule = dp.Schedule(((3, 2.0), (2, 1.0)))
    run = make_run(noise_multiplier=schedule)
    train(run, 3)
    with patch.object(TermsOfSteps, "of", first_terms(TermsOfSteps.of)):
        run[1].ledger._terms.of(*last_numbers(run[1]))
        train(run, 1)

    assert run[1].guarantee().epsilon == math.inf


def last_numbers(optimizer):
    """Return what the step before was charged as."""
    (about, _) = optimizer.ledger._terms._last
    return about[0], optimizer.ledger.steps - 1, None


def test_more_noise_than_planned_is_noticed_where_it_is_accounted():
    """That there was more may follow from releases, so the plan's is what counts."""
    run = make_run(noise_multiplier=dp.Schedule(((1, 2.0), (2, 1.0))))
    run[1].noise_multiplier = 2.0

    with (
        patch.object(TermsOfSteps, "of", whatever_is_planned(TermsOfSteps.of)),
        pytest.raises(WrongReleaseError, match="more noise than was planned"),
    ):
        train(run, 2)


def test_more_noise_that_is_public_is_no_alarm():
    """Twin: declared public, or under a filter, it is accounted as what it was."""
    run = make_run()
    run[1].assign_public(noise_multiplier=3.0, reason="the size of the cluster")

    train(run, 3)

    assert run[1].guarantee().epsilon < make_run()[1].plan.guarantee().epsilon


def short_of_both(ours, theirs, _key):
    return min(ours, theirs, key=len)


# What is lost of a state that is loaded.
UNLOADED = {
    "_segments: the state that goes on": patch.object(_ledger, "merge", short_of_both),
    "_ledger: its failure": patch.object(Ledger, "fail"),
}


@pytest.mark.parametrize("name", UNLOADED)
def test_what_a_state_says_is_not_lost(name):
    """A ledger that does not take all of it states nothing."""
    earlier = make_run()[1].ledger
    earlier.reserve(sampling_probability=0.5, noise_multiplier=1.0, max_grad_norm=0.5)
    earlier.fail("units were mixed")
    state = earlier.state_dict()
    ledger = Ledger(earlier.plan)

    with UNLOADED[name]:
        ledger.load_state_dict(state)

    assert ledger.guarantee().epsilon == math.inf


def without_charges(right):
    def wrong(self, memo):
        fork = right(self, memo)
        fork._segments = {}
        return fork

    return wrong


def test_a_copy_has_the_count_of_what_it_was_copied_from():
    """Or else a fork could state less than both have cost."""
    run = make_run()
    train(run, 2)

    with patch.object(Ledger, "__deepcopy__", without_charges(Ledger.__deepcopy__)):
        fork = copy.deepcopy(run[1].ledger)

    assert fork.guarantee().epsilon == math.inf
    assert copy.deepcopy(run[1].ledger).guarantee().epsilon < math.inf


def test_a_certificate_of_fewer_charges_is_not_written():
    """It asks by itself, whatever the ledger says of its own meter."""
    run = make_run()
    train(run, 2)
    (key, (charge,)) = next(iter(run[1].ledger.segments().items()))
    fewer = {key: (replace(charge, count=1),)}

    with (
        patch.object(Ledger, "segments", lambda _self: fewer),
        pytest.raises(PrivacyError, match="nothing is certified"),
    ):
        run[1].certificate()


def test_a_ledger_that_says_it_knows_another_one_is_not_believed():
    """Weights that were paid for by another ledger are asked of its meter, too."""
    run = make_run()
    train(run, 1)
    again = DPOptimizer(
        torch.optim.SGD(run[0].parameters(), lr=0.1), plan=run[1].plan, loader=run[2]
    )

    with (
        patch.object(Ledger, "includes", lambda *_: True),
        pytest.raises(dp.LedgerError),
    ):
        train((run[0], again, run[2]), 1)


def pickled(ledger):
    return pickle.loads(pickle.dumps(ledger))  # noqa: S301 -- our own bytes


# What reads the charges of a ledger, and its count of releases beside them.
READS = {
    "a copy": lambda optimizer: copy.deepcopy(optimizer.ledger).guarantee(),
    "a pickle": lambda optimizer: pickled(optimizer.ledger).spent(),
    "a guarantee": DPOptimizer.guarantee,
    "what is spent": DPOptimizer.spent,
    "a certificate": DPOptimizer.certificate,
}


@pytest.mark.parametrize("name", READS)
def test_a_release_of_another_thread_is_no_alarm(name):
    """It may come at any moment of a read: before the meter is copied, or after."""
    run = make_run()
    ledger, right_copy, right_rows = run[1].ledger, Meter.__copy__, _ledger.rows

    def release():
        ledger.reserve(
            sampling_probability=0.5, noise_multiplier=1.0, max_grad_norm=0.5
        )
        ledger.meter.count(ledger.segment, Kind(1.0, 0.5, None))

    def late_copy(meter):
        if meter is ledger.meter:
            release()
        return right_copy(meter)

    def early_rows(segments):
        rows = right_rows(segments)
        if segments == ledger.segments():
            release()
        return rows

    with (
        patch.object(Meter, "__copy__", late_copy),
        patch.object(_ledger, "rows", early_rows),
    ):
        read = READS[name](run[1])

    assert ledger.steps
    assert read.epsilon < math.inf
    assert ledger.failure is None


CHARGE = Charge(
    sampling_probability=0.5, noise_multiplier=1.0, max_grad_norm=2.0, count=3
)
COVERED = {
    "equal": ([Kind(1.0, 0.5, None)] * 3, True),
    "one more": ([Kind(1.0, 0.5, None)] * 4, False),
    "more noise": ([Kind(1.1, 0.5, None)] * 3, True),
    "less noise": ([Kind(0.9, 0.5, None)], False),
    "rounded": ([Kind(math.nextafter(1.0, 0.0), 0.5, None)] * 3, True),
    "less sampling": ([Kind(1.0, 0.4, None)] * 3, True),
    "more sampling": ([Kind(1.0, 0.6, None)], False),
    "of two kinds together": (
        [*[Kind(1.0, 0.5, None)] * 2, *[Kind(2.0, 0.5, None)] * 2],
        False,
    ),
    "truncated": (
        [Kind(1.0, 0.5, Truncation(max_batch_size=3, dataset_size=9))],
        False,
    ),
}


@pytest.mark.parametrize("name", COVERED)
def test_charges_cover_what_costs_no_more(name):
    """As many of each kind, of no more noise and no smaller probability."""
    counted, is_covered = COVERED[name]
    meter = Meter("one example")
    for kind in counted:
        meter.count("key", kind)

    assert meter.misses({"key": (CHARGE,)}, failure=None) is not is_covered
    assert meter.misses({"another": (CHARGE,)}, failure=None)


def test_rounding_of_many_noise_multipliers_is_no_alarm():
    """A schedule, or a filter, may have another one at each step."""
    draws = np.random.default_rng(0).uniform((0.5, 0.01), (3, 100), (200, 2))
    meter, charges = Meter("one example"), []
    for sigma, norm in draws.tolist():
        charges.append(
            replace(CHARGE, noise_multiplier=sigma, max_grad_norm=norm, count=1)
        )
        meter.count("key", Kind(sigma * norm / norm, 0.5, None))

    assert not meter.misses({"key": tuple(charges)}, failure=None)
    assert meter.misses({"key": tuple(charges[1:])}, failure=None)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"planned_noise_multiplier": 0.7}, Kind(0.7, 0.5, None)),
        ({"planned_sampling_probability": 0.8}, Kind(1.0, 0.8, None)),
    ],
)
def test_a_charge_is_of_what_it_is_accounted_as(changes, kind):
    """Whichever costs more of what was planned and what was done."""
    assert Kind.of(replace(CHARGE, **changes)) == kind


@pytest.mark.parametrize(
    "changes",
    [{"planned_noise_multiplier": 3.0}, {"planned_sampling_probability": 0.1}],
)
def test_a_charge_that_is_accounted_as_less_than_was_released_is_missing(changes):
    """What was used says nothing where another number is composed."""
    run = make_run()
    train(run, 2)
    ledger = run[1].ledger
    (charge,) = ledger.charges()
    ledger._segments = {ledger.segment: (replace(charge, **changes),)}

    assert ledger.spent().epsilon == math.inf
    assert ledger.guarantee().epsilon == math.inf


def test_states_of_one_run_count_once():
    """Going back to an older checkpoint, and on from it, is no alarm."""
    run = make_run()
    train(run, 1)
    early = run[1].state_dict()
    train(run, 2)
    late = run[1].state_dict()
    for state in (early, late, early):
        run[1].load_state_dict(state)
        train(run, 1)

    assert run[1].ledger.steps == 6
    assert run[1].guarantee().epsilon < math.inf
    assert Counter(run[1].ledger.meter._released.keys()).total() == 4


HONEST = {
    "scheduled": {"noise_multiplier": dp.Schedule(((1, 2.0), (2, 1.0)))},
    "odd numbers": {"noise_multiplier": 0.7, "max_grad_norm": 0.3},
    "truncated": {
        "sampling": dp.TruncatedPoissonSampling(
            sampling_probability=0.5, max_batch_size=15, dataset_size=20
        ),
        "neighboring_relation": "replace_one",
    },
    "filtered": {"renyi_order": 8.0},
    "in passes": {
        "sampling": dp.RandomAllocation(steps_per_pass=4),
        "neighboring_relation": "zero_out",
    },
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("every", [1, 10**9])
def test_an_honest_ledger_covers_what_was_counted(name, every, monkeypatch):
    """Twin: nothing is missing, whether releases are compared or not."""
    monkeypatch.setattr(witness, "_EVERY", every)
    run = make_run(**HONEST[name])
    train(run, 5)
    ledger = run[1].ledger

    assert bool(ledger.meter._released) is (name != "in passes")
    assert ledger.guarantee().epsilon < math.inf
    assert Ledger(ledger.plan).meter.misses({}, failure=None) is False


def test_a_release_counts_once_however_its_noise_is_added():
    """Ranks add noise to one bucket after another."""
    ledger = Ledger(PrivacyPlan(**{**PLAN, "sampling": dp.Unamplified()}))
    count = counting(ledger, None, max_grad_norm=0.5)
    for _ in range(2):
        count(lambda: 0.5, ())

    assert ledger.meter._released == {ledger.segment: {Kind(1.0, 1.0, None): 1}}


def test_noise_that_a_program_adds_itself_is_not_counted():
    """What stands in for the noise stage is the program's own."""
    run = make_run()
    stands_in = patch.object(dp.GaussianNoise, "add_", lambda _s, _t, *, stddev: stddev)
    with stands_in:
        train(run, 1)

    assert not run[1].ledger.meter._released
