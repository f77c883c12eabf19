"""That private statistics of columns have the sensitivity and the noise they are charged for."""

import math

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from hypothesis import given, strategies as st

from dp.certificate import compose, verify
from dp.exceptions import PrivacyError
from dp.noise import GaussianNoise
from dp.noise._gaussian import witnessed
from dp.tables import Statistic, Statistics, Values
from dp.tables._histogram import histogram
from dp.tables._moments import moments


ABOUT = {
    "target_delta": 1e-5,
    "neighboring_relation": "zero_out",
    "unit_of_privacy": "one row",
}
LARGEST = np.finfo(np.float64).max

anything = st.one_of(
    st.floats(allow_infinity=False),
    st.sampled_from([0.0, -0.0, LARGEST, -LARGEST, 5e-324, 2.0**40, -(2.0**-20)]),
)
texts = st.one_of(st.just(-1), st.integers(0, (1 << 14) - 1))


def values(numbers, buckets=None):
    numbers = np.array(numbers, dtype=np.float64)
    if buckets is None:
        buckets = np.full(len(numbers), -1)
    return Values(numbers, np.array(buckets, dtype=np.int64))


def columns(rows):
    """Return columns of rows of (number, bucket); a text has no number."""
    return [
        values(
            [math.nan if bucket >= 0 else number for number, bucket in column],
            [bucket for _, bucket in column],
        )
        for column in zip(*rows, strict=True)
    ]


cells = st.tuples(anything, texts)
tables = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(cells, min_size=width, max_size=width), min_size=2, max_size=6
    )
)


@pytest.mark.slow
@given(rows=tables)
def test_a_row_is_counted_once_a_column(rows):
    """Whatever it holds, a row's removal moves the histogram by exactly the weights' norm."""
    weights = range(1, len(rows[0]) + 1)
    with_row, without = (histogram(columns(of), weights) for of in (rows, rows[1:]))
    distance = torch.linalg.vector_norm(with_row.sums - without.sums)

    assert with_row.sensitivity == without.sensitivity
    assert with_row.sensitivity == math.sqrt(sum(w * w for w in weights))
    assert distance == pytest.approx(with_row.sensitivity, rel=1e-12)


@pytest.mark.slow
@given(
    rows=tables,
    centre=st.floats(-1e12, 1e12),
    scale=st.floats(1e-9, 1e12),
)
def test_no_row_moves_the_moments_further_than_stated(rows, centre, scale):
    """Whatever it holds, and wherever the column was said to lie."""
    width = len(rows[0])

    def sums(of):
        numbers = [column.numbers for column in columns(of)]
        return moments(numbers, [centre] * width, [scale] * width)

    with_row, without = sums(rows), sums(rows[1:])
    distance = torch.linalg.vector_norm(with_row.sums - without.sums)

    assert with_row.sensitivity == math.sqrt(1.25 * width)
    assert distance <= with_row.sensitivity * (1 + 1e-15)


@given(u=st.floats(-1, 1))
def test_rounding_does_not_lengthen_a_row(u):
    """Where the bound is nearly met, too: next to 1, where rounding could exceed it."""
    for number in (
        u,
        math.nextafter(1.0, 0.0),
        1 - 2.0**-20,
        1 - 2.0**-21,
        1 - 2.0**-19,
    ):
        (row,) = moments([np.array([3 * number])], [0.0], [1.0]).sums

        assert row.square().sum() <= 1.25


def test_the_stated_sensitivities_are_attained():
    """A smaller one would be too small: some row moves the sums by just as much."""
    far = moments([np.array([1e6]), np.array([-1e6])], [0.0, 0.0], [1.0, 1.0])
    missing = moments([np.array([math.nan])], [0.0], [1.0])

    assert torch.linalg.vector_norm(far.sums) == far.sensitivity
    assert missing.sums.tolist() == [[0.0, -0.5]]


def test_sums_do_not_depend_on_the_order_of_rows():
    """They are exact, so that rounding hides nothing and shows nothing."""
    rng = np.random.default_rng(0)
    x = rng.standard_cauchy(100_001)
    sums = moments([x], [0.1], [0.7]).sums
    shuffled = moments([rng.permutation(x)], [0.1], [0.7]).sums
    by_hand = math.fsum(np.round(np.clip((x - 0.1) / 2.1, -1, 1) * 2**20) / 2**20)

    assert torch.equal(sums, shuffled)
    assert sums[0, 0] == by_hand


@pytest.mark.statistical
def test_noise_has_the_charged_scale():
    """150 000 cells: an error of 2 % in the scale is 11 standard errors away."""
    statistic = histogram([values([1.0, 2.0])] * 9, [1] * 9)
    exact = statistic.sums.clone()
    statistics = Statistics(**ABOUT)
    noisy = statistics.release(statistic, noise_multiplier=2.0)
    stddev = float((noisy - exact).square().mean().sqrt())
    (release,) = statistics.releases()

    assert abs(stddev / (2.0 * 3.0) - 1) < 0.01
    assert abs(stddev / (2.0 * 3.0 * 1.02) - 1) > 0.01
    assert (release.noise_multiplier, release.count) == (2.0, 1)
    assert release.sampling_probability == 1


def test_a_statistic_is_charged_before_noise_is_drawn():
    """A crash in between loses a release, never a charge."""
    statistics = Statistics(**ABOUT)

    def crash(_add, _sums):
        raise KeyboardInterrupt

    with witnessed(crash), pytest.raises(KeyboardInterrupt):
        statistics.release(histogram([values([1.0])], [1]), noise_multiplier=3.0)
    assert [r.noise_multiplier for r in statistics.releases()] == [3.0]


def test_noise_of_another_scale_than_was_charged_is_not_released():
    """The noise stage's word is held against the charge."""
    statistics = Statistics(**ABOUT, noise=GaussianNoise())

    with (
        witnessed(lambda add, _sums: add() / 2),
        pytest.raises(PrivacyError, match="was charged; nothing was released"),
    ):
        statistics.release(histogram([values([1.0])], [1]), noise_multiplier=3.0)


@pytest.mark.slow
def test_statistics_are_certified_with_what_they_are():
    """Composed with each other they verify, and cost what dp_accounting says."""
    statistics = Statistics(**ABOUT)
    for sigma in (4.0, 5.0):
        statistic = Statistic(
            name=f"a sum at {sigma}",
            sums=torch.zeros(3, dtype=torch.float64),
            sensitivity=2.0,
            reason="a row adds a vector of length 2",
        )
        statistics.release(statistic, noise_multiplier=sigma)
    certificate = compose(*statistics.certificates(private_data_touches=()))
    accountant = PLDAccountant()
    for sigma in (4.0, 5.0):
        accountant.compose(dp_event.GaussianDpEvent(sigma))

    assert verify(certificate).ok
    assert certificate.released == "a sum at 4.0; a sum at 5.0"
    assert certificate.epsilon == pytest.approx(accountant.get_epsilon(1e-5), 1e-3)
    assert "released              a sum at 5.0" in certificate.to_text()
    assert "a row adds a vector of length 2" in certificate.to_text()
    assert {charge.max_grad_norm for charge in certificate.charges} == {2.0}
