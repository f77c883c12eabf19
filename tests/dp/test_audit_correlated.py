"""Audits of correlated noise: right runs hold, and each broken build is refuted."""

import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dp import BandedNoise, CyclicPoisson, DPOptimizer, PrivacyPlan
from dp._keystream import Keystream
from dp._mechanism.correlated import Recursion
from dp.audit import canaries, conformance, replay, training
from dp.sampling import _cyclic_loader
from dp.sampling._draws import allocate_at_random


sys.path.insert(0, str(Path(__file__).parent))
import audit_builds as builds
from audit_builds import refuted, take_down


NUM_RECORDS = 4000
STRUCTURE = {"every record in one group", "every record in every round"}


def make_plan(*, q=0.1, steps=40, correlated=True):
    noise = BandedNoise.optimal(4, steps=steps)
    return PrivacyPlan(
        sampling=CyclicPoisson(sampling_probability=q, bands=4),
        correlation=noise if correlated else None,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=100.0,
        steps=steps,
        target_delta=1e-5,
    )


@pytest.fixture
def plan():
    return make_plan()


@contextmanager
def grouping(change):
    """Let *change* group examples, given how many there are, and groups."""
    with mock.patch.object(
        _cyclic_loader,
        "allocate_at_random",
        lambda num_examples, *, num_steps: change(num_examples, num_steps),
    ):
        yield


def split(groups_N, num_groups):
    return [np.flatnonzero(groups_N == i).astype(np.uint64) for i in range(num_groups)]


def seeded():
    """The same groups after a restart."""
    return grouping(
        lambda n, groups: split(
            np.random.default_rng(1).integers(groups, size=n), groups
        )
    )


def in_pairs():
    """Neighbours share a group."""

    def draw(num_examples, num_groups):
        coins = np.random.default_rng().integers(num_groups, size=num_examples // 2 + 1)
        return split(np.repeat(coins, 2)[:num_examples], num_groups)

    return grouping(draw)


def a_larger_group():
    """The first one gets nearly half of all."""

    def draw(num_examples, num_groups):
        groups = np.random.default_rng().integers(num_groups, size=num_examples)
        groups[np.random.default_rng().random(num_examples) < 0.3] = 0
        return split(groups, num_groups)

    return grouping(draw)


def one_group_too_few():
    """Participations are one step closer than there are bands."""

    def draw(num_examples, num_groups):
        few = allocate_at_random(num_examples, num_steps=num_groups - 1)
        turns = count()

        class Turns(list):
            def __getitem__(self, _):
                return few[next(turns) % (num_groups - 1)]

        return Turns(few)

    return grouping(draw)


def losing_some():
    """One example in a hundred has no group."""

    def draw(num_examples, num_groups):
        groups = np.random.default_rng().integers(num_groups, size=num_examples)
        groups[np.random.default_rng().random(num_examples) < 0.01] = num_groups
        return split(groups, num_groups)

    return grouping(draw)


def one_coin_for_all():
    """Groups are drawn whole, or not at all."""

    def draw(num_examples, *, sampling_probability):
        wins = np.random.default_rng().random() < sampling_probability
        return list(range(num_examples)) if wins else []

    return mock.patch.object(_cyclic_loader, "poisson_sample", draw)


def longer_columns():
    """Coefficients as planned, whose norm is above 1."""
    return mock.patch.object(
        BandedNoise, "unit_coefficients", property(lambda self: self.coefficients)
    )


def never_separated():
    """What is released is the noisy sum of several steps."""
    return mock.patch.object(Recursion, "separate")


def never_combined():
    """Noise is added to the sums of single steps, and correlated afterwards."""

    def combine(self, share):
        if self._share == len(self._histories):
            right(self, [torch.zeros_like(total) for total in share])
        for total in share:
            total.mul_(self._units[0])

    right = Recursion.combine
    return mock.patch.object(Recursion, "combine", combine)


@pytest.mark.slow
@pytest.mark.parametrize("correlated", [True, False])
def test_a_right_run_conforms(correlated, decisions):
    """False alarms: 4e-8, by construction."""
    report = conformance(
        training(make_plan(correlated=correlated)), num_records=NUM_RECORDS
    )

    take_down(decisions, report)
    assert report.ok, str(report)
    assert len(report.findings) == 19
    assert "in up to 1 of 4" in str(report)


@pytest.mark.slow
def test_at_the_largest_probability_every_record_is_in_every_round():
    """Then there is no coin but for the group."""
    report = conformance(training(make_plan(q=0.25)), num_records=1000)

    assert report.ok, str(report)
    assert "0 were left out" in str(report)
    with losing_some():
        report = conformance(training(make_plan(q=0.25)), num_records=1000)
    assert "every record in every round" in refuted(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "claims"),
    [
        (a_larger_group, {"groups of equal chances"}),
        (seeded, {"groups independent over restarts"}),
        (in_pairs, {"groups independent over records"}),
        (one_group_too_few, {"every record in one group"}),
        (one_coin_for_all, {"sizes of batches"}),
        (longer_columns, {"scale"}),
        (never_separated, {"independent over steps"}),
        (never_combined, {"norm of a contribution"}),
        (lambda: builds.noise_scaled(0.5), {"scale"}),
        (lambda: builds.clip_scaled(1.5), {"norm of a contribution"}),
        (builds.uncharged_releases, {"every release is charged"}),
        (builds.forgotten_ledger, {"a resumed run adds up"}),
    ],
    ids=[
        "larger group",
        "seeded",
        "pairs",
        "closer participations",
        "one coin",
        "longer columns",
        "never separated",
        "never combined",
        "half the noise",
        "wider clipping",
        "uncharged",
        "forgotten ledger",
    ],
)
def test_a_broken_build_does_not_conform(plan, build, claims, decisions):
    """Each is refuted by the claim that it breaks; misses: below 1e-6 for each."""
    with build():
        report = conformance(training(plan), num_records=NUM_RECORDS)

    take_down(decisions, report, claims - STRUCTURE)
    assert claims <= refuted(report), str(report)


