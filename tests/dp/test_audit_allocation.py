"""Audits of random allocation: right runs hold, and each broken build is refuted."""

import math
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

from dp import DPOptimizer, PrivacyPlan, RandomAllocation
from dp._keystream import Keystream
from dp.audit import canaries, conformance, replay, training
from dp.audit._statistics import FALSE_ALARM, sizes_p
from dp.sampling._draws import allocate_at_random


sys.path.insert(0, str(Path(__file__).parent))
import audit_builds as builds
from audit_builds import refuted, take_down


NUM_RECORDS = 4000
STEPS = 5


@pytest.fixture
def plan():
    return PrivacyPlan(
        sampling=RandomAllocation(steps_per_pass=STEPS),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=100.0,
        steps=40,
        target_delta=1e-5,
    )


@contextmanager
def allocating(change):
    """Let *change* allocate a pass, given how many examples and steps there are."""
    with mock.patch(
        "dp.sampling._allocation_loader.allocate_at_random",
        lambda num_examples, *, num_steps: change(num_examples, num_steps),
    ):
        yield


def split(steps_N, num_steps):
    return [np.flatnonzero(steps_N == i).astype(np.uint64) for i in range(num_steps)]


def shuffled():
    """A permutation, cut into batches of equal size: sizes do not vary."""

    def cut(num_examples, num_steps):
        order = np.random.default_rng().permutation(num_examples)
        return [np.sort(p).astype(np.uint64) for p in np.array_split(order, num_steps)]

    return allocating(cut)


def used_in_every_pass():
    """One allocation for the whole run."""
    kept = {}

    def once(num_examples, num_steps):
        if num_examples not in kept:
            kept[num_examples] = allocate_at_random(num_examples, num_steps=num_steps)
        return [step.copy() for step in kept[num_examples]]

    return allocating(once)


def seeded():
    """The same allocations after a restart."""
    numbers = count()

    def draw(num_examples, num_steps):
        generator = np.random.default_rng(next(numbers) % 4)
        return split(generator.integers(num_steps, size=num_examples), num_steps)

    return allocating(draw)


def in_pairs():
    """Neighbours share a coin."""

    def draw(num_examples, num_steps):
        coins = np.random.default_rng().integers(num_steps, size=num_examples // 2 + 1)
        return split(np.repeat(coins, 2)[:num_examples], num_steps)

    return allocating(draw)


def with_a_favourite_step():
    """The first step gets a fifth more than its share."""

    def draw(num_examples, num_steps):
        generator = np.random.default_rng()
        steps = generator.integers(num_steps, size=num_examples)
        steps[generator.random(num_examples) < 0.05] = 0
        return split(steps, num_steps)

    return allocating(draw)


def poisson():
    """Coins for each step: some examples are in two, others in none."""

    def draw(num_examples, num_steps):
        coins = Keystream().integers(num_examples * num_steps, np.dtype(np.uint8))
        taken = (coins % num_steps == 0).reshape(num_steps, num_examples)
        return [np.flatnonzero(step).astype(np.uint64) for step in taken]

    return allocating(draw)


def losing_some():
    """One example in a hundred is in no step."""

    def draw(num_examples, num_steps):
        steps = np.random.default_rng().integers(num_steps, size=num_examples)
        steps[np.random.default_rng().random(num_examples) < 0.01] = num_steps
        return split(steps, num_steps)

    return allocating(draw)


@pytest.mark.slow
def test_a_right_run_conforms(plan, decisions):
    """False alarms: 2e-8, by construction."""
    report = conformance(training(plan), num_records=NUM_RECORDS)

    take_down(decisions, report)
    assert report.ok, str(report)
    assert len(report.findings) == 15
    assert "in 1 to 1 steps of a pass of 5" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "claims"),
    [
        (shuffled, {"sizes of batches"}),
        (used_in_every_pass, {"independent over passes", "independent over restarts"}),
        (seeded, {"independent over restarts"}),
        (in_pairs, {"independent over records"}),
        (with_a_favourite_step, {"sizes of batches"}),
        (poisson, {"every record once a pass"}),
        (losing_some, {"every record once a pass"}),
        (lambda: builds.noise_scaled(0.5), {"scale"}),
        (lambda: builds.clip_scaled(1.5), {"norm of a contribution"}),
        (builds.uncharged_releases, {"every release is charged"}),
        (builds.forgotten_ledger, {"a resumed run adds up"}),
    ],
    ids=[
        "shuffled",
        "one allocation",
        "seeded",
        "pairs",
        "favourite step",
        "poisson",
        "losing some",
        "half the noise",
        "wider clipping",
        "uncharged",
        "forgotten ledger",
    ],
)
def test_a_broken_build_does_not_conform(plan, build, claims, decisions):
    """Each is refuted by the claim that it breaks.

    Misses: below 1e-6 for each. The nearest decision is on the sizes of shuffled
    batches, whose p-value is about 1e-14.
    """
    with build():
        report = conformance(training(plan), num_records=NUM_RECORDS)

    take_down(decisions, report, claims - {"every record once a pass"})
    assert claims <= refuted(report), str(report)


