"""That the draws are those of Poisson sampling, and of no other scheme.

Every test rejects correct draws with probability 1e-9 at most; its twins show which
other schemes it rejects. The coins are the OS's, so there is no seed to fix a draw.
"""

import math

import numpy as np
import pytest
from scipy import stats

from dp.sampling import PoissonLoader, poisson_sample


pytestmark = pytest.mark.statistical

FALSE_ALARM = 1e-9
LIMIT = stats.norm.isf(FALSE_ALARM / 20)  # A tenth, two-sided: sums are near normal.
NUM_EXAMPLES, NUM_STEPS, Q = 1000, 1000, 0.1


def drawn(sample):
    """Which example was in which batch: a matrix of booleans, batch by example."""
    taken = np.zeros((NUM_STEPS, NUM_EXAMPLES), dtype=bool)
    for batch in taken:
        batch[sample()] = True
    return taken


def poisson(q=Q):
    return drawn(lambda: poisson_sample(NUM_EXAMPLES, sampling_probability=q))


def shuffled():
    """Every epoch deals all examples out in batches of one size."""
    rng = np.random.default_rng(0)
    size = int(Q * NUM_EXAMPLES)
    epochs = [
        rng.permutation(NUM_EXAMPLES).reshape(-1, size)
        for _ in range(NUM_STEPS * size // NUM_EXAMPLES)
    ]
    batches = iter(np.concatenate(epochs))
    return drawn(lambda: next(batches))


def fixed_size():
    """Each batch is a fresh sample of one size, without replacement."""
    rng = np.random.default_rng(0)
    return drawn(lambda: rng.choice(NUM_EXAMPLES, int(Q * NUM_EXAMPLES), replace=False))


def in_pairs():
    """Neighbouring examples are always drawn together."""
    rng = np.random.default_rng(0)
    return drawn(
        lambda: np.flatnonzero(np.repeat(rng.random(NUM_EXAMPLES // 2) < Q, 2))
    )


def with_a_favourite():
    """One example is in nearly four times as many batches as the others."""
    taken = poisson()
    taken[:, 17] |= np.random.default_rng(0).random(NUM_STEPS) < 0.3
    return taken


def repeated():
    """Every draw is used for two steps, as a resumed stream would."""
    taken = poisson()
    taken[1::2] = taken[::2]
    return taken


def rejects_rate(taken):
    """Exact test of the number of inclusions: sees 2.5 % of q with power 0.999."""
    return stats.binomtest(int(taken.sum()), taken.size, Q).pvalue < FALSE_ALARM


def rejects_size_variance(taken):
    """Chi-squared test of the batch sizes' variance: sees 35 %, and of course 0."""
    sizes = taken.sum(axis=1)
    statistic = ((sizes - NUM_EXAMPLES * Q) ** 2).sum() / (NUM_EXAMPLES * Q * (1 - Q))
    chi2 = stats.chi2(NUM_STEPS)
    return 2 * min(chi2.cdf(statistic), chi2.sf(statistic)) < FALSE_ALARM / 10


def rejects_an_index(taken):
    """Exact test of every example's inclusions: sees one example at 2.2 q."""
    counts = taken.sum(axis=0)
    binomial = stats.binom(NUM_STEPS, Q)
    p = 2 * np.minimum(binomial.cdf(counts), binomial.sf(counts - 1)).min()
    return p < FALSE_ALARM / NUM_EXAMPLES


def rejects_joint_inclusion(first, second):
    """Normal test of how often two coins both win."""
    together = int((first & second).sum())
    num_rows, num_pairs = first.shape
    mean = first.size * Q**2
    # A coin takes part in up to two pairs, of which the other coins differ.
    variance = first.size * (Q**2 - Q**4) + 2 * first.size * (Q**3 - Q**4)
    assert num_rows * num_pairs == first.size
    return abs(together - mean) > LIMIT * math.sqrt(variance)


def rejects_lag_one(taken):
    """Joint inclusion in two batches running: sees 9 % of q**2 with power 0.999."""
    return rejects_joint_inclusion(taken[:-1], taken[1:])


def rejects_neighbours(taken):
    """Joint inclusion of two neighbours in the dataset: same power."""
    return rejects_joint_inclusion(taken[:, :-1], taken[:, 1:])


TESTS = (
    rejects_rate,
    rejects_size_variance,
    rejects_an_index,
    rejects_lag_one,
    rejects_neighbours,
)


def loaded():
    """The draws as they come out of a loader."""
    loader = PoissonLoader(
        range(NUM_EXAMPLES), sampling_probability=Q, steps=NUM_STEPS, collate_fn=list
    )
    batches = iter(loader)
    return drawn(lambda: next(batches))


@pytest.mark.parametrize("scheme", [poisson, loaded])
def test_the_draws_pass_every_test(scheme):
    """Rate, sizes, single examples, successive batches and neighbours are as stated."""
    taken = scheme()

    assert not any(rejects(taken) for rejects in TESTS)


@pytest.mark.parametrize(
    ("scheme", "rejected_by"),
    [
        (lambda: poisson(1.1 * Q), {rejects_rate, rejects_size_variance}),
        (lambda: poisson(0.9 * Q), {rejects_rate}),
        (shuffled, {rejects_size_variance, rejects_lag_one}),
        (fixed_size, {rejects_size_variance}),
        (in_pairs, {rejects_size_variance, rejects_neighbours}),
        (with_a_favourite, {rejects_an_index}),
        (repeated, {rejects_lag_one}),
    ],
    ids=["more", "fewer", "shuffled", "fixed", "pairs", "favourite", "repeated"],
)
def test_other_schemes_are_rejected(scheme, rejected_by):
    """Twins: each wrong scheme fails the very tests that the right one passes."""
    taken = scheme()

    assert all(rejects(taken) for rejects in rejected_by)
