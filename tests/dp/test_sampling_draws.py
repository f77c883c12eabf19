"""That drawing how many win, and then which, is flipping every coin.

The law of the number is compared with exact fractions, not sampled; which indices are
drawn is sampled where it cannot be enumerated.
"""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from dp._keystream import Keystream
from dp.sampling import poisson_sample
from dp.sampling._draws import _distinct_indices, _mode, _outwards, _uniform


UNIT = Fraction(1, 2**256)


def exact(n, k, q):
    q = Fraction(q)
    return math.comb(n, k) * q**k * (1 - q) ** (n - k)


@given(st.integers(1, 60), st.floats(1e-12, 1 / 16))
def test_the_number_of_winners_is_binomial(n, q):
    """Every outcome has its exact probability, up to the rounding that is stated."""
    mode, at_mode = _mode(n, q)
    masses = dict(_outwards(n, q, mode, at_mode))

    for k in range(n + 1):
        assert abs(masses.get(k, 0) * UNIT - exact(n, k, q)) <= (n + 2) * UNIT
    assert 0 <= 1 - sum(masses.values()) * UNIT <= Fraction(1, 2**180)


@pytest.mark.parametrize(
    ("n", "q"), [(10**9, 1e-8), (10**9, 1e-3), (10**12, 1e-9), (5000, 0.05)]
)
def test_the_number_of_winners_of_many_is_binomial(n, q):
    """For large numbers, too: nothing is lost where logarithms cancel."""
    mode, at_mode = _mode(n, q)
    masses = list(_outwards(n, q, mode, at_mode))

    assert 0 <= 1 - sum(mass for _, mass in masses) * UNIT < Fraction(1, 2**180)
    for k, mass in masses[:50]:
        assert mass / 2**256 == pytest.approx(stats.binom.pmf(k, n, q), rel=1e-6)


def test_no_coin_wins_where_the_probability_vanishes():
    """The smallest probabilities are numbers, too."""
    assert poisson_sample(1000, sampling_probability=1e-300) == []
    assert poisson_sample(0, sampling_probability=1e-3) == []


@pytest.mark.parametrize("face", [0, 2**256 - 1])
def test_the_first_and_the_last_number_choose_an_outcome(monkeypatch, face):
    """The mode is tried first; what rounding left over falls to it."""
    words = np.frombuffer(face.to_bytes(32), dtype=np.uint64)

    class Coins:
        def integers(self, count, dtype):
            return words[:count].astype(dtype) if count == 4 else np.arange(count)

    monkeypatch.setattr("dp.sampling._draws.Keystream", Coins)
    mode, _ = _mode(100, 0.03)

    assert len(poisson_sample(100, sampling_probability=0.03)) == mode == 3


@pytest.mark.statistical
def test_every_subset_is_as_likely(decisions):
    """All sets of 2 of 5, by their counts.

    False alarms: 1e-9. A set that is 1.3 times as likely is missed with probability
    3e-7.
    """
    trials = 20_000
    counts = Counter(tuple(_distinct_indices(2, 5)) for _ in range(trials))
    pairs = list(itertools.combinations(range(5), 2))
    expected = trials / len(pairs)
    score = sum((counts[pair] - expected) ** 2 / expected for pair in pairs)

    assert set(counts) == set(pairs)
    assert not decisions.refutes("counts", stats.chi2.sf(score, len(pairs) - 1))


@given(st.integers(1, 40), st.data())
def test_a_subset_has_its_size_and_order(n, data):
    """Ties are drawn anew, also where nearly all indices are wanted."""
    count = data.draw(st.integers(0, n))
    indices = _distinct_indices(count, n)

    assert len(indices) == count
    assert indices == sorted(set(indices))
    assert set(indices) <= set(range(n))


def test_words_of_the_last_partial_round_are_drawn_again():
    """2**64 is no multiple of 3: one word would make 0 likelier than 1 and 2."""

    class Coins:
        def __init__(self):
            self.draws = iter([[2**64 - 1, 5], [4]])

        def integers(self, _count, dtype):
            return np.array(next(self.draws), dtype=dtype)

    assert _uniform(2, 3, Coins()).tolist() == [1, 2]


def test_a_draw_from_a_billion_takes_as_many_words_as_its_batch(monkeypatch):
    """Ten of them ask for no coin of the others."""
    asked = []

    class Counted(Keystream):
        def integers(self, count, dtype):
            asked.append(count)
            return super().integers(count, dtype)

    monkeypatch.setattr("dp.sampling._draws.Keystream", Counted)
    batch = poisson_sample(10**9, sampling_probability=1e-8)

    assert sum(asked) < 4 + 2 * len(batch) + 1