@pytest.mark.slow
def test_a_run_of_part_of_a_pass_is_audited(plan):
    """What was released is compared; the steps that were not are not missed."""

    def train(model, dataset):
        loader = plan.loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        optimizer = DPOptimizer(sgd, plan=plan, loader=loader)
        for _, batch in zip(range(3), loader, strict=False):
            optimizer.backward(model(batch))
            optimizer.step()

    report = conformance(train, num_records=1000)

    assert "every record once a pass" not in refuted(report)
    attack = canaries(train, num_canaries=1000)
    assert attack.ok, str(attack)


@pytest.mark.slow
def test_the_attack_on_a_right_run_stays_below_what_is_proven(plan):
    """The score is the likelihood ratio of whole passes. False alarms: 1e-9."""
    report = canaries(training(plan), num_canaries=NUM_RECORDS)

    assert report.ok, str(report)
    assert 0 < report.epsilon_empirical < report.epsilon_proven


@pytest.mark.slow
def test_the_attack_refutes_the_claim_of_less_noise(plan):
    """Missed with probability 1e-6 at most, at a third of the noise."""
    with builds.noise_scaled(0.3):
        report = canaries(training(plan), num_canaries=NUM_RECORDS)

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
def test_a_right_run_replays(plan, data):
    """One record changes one sum a pass, by the clipping norm at most."""
    report = replay(training(plan), Classifier(), data)

    assert report.ok, str(report)
    assert "8 of 40 sums differ" in str(report)


@pytest.mark.slow
def test_an_allocation_in_which_others_move_does_not_replay(plan, data):
    """A permutation of one record less gives the others other steps."""

    def cut(num_examples, num_steps):
        words = Keystream().integers(num_examples, np.dtype(np.uint64))
        return [
            np.sort(p).astype(np.uint64)
            for p in np.array_split(np.argsort(words), num_steps)
        ]

    with allocating(cut):
        report = replay(training(plan), Classifier(), data)

    assert "sums differ by the sensitivity at most" in {
        f.claim for f in report.findings if not f.holds
    }


@pytest.mark.statistical
def test_p_values_of_sizes_are_what_they_say(decisions):
    """Of 2000 right passes: below 1 % not more often than that. False alarms: 1e-9.

    Sizes that are all equal, or of one cell that is twice as likely, are seen.
    """
    generator = np.random.default_rng()
    values = [
        sizes_p(generator.multinomial(200, [0.2] * 5, size=2)) for _ in range(2000)
    ]
    below = sum(value < 0.01 for value in values)

    assert not decisions.refutes(
        "rate", stats.binomtest(below, 2000, 0.01, alternative="greater").pvalue
    )
    assert sizes_p(np.full((4, 5), 1000)) < FALSE_ALARM
    assert sizes_p(np.array([[4000, 2000, 2000, 2000]])) < FALSE_ALARM
    assert sizes_p(np.array([[7]])) == 1.0
    assert sizes_p(np.array([[2, 0], [0, 2]])) <= 1.0
    assert math.isfinite(sizes_p(np.zeros((3, 4), dtype=int)))
