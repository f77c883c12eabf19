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
    total = quad(lambda y: _worth(math.exp(-y)) * math.exp(-y), 0, 500, limit=500)[0]

    # Of y = -log(p) beyond 500 the density is 1 / y**2, to 200 digits.
    assert total + 1 / 500 == pytest.approx(1.0, abs=1e-6)
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
def test_no_bet_gains_on_average_against_a_right_step():
    """The mean gain of 100 right steps is 1 at most, for each of the four bets.

    The generator has a seed. Gains of the largest stake on the share of right guesses
    have standard deviation 0.05, and so their mean 0.005; those of p-values are below
    1 unless p is below 0.2. With three tenths of the noise all four are far above.
    """
    rng = np.random.default_rng(5)
    means = []
    for sigma in (1.0, 0.3):
        gains = []
        for _ in range(100):
            drawn = rng.random(150) < 1 / 2
            gains.append(_gains(drawn + sigma * rng.normal(size=150), drawn, 1.0))
        means.append(np.mean(gains, axis=0))

    assert (means[0] < 1.02).all()
    assert (means[1] > 1.05).all()


@pytest.mark.statistical
def test_fair_bets_reach_a_capital_as_rarely_as_it_says():
    """Double or nothing, by a fair coin: of 200 runs of 30 steps 20 reach 10 at most.

    The generator has a seed; 45 are six standard deviations above. Where the coin is
    not fair, nearly all do.
    """
    rng = np.random.default_rng(7)
    reached = []
    for chance in (0.5, 0.95):

        def toss(*_, chance=chance):
            return np.where(rng.random(4) < chance, 2.0, 0.0)

        with mock.patch("dp.audit._sequential_test._gains", toss):
            runs = [
                played(rng, sigma=1.0, num=2, steps=30, error=0.1) for _ in range(200)
            ]
        reached.append(sum(run.is_refuted for run in runs))

    assert reached[0] < 45
    assert reached[1] > 180


@pytest.mark.statistical
@pytest.mark.parametrize("q", [0.3, 0.7])
def test_steps_that_are_not_as_private_as_claimed_are_refuted(q):
    """Half the noise soon: after 16 to 20 steps in 16 runs that were seen, at q = 0.3."""
    rng = np.random.default_rng(11)

    test = played(rng, sigma=0.5, q=q, num=600, steps=60)

    assert test.refuted_after == test.num_steps < 40
    assert test.capital >= 1e6
    assert not played(rng, sigma=1.0, q=q, num=100, steps=30).is_refuted  # 1e-6.


@pytest.mark.statistical
def test_a_little_too_little_noise_is_refuted_in_the_end():
    """Three quarters of it: a step is worth 1.08, with a standard deviation of 0.12.

    So 500 steps are 39 nats, give or take 3, and 16.6 suffice.
    """
    test = played(np.random.default_rng(3), sigma=0.75, num=60, steps=500)

    assert test.is_refuted


@pytest.mark.statistical
def test_a_fault_that_begins_late_is_refuted_soon_after():
    """From the 60th step on: after 80 to 85 in ten runs that were seen."""
    rng = np.random.default_rng(13)
    late = SequentialTest(error=1e-6)
    for step in range(120):
        drawn = rng.random(400) < 0.3
        released = drawn + (1.0 if step < 60 else 0.3) * rng.normal(size=400)
        late.observe(released, drawn, noise_multiplier=1.0, sampling_probability=0.3)

    assert 60 < late.refuted_after < 100
    assert late.is_refuted  # For ever, whatever comes after.


@pytest.mark.statistical
@pytest.mark.parametrize("q", [0.2, 0.7])
def test_coins_that_are_bet_on_are_fair(q):
    """Whatever the sampling probability is: half of those considered were drawn.

    Of about 1600 and 2400 coins; 0.08 is six standard deviations.
    """
    seen = []

    def look(scores, drawn, mu):
        seen.append((scores, drawn, mu))
        return np.ones(4)

    drawn = np.random.default_rng(17).random(4000) < q
    with mock.patch("dp.audit._sequential_test._gains", look):
        SequentialTest().observe(
            drawn.astype(float), drawn, noise_multiplier=2.0, sampling_probability=q
        )

    ((scores, considered, mu),) = seen
    assert abs(considered.mean() - 0.5) < 0.08
    assert len(considered) > 1200
    assert (scores == considered).all()
    assert mu == 0.5


def test_a_bet_loses_what_it_stakes_at_most():
    """Where every guess is wrong; and of two canaries as well."""
    drawn = np.arange(100) < 50

    gains = _gains(-drawn.astype(float), drawn, 1.0)

    assert gains[2:] == pytest.approx([0.75, 0.0])
    assert (gains[:2] == 0.5).all()
    assert (_gains(np.array([0.0, 1.0]), np.array([False, True]), 1.0) > 0).all()


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
    report = sequential(training(plan(steps=3)), num_canaries=200, num_runs=2)

    assert report.ok, str(report)
    assert report.num_steps == 6
    assert report.refuted_after is None
    assert report.error == 1e-9
    assert "an auditor who began with 1 has" in str(report)
    report.raise_if_failed()


@pytest.mark.statistical(traced=True)
def test_a_run_with_too_little_noise_is_left_as_soon_as_it_is_refuted():
    """A tenth of the noise: after 14 to 25 steps in 20 runs that were seen."""
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
        ({"sampling": dp.DisjointBatches(steps_per_pass=10)}, "DisjointBatches"),
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
