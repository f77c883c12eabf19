"""Bets against the claim of steps: they win against what leaks, and soon, and else not."""

import math
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

import dp
from dp import DPOptimizer, PoissonSampling, PrivacyPlan
from dp.audit import SequentialTest, sequential, training
from dp.audit._sequential_test import _gains, _worth


sys.path.insert(0, str(Path(__file__).parent))
import audit_builds


def plan(**changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.1),
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 10.0,
        "steps": 20,
        "target_delta": 1e-5,
    }
    return PrivacyPlan(**{**numbers, **changes})


# The bets


def test_a_p_value_is_worth_one_on_average():
    """Its worth is a density on (0, 1), and falls; also where its formula has no digits."""
    total = quad(lambda y: _worth(math.exp(-y)) * math.exp(-y), 0, 1e3, limit=500)[0]

    # What is beyond exp(-1000) is worth 1 / 1000, as the antiderivative says.
    assert total + (1 - math.exp(-1e3)) / 1e3 == pytest.approx(1.0, abs=1e-6)
    worth = [_worth(p) for p in (1e-12, 1e-6, 0.1, 0.9, 0.998, 0.9995, 1.0)]
    assert worth == sorted(worth, reverse=True)
    assert worth[-1] == 0.5
    assert _worth(math.exp(-1.001e-3)) == pytest.approx(_worth(math.exp(-0.999e-3)))


def played(rng, *, sigma, claimed=1.0, q=0.3, num=200, steps=1, error=1e-6):
    test = SequentialTest(error=error)
    for _ in range(steps):
        drawn = rng.random(num) < q
        released = drawn + sigma * rng.normal(size=num)
        test.observe(released, drawn, noise_multiplier=claimed, sampling_probability=q)
        if test.is_refuted:
            break
    return test


@pytest.mark.statistical
@pytest.mark.parametrize("q", [0.2, 0.7])
def test_no_bet_gains_on_average_against_a_right_step(q):
    """The mean gain of 400 right steps is 1 at most, for each of the four bets.

    Gains on the share of right guesses have standard deviation 0.07 at most, so that
    their mean exceeds 1.02 with probability 1e-8; gains on p-values are below 1 unless p
    is below 0.2. At noise 1/2 all four are above, in every run of a hundred.
    """
    rng = np.random.default_rng(5)
    right, wrong = [], []
    for gains, sigma in ((right, 1.0), (wrong, 0.5)):
        for _ in range(400):
            drawn = rng.random(150) < 1 / 2
            scores = drawn + sigma * rng.normal(size=150)
            gains.append(_gains(scores, drawn, 1.0))

    assert (np.mean(right, axis=0) < 1.02).all()
    assert (np.mean(wrong, axis=0) > 1.02).all()
    test = played(rng, sigma=1.0, q=q, steps=20)
    assert not test.is_refuted
    assert test.capital < 10


@pytest.mark.statistical
def test_a_right_run_is_refuted_as_rarely_as_it_says():
    """At an error of 10 %, 200 runs of 30 steps of the worst mechanism there is.

    It tells the coin with probability (1 + a) / 2, and a is all that is permitted, so
    the bets on shares are fair. 20 false alarms are expected at most, and 45 are 5.9
    standard deviations away. A claim of less is refuted in more than half of the runs.
    """
    rng = np.random.default_rng(7)
    right = math.erf(1 / math.sqrt(8)) / 2 + 1 / 2  # Of mu = 1.
    false_alarms = refuted = 0
    for claimed, tally in ((1.0, 0), (1.6, 1)):
        for _ in range(200):
            test = SequentialTest(error=0.1)
            for _ in range(30):
                drawn = rng.random(60) < 1 / 2
                told = np.where(rng.random(60) < right, drawn, ~drawn)
                test.observe(
                    told, drawn, noise_multiplier=claimed, sampling_probability=0.5
                )
            if tally:
                refuted += test.is_refuted
            else:
                false_alarms += test.is_refuted

    assert false_alarms < 45
    assert refuted > 100


@pytest.mark.statistical
def test_steps_that_are_not_as_private_as_claimed_are_refuted():
    """Half the noise at once; three quarters in a while; a fault that begins late, too.

    At an error of 1e-6, far from the numbers of steps that were seen in 20 runs: 8 to 14,
    120 to 190 and 8 to 16.
    """
    rng = np.random.default_rng(11)

    assert played(rng, sigma=0.5, num=2000, steps=60).refuted_after < 40
    assert played(rng, sigma=0.75, num=2000, steps=600).is_refuted
    late = SequentialTest(error=1e-6)
    for step in range(160):
        drawn = rng.random(2000) < 0.3
        released = drawn + (1.0 if step < 100 else 0.4) * rng.normal(size=2000)
        late.observe(released, drawn, noise_multiplier=1.0, sampling_probability=0.3)
    assert 100 < late.refuted_after <= 160