def stopping_after(steps, plan):
    def train(model, dataset):
        loader = plan.loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        optimizer = DPOptimizer(sgd, plan=plan, loader=loader)
        for _, batch in zip(range(steps), loader, strict=False):
            optimizer.backward(model(batch))
            optimizer.step()

    return train


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 6])
def test_a_run_of_part_of_a_round_is_audited(plan, steps):
    """What was released is compared; the steps that were not are not missed."""
    report = conformance(stopping_after(steps, plan), num_records=1000)

    assert refuted(report) <= {"every release is charged", "a resumed run adds up"}
    attack = canaries(stopping_after(steps, plan), num_canaries=1000)
    assert attack.ok, str(attack)


@pytest.mark.slow
@pytest.mark.parametrize("correlated", [True, False])
def test_the_attack_on_a_right_run_stays_below_what_is_proven(correlated):
    """The score is the likelihood ratio of whole blocks. False alarms: 1e-9."""
    plan = make_plan(q=0.25, correlated=correlated)
    report = canaries(training(plan), num_canaries=NUM_RECORDS)

    assert report.ok, str(report)
    assert 1 < report.epsilon_empirical < report.epsilon_proven


def test_the_attack_refutes_the_claim_of_less_noise():
    """Missed with probability 1e-6 at most, at a third of the noise."""
    with builds.noise_scaled(0.3):
        report = canaries(
            training(make_plan(q=0.25, steps=8)), num_canaries=NUM_RECORDS
        )

    assert not report.ok


class Classifier(nn.Module):
    """Takes a batch and returns its losses."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, batch):
        x, y_B = batch
        return nn.functional.cross_entropy(self.layer(x), y_B, reduction="none")


@pytest.fixture
def data():
    torch.manual_seed(1)
    x = torch.randn(40, 4)
    x[-1] = 50.0
    return TensorDataset(x, torch.randint(3, (40,)))


@pytest.mark.slow
@pytest.mark.parametrize("correlated", [True, False])
def test_a_right_run_replays(correlated, data):
    """One record changes the sums of a round by the clipping norm at most."""
    plan = make_plan(steps=12, correlated=correlated)
    report = replay(training(plan), Classifier(), data)

    assert report.ok, str(report)


def keeping_equal_groups():
    """A permutation of one record less gives the others other groups."""

    def cut(num_examples, num_groups):
        words = Keystream().integers(num_examples, np.dtype(np.uint64))
        order = np.argsort(words)
        return [np.sort(p).astype(np.uint64) for p in np.array_split(order, num_groups)]

    return grouping(cut)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build", [keeping_equal_groups, one_group_too_few, longer_columns]
)
def test_a_broken_build_does_not_replay(build, data):
    """The last record has the whole clipping norm in every step that it is in.

    With a group too few, it is in one of three rounds two times, whatever its group is.
    """
    with build():
        report = replay(training(make_plan(q=0.25, steps=12)), Classifier(), data)

    assert "sums differ by the sensitivity at most" in {
        f.claim for f in report.findings if not f.holds
    }
