"""An attack on the losses of one model: it accuses what leaks, and nothing else."""

import math

import dp_accounting
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import binom
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, PoissonSampling, PrivacyPlan
from dp.audit import one_run, training
from dp.audit._guessing import ByPairs, Gaussian, largest_permitted, permits
from dp.audit._one_run import _Guesses


class Regression(nn.Module):
    """More features than records, so that it can learn every target by heart."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(400, 1)

    def forward(self, batch):
        x, y_B = batch
        return (self.layer(x)[:, 0] - y_B).square()


@pytest.fixture
def data():
    """Random targets: what is known of them was learnt."""
    torch.manual_seed(2)
    return TensorDataset(torch.randn(300, 400), torch.randn(300))


def plan(**changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.5),
        "noise_multiplier": 4.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 75.0,
        "steps": 10,
        "target_delta": 1e-5,
    }
    return PrivacyPlan(**{**numbers, **changes})


@pytest.mark.slow
def test_a_right_run_stays_within_its_claim(data):
    """Whatever it learnt: false alarms 1e-9."""
    report = one_run(training(plan()), Regression(), data)

    assert report.ok, str(report)
    assert report.epsilon_empirical <= report.epsilon_proven
    assert report.num_canaries == 300
    assert "empirical >=" in str(report)


@pytest.mark.slow
def test_a_run_that_learns_by_heart_is_refuted(data):
    """It claims little and adds no noise: 200 targets are known by their losses."""

    def leaking(model, dataset):
        training(plan(steps=1))(model, dataset)  # What it claims is one step.
        x, y = dataset.dataset[dataset.indices]
        with torch.no_grad():
            model.layer.bias.zero_()
            model.layer.weight.copy_(x.T @ torch.linalg.solve(x @ x.T, y))

    report = one_run(leaking, Regression(), data, canaries=range(100, 300))

    assert not report.ok
    assert report.epsilon_empirical > report.epsilon_proven
    assert report.epsilon_if_gaussian > report.epsilon_empirical
    assert "if it is Gaussian" in str(report)
    assert report.num_canaries == 200
    with pytest.raises(dp.PrivacyError, match="right guesses"):
        report.raise_if_failed()


def test_only_canaries_are_left_to_coins(data):
    """All other records are trained on."""
    seen = []

    def train(model, dataset):
        seen.extend(dataset.indices)
        training(plan())(model, dataset)

    one_run(train, Regression(), data, canaries=range(150))

    assert set(range(150, 300)) <= set(seen)
    assert 40 < len(set(seen) & set(range(150))) < 110
    assert len(seen) == len(set(seen))


def test_without_delta_the_bound_is_the_binomial_tail():
    """Of so many guesses at the rate of randomized response."""
    guesses = _Guesses(1000, ((100, 80),))
    tail = binom.sf(79, 100, 1 / (1 + math.exp(-0.5)))

    assert guesses.p_value(((0.5, 0.0),)) == pytest.approx(tail, rel=1e-12)
    assert guesses.p_value(((0.5, 1e-5),)) > tail
    assert guesses.p_value(((9.0, 0.0),)) == 1.0


def test_several_pairs_that_hold_together_bound_at_least_as_well():
    """As by their trade-off; and the bound by one pair is never worse than published."""
    guesses = _Guesses(2000, ((400, 320),))
    pairs = ((0.5, 1e-3), (0.9, 1e-5))

    both = guesses.p_value(pairs)

    assert both <= min(guesses.p_value((pair,)) for pair in pairs) < 1
    for pair in pairs:
        assert guesses.p_value((pair,)) <= guesses._by_one_pair(400, 320, *pair)


def test_the_term_of_delta_is_the_published_one():
    """2 M delta times the largest average of masses below v, by a plain loop."""
    r, v, epsilon, delta = 60, 50, 0.7, 1e-3
    right = 1 / (1 + math.exp(-epsilon))
    largest = max(
        (binom.cdf(v - 1, r, right) - binom.cdf(v - i - 1, r, right)) / i
        for i in range(1, v + 1)
    )
    expected = binom.sf(v - 1, r, right) + 2 * 200 * delta * largest

    bound = _Guesses(200, ())._by_one_pair(r, v, epsilon, delta)
    assert bound == pytest.approx(expected)


@pytest.mark.statistical
def test_the_lower_bound_is_wrong_as_rarely_as_it_says():
    """Randomized response of epsilon 1 is the worst mechanism there is.

    400 runs of 500 canaries; at 90 % confidence at most 40 in the mean, and 80 are more
    than six standard deviations away. A claim of half the epsilon is refuted often.
    """
    rng = np.random.default_rng(5)
    false_alarms = refuted = 0
    for _ in range(400):
        included = rng.random(500) < 0.5
        told = np.where(rng.random(500) < 1 / (1 + math.exp(-1.0)), included, ~included)
        guesses = _Guesses.of([told.astype(float)], included)
        false_alarms += guesses.p_value(((1.0, 0.0),)) <= 0.1
        refuted += guesses.p_value(((0.5, 0.0),)) <= 0.1

    assert false_alarms < 80
    assert refuted > 200


def test_nothing_is_learnt_from_losses_that_say_nothing():
    """Ties are broken at random, not by the order of the records."""
    included = np.arange(1000) < 500
    rates = [
        right / guessed
        for _ in range(20)
        for guessed, right in _Guesses.of([np.zeros(1000)], included).counts
    ]

    assert 0.4 < np.mean(rates) < 0.6
    nothing = _Guesses(100, ((10, 0),))
    assert nothing.p_value(((0.0, 1e-5),)) == 1.0
    assert nothing.largest_refuted(0.0, 0.05) == 0.0
    assert nothing.largest_refuted_gaussian(1e-5, 0.05) == 0.0


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"canaries": range(99)}, "got 99, 99 of them different"),
        ({"canaries": [0] * 200}, "got 200, 1 of them different"),
        ({"confidence": 1.0}, "confidence must be strictly between"),
    ],
)
def test_numbers_out_of_range_are_refused(data, about, told):
    """Before anything is trained."""
    with pytest.raises(ValueError, match=told):
        one_run(training(plan()), Regression(), data, **about)


def test_a_function_that_makes_no_private_optimizer_is_refused(data):
    """There is no claim to attack."""
    with pytest.raises(dp.PrivacyError, match="no DPOptimizer stepped the model"):
        one_run(lambda *_: None, Regression(), data)


def test_other_optimizers_are_none_of_its_business(data):
    """Private ones of other parameters and other records."""

    def train(model, dataset):
        other, numbers = nn.Linear(1, 1), torch.randn(20, 1)
        loader = plan(steps=1).loader(numbers)
        private = DPOptimizer(
            torch.optim.SGD(other.parameters(), lr=0.1),
            plan=plan(steps=1),
            loader=loader,
        )
        for batch in loader:
            private.backward(other(batch)[:, 0])
            private.step()
        training(plan())(model, dataset)

    report = one_run(train, Regression(), data, progress=True)

    assert report.ok
    assert report.epsilon_proven == plan().guarantee().epsilon


def test_a_claim_by_a_filter_is_the_only_one_that_it_makes(data):
    """At another delta it says nothing; nor does a run with a debugging seed."""

    def debugged(model, dataset):
        loader = plan().loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        noise = dp.GaussianNoise(rng="debug", seed=3)
        optimizer = DPOptimizer(sgd, plan=plan(), loader=loader, noise=noise)
        for batch in loader:
            optimizer.backward(model(batch))
            optimizer.step()

    filtered = one_run(training(plan(renyi_order=8.0)), Regression(), data)
    unbounded = one_run(debugged, Regression(), data)

    assert filtered.ok
    assert filtered.epsilon_proven == plan(renyi_order=8.0).guarantee().epsilon
    assert unbounded.ok
    assert unbounded.epsilon_proven == math.inf


@pytest.mark.parametrize(
    "sampling",
    [
        dp.DisjointBatches(steps_per_pass=2, assigned_by="position"),
        dp.TruncatedPoissonSampling(
            sampling_probability=0.5, max_batch_size=200, dataset_size=300
        ),
    ],
)
def test_a_claim_for_a_public_number_of_records_is_not_attacked_so(data, sampling):
    """This audit draws who is in the data; replay keeps all in their places."""

    def train(model, dataset):
        training(plan(sampling=sampling, neighboring_relation="zero_out"))(
            model, dataset.dataset
        )

    with pytest.raises(dp.UnsupportedOperationError, match=r"dp\.audit\.replay"):
        one_run(train, Regression(), data)


# The bound by a trade-off


def by_linear_program(pairs, num_coins, num_guesses, num_right):
    """Return the largest probability that the inequalities permit, by a solver."""
    m, r, v = num_coins, num_guesses, num_right
    rows, limits = [], []
    k = np.arange(r + 1)
    for j in range(v):
        right = np.where(k > j, k, 0) / m
        wrong = np.where(k >= j, r - k, 0) / m
        for epsilon, delta in pairs:
            rows += [right - math.exp(epsilon) * wrong, right]
            limits += [delta, 1 - math.exp(-epsilon) * (1 - delta)]
            rows[-1] = right - math.exp(-epsilon) * wrong
    found = linprog(
        -(k >= v).astype(float),
        A_ub=np.array(rows),
        b_ub=limits,
        A_eq=np.ones((1, r + 1)),
        b_eq=[1.0],
        method="highs",
    )
    return -found.fun


@pytest.mark.parametrize(
    "pairs", [((0.3, 0.0),), ((0.5, 1e-3),), ((0.2, 0.05), (1.0, 1e-4))]
)
@pytest.mark.parametrize(
    ("m", "r", "v"), [(20, 10, 9), (12, 12, 11), (50, 8, 8), (30, 20, 3)]
)
def test_the_bound_is_the_largest_that_the_inequalities_permit(pairs, m, r, v):
    """By a linear program over all distributions of the number of right guesses."""
    numbers = {"num_coins": m, "num_guesses": r, "num_right": v}

    ours = largest_permitted(ByPairs(pairs), **numbers)

    assert ours == pytest.approx(by_linear_program(pairs, m, r, v), rel=1e-6)


@pytest.mark.statistical
def test_no_attack_on_gaussians_exceeds_the_bound():
    """Independent records of mu 1, the 60 likeliest of 200 guessed, 20 000 games.

    A frequency is above its bound by six standard deviations with probability 1e-9.
    """
    rng = np.random.default_rng(3)
    included = rng.random((20_000, 200)) < 0.5
    scores = rng.normal(size=included.shape) + included
    order = np.argsort(scores, axis=1)
    taken = np.take_along_axis(included, order, axis=1)
    right = taken[:, -30:].sum(1) + (~taken[:, :30]).sum(1)
    for v in (50, 53, 56, 58):
        bound = largest_permitted(
            Gaussian(1.0), num_coins=200, num_guesses=60, num_right=v
        )
        frequency = (right >= v).mean()
        assert frequency <= bound + 6 * math.sqrt(bound / 20_000)


def test_perfect_guesses_of_gaussians_refute_more_than_of_one_pair():
    """Of 1000 coins the 100 surest are all right: what is refuted grows with them."""
    guesses = _Guesses(1000, ((100, 100),))

    by_pair = guesses.largest_refuted(1e-5, 0.05)
    gaussian = guesses.largest_refuted_gaussian(1e-5, 0.05)

    assert 2.5 < by_pair < gaussian < 9
    assert permits(Gaussian(20.0), 0.05, num_coins=100, num_guesses=9, num_right=9)


def test_an_infinite_epsilon_permits_everything():
    """As that of a run with a debugging seed."""
    numbers = {"num_coins": 10, "num_guesses": 10, "num_right": 10}
    assert largest_permitted(ByPairs(((math.inf, 1e-5),)), **numbers) == 1.0


def test_an_event_and_its_complement_are_bounded():
    """Of the trade-off of one pair: below its middle by the event, above by the other."""
    claim = ByPairs(((1.0, 0.01),))

    assert claim.inverse(0.2) == pytest.approx(0.19 / math.e)
    assert claim.inverse(0.9) == pytest.approx(0.99 - 0.1 * math.e)
    assert claim.inverse(0.005) == 0.0


# Scores that are normal, of 10 000 in and 10 000 out, moved apart by 1, 2 and 4: the best
# threshold's guesses, right guesses, and how many thresholds share the error of 5 %.
PUBLISHED = [
    (3376, 2807, 386, 1.13346),
    (4666, 4499, 374, 2.311945),
    (8233, 8223, 140, 4.395568),
]
PUBLISHED_OF_GAUSSIANS = [
    (406, 379, 386, 2.164749),
    (938, 934, 374, 4.7218075),
    (5436, 5436, 140, 9.133752),
]


@pytest.mark.parametrize(("r", "v", "thresholds", "published"), PUBLISHED)
def test_the_bound_of_one_pair_is_that_of_another_library(r, v, thresholds, published):
    """Tests of jax_privacy, ``epsilon_one_run`` at delta 1e-6."""
    guesses = _Guesses(20_000, ())

    surprise = guesses._by_one_pair(r, v, published, 1e-6)

    assert surprise == pytest.approx(0.05 / thresholds, rel=1e-4)


@pytest.mark.parametrize(("r", "v", "thresholds", "published"), PUBLISHED_OF_GAUSSIANS)
def test_the_bound_of_gaussians_is_that_of_another_library(r, v, thresholds, published):
    """Tests of jax_privacy, ``epsilon_one_run_fdp`` at delta 1e-6."""
    numbers = {"num_coins": 20_000, "num_guesses": r, "num_right": v}
    for off, is_permitted in ((-1e-4, False), (1e-4, True)):
        sigma = dp_accounting.get_sigma_gaussian(published * (1 + off), 1e-6)

        claim = Gaussian(1 / sigma)

        assert permits(claim, 0.05 / thresholds, **numbers) is is_permitted


def test_right_guesses_may_come_all_at_once():
    """A mechanism that tells everything with probability delta keeps its claim.

    Had its canaries been independent, as where guesses are compared with order
    statistics of independent scores, 50 right guesses would have the probability 1e-15.
    """
    bound = largest_permitted(
        ByPairs(((0.0, 0.01),)), num_coins=50, num_guesses=50, num_right=50
    )

    assert bound >= 0.01
    assert ((1 + 0.01) / 2) ** 50 < 1e-14