def test_scores_that_say_nothing_win_nothing():
    """Ties are broken at random, numbers that are none count as ties."""
    test, drawn = SequentialTest(error=1e-6), np.arange(300) < 150
    for scores in (np.zeros(300), np.full(300, np.nan)):
        test.observe(scores, drawn, noise_multiplier=1.0, sampling_probability=0.5)

    assert test.capital < 2
    assert test.num_steps == 2
    assert test.refuted_after is None


def test_too_few_coins_change_nothing():
    """A batch that may be empty, or a single canary."""
    test = SequentialTest()
    for num in (0, 1):
        test.observe(
            np.zeros(num),
            np.zeros(num, bool),
            noise_multiplier=1.0,
            sampling_probability=0.5,
        )

    assert test.capital == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier must be"),
        ({"sampling_probability": 1.0}, "sampling_probability must be strictly"),
        ({"scores_M": np.zeros(3)}, r"one length.*\(3,\) and \(4,\)"),
        ({"scores_M": np.zeros((4, 1)), "drawn_M": np.zeros((4, 1))}, "one length"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, told):
    """Nothing is bet on them."""
    test = SequentialTest()
    about = {
        "scores_M": np.zeros(4),
        "drawn_M": np.zeros(4, bool),
        "noise_multiplier": 1.0,
        "sampling_probability": 0.5,
    }
    with pytest.raises(ValueError, match=told):
        test.observe(**{**about, **changes})

    assert test.num_steps == 0
    with pytest.raises(ValueError, match="error must be strictly between"):
        SequentialTest(error=0.0)


# The audit


def test_a_right_run_is_watched_to_its_end():
    """False alarms 1e-9, over both runs."""
    report = sequential(training(plan(steps=5)), num_canaries=300, num_runs=2)

    assert report.ok, str(report)
    assert report.num_steps == 10
    assert report.refuted_after is None
    assert report.error == 1e-9
    assert "an auditor who began with 1 has" in str(report)
    report.raise_if_failed()


@pytest.mark.statistical
def test_a_run_with_too_little_noise_is_left_as_soon_as_it_is_refuted():
    """A tenth of the noise: within 20 steps in all of 40 runs that were seen (5 to 7)."""
    seen = []

    def train(model, dataset):
        def count(*_):
            seen.append(None)

        with mock.patch.object(DPOptimizer, "step", counted(count)):
            try:
                training(plan(steps=60))(model, dataset)
            except Exception:  # noqa: BLE001 -- as careless loops do
                pytest.fail("the audit's own exception is no Exception")

    with audit_builds.noise_scaled(0.1):
        report = sequential(train, num_canaries=1000, num_runs=3, progress=True)

    assert not report.ok
    assert report.refuted_after == report.num_steps == len(seen) < 40
    assert report.capital >= 1e9
    with pytest.raises(dp.PrivacyError, match="as their noise claims"):
        report.raise_if_failed()


def counted(count):
    step = DPOptimizer.step

    def counting(self, *args, **kwargs):
        count()
        return step(self, *args, **kwargs)

    return counting


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sampling": dp.RandomAllocation(steps_per_pass=10)}, "RandomAllocation"),
        ({"sampling": dp.Unamplified()}, r"Unamplified\(\)"),
    ],
)
def test_steps_without_coins_of_their_own_are_refused(changes, told):
    """At the first step, before anything is bet."""
    with pytest.raises(dp.UnsupportedOperationError, match=told):
        sequential(training(plan(**changes)), num_canaries=100)


def test_other_optimizers_are_none_of_its_business():
    """Nor is a function that makes no private one audited."""

    def train(*_):
        other = nn.Linear(1, 1)
        sgd = torch.optim.SGD(other.parameters(), lr=0.1)
        other(torch.ones(1, 1)).sum().backward()
        sgd.step()

    with pytest.raises(dp.PrivacyError, match="no DPOptimizer stepped"):
        sequential(train, num_canaries=100)
    with pytest.raises(ValueError, match="num_canaries must be >= 100, got 99"):
        sequential(train, num_canaries=99)
