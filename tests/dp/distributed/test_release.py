"""The noise of many ranks: once, of the full scale, the same everywhere."""

import numpy as np
import pytest
from scipy import stats


NUM_ELEMENTS = 20_000
FALSE_ALARM = 1e-9


def has_unit_variance(noise):
    """A two-sided chi-squared test of the sum of squares."""
    total = float((noise.astype(np.float64) ** 2).sum())
    tail = stats.chi2(len(noise))
    return 2 * min(tail.cdf(total), tail.sf(total)) > FALSE_ALARM


def shares_are_independent(noise, size):
    """No two ranks' shares of the elements correlate: a Pearson test."""
    shares = noise[: len(noise) // size * size].reshape(size, -1).astype(np.float64)
    found = np.corrcoef(shares)[np.triu_indices(size, 1)]
    return np.abs(found).max() * shares.shape[1] ** 0.5 < stats.norm.isf(FALSE_ALARM)


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["plain", "fsdp"])
def test_the_reduced_noise_has_the_planned_variance_and_is_the_same_on_all_ranks(
    ranks, kind
):
    """20 000 elements: a variance 7 % off fails; false alarms below 1e-9 a test."""
    results = ranks("ranks_release:noise", kind=kind, num_elements=NUM_ELEMENTS)

    for step in zip(*results, strict=True):
        assert all(np.array_equal(step[0], other) for other in step)
        assert has_unit_variance(step[0])
        assert shares_are_independent(step[0], ranks.size)
    first, second = results[0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 7 / NUM_ELEMENTS**0.5


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
def test_a_wrong_scale_of_the_noise_is_noticed(ranks, broken):
    """The same test as above fails on builds that divide, multiply or omit."""
    results = ranks("ranks_release:noise", broken=broken, num_elements=NUM_ELEMENTS)

    assert not has_unit_variance(results[0][0])


@pytest.mark.statistical
def test_equal_noise_on_all_ranks_is_noticed(ranks):
    """Were ranks keyed alike, the shares of the elements would have equal noise."""
    results = ranks(
        "ranks_release:noise", broken="equal noise streams", num_elements=NUM_ELEMENTS
    )

    assert not shares_are_independent(results[0][0], ranks.size)


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
