"""The noise of many ranks: once, of the full scale, the same everywhere."""

import itertools

import numpy as np
import pytest
from scipy import stats


NUM_ELEMENTS = 20_000


def p_of_unit_variance(noise):
    """A two-sided chi-squared test of the sum of squares."""
    total = float((noise.astype(np.float64) ** 2).sum())
    tail = stats.chi2(len(noise))
    return 2 * min(tail.cdf(total), tail.sf(total))


def p_of_correlation(left, right):
    """A Pearson test; for ten thousand pairs and more, correlations are normal."""
    found = np.corrcoef(left.astype(np.float64), right.astype(np.float64))[0, 1]
    return 2 * stats.norm.sf(abs(found) * len(left) ** 0.5)


def p_of_shares(noise, size):
    """Whether two ranks' shares of the elements correlate, by the pair that does most."""
    shares = noise[: len(noise) // size * size].reshape(size, -1)
    pairs = list(itertools.combinations(shares, 2))
    return len(pairs) * min(p_of_correlation(*pair) for pair in pairs)


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["plain", "fsdp"])
def test_the_reduced_noise_has_the_planned_variance_and_is_the_same_on_all_ranks(
    ranks, kind, decisions
):
    """20 000 elements: false alarms 5e-9, by construction.

    A variance that is off by 12 % is missed with probability 1e-7.
    """
    results = ranks("ranks_release:noise", kind=kind, num_elements=NUM_ELEMENTS)

    for step in zip(*results, strict=True):
        assert all(np.array_equal(step[0], other) for other in step)
        assert not decisions.refutes("variance", p_of_unit_variance(step[0]))
        assert not decisions.refutes("shares", p_of_shares(step[0], ranks.size))
    assert not decisions.refutes("steps", p_of_correlation(*results[0]))


@pytest.mark.statistical
@pytest.mark.parametrize(
    "broken",
    [
        "noise / W",
        "noise / sqrt W",
        "noise * sqrt W",
        "noise on every rank",
        "noise on no rank",
    ],
)
def test_a_wrong_scale_of_the_noise_is_noticed(ranks, broken, decisions):
    """The same test as above fails on builds that divide, multiply or omit.

    The smallest defect is a variance of a half: missed with probability below 1e-99.
    """
    results = ranks("ranks_release:noise", broken=broken, num_elements=NUM_ELEMENTS)

    assert decisions.refutes("variance", p_of_unit_variance(results[0][0]))


@pytest.mark.statistical
def test_equal_noise_on_all_ranks_is_noticed(ranks, decisions):
    """Were ranks keyed alike, the shares of the elements would have equal noise.

    Their correlation is 1, and never missed.
    """
    results = ranks(
        "ranks_release:noise", broken="equal noise streams", num_elements=NUM_ELEMENTS
    )

    assert decisions.refutes("shares", p_of_shares(results[0][0], ranks.size))


def test_a_step_takes_three_exchanges_of_known_size(ranks):
    """A few integers, the rows of the sums, and the shares: as much as an all-reduce."""
    counted = ranks("ranks_release:calls", num_parts=None)[0]

    per_step = [counted[i : i + 3] for i in range(0, len(counted), 3)]
    assert [name for name, _ in per_step[1]] == [
        "all_gather_single",
        "all_to_all_single",
        "all_gather_single",
    ]
    facts, rows, share = (size for _, size in per_step[1])
    assert facts == 64
    assert rows == share * ranks.size


def test_micro_batches_are_not_exchanged(ranks):
    """Any number of backward calls, also different ones, cost one exchange a step."""
    parts = [3, 1, 5, 2][: ranks.size]

    several = ranks("ranks_release:calls", num_parts=parts)

    assert several[0] == ranks("ranks_release:calls")[0]


def test_ddp_reduces_nothing_of_its_own(ranks):
    """Its reducer never sees a gradient, so nothing is sent twice, and it never waits."""
    results = ranks("ranks_release:reductions_by_ddp")

    assert results == [(0, 20)] * ranks.size


@pytest.mark.parametrize("bucket_bytes", [4, 40, 1 << 20])
@pytest.mark.parametrize("sizes", [[], [1], [3, 0, 7, 1, 12, 5]])
def test_every_element_is_noised_once_whatever_the_buckets_are(
    ranks, sizes, bucket_bytes
):
    """Sums of ranks 0, 1, ... are 1, 10, ...; what stands for noise adds 1."""
    results = ranks("ranks_release:exchange", sizes=sizes, bucket_bytes=bucket_bytes)

    expected = float("1" * ranks.size) + 1
    assert results == [[[expected] * n for n in sizes]] * ranks.size


def test_the_way_for_devices_without_gloo_adds_up_alike(ranks):
    """The backend's reduce-scatter, which gloo has too, if at twice the bytes."""
    arguments = {"sizes": [3, 0, 7, 1], "bucket_bytes": 40}

    scattered = ranks("ranks_release:exchange", trades_rows=False, **arguments)

    assert scattered == ranks("ranks_release:exchange", **arguments)
