"""Parts of gradients, beside the gradients that they stand for, in float64.

Shapes: ``B`` examples, ``T`` positions, ``I`` inputs, ``O`` outputs.
"""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from dp import _tuning
from dp.per_sample._parts.embedding import EmbeddingGrads
from dp.per_sample._parts.factored import (
    FactoredGrads,
    _Product,
    joint_gram_norms,
    share_grams,
)
from dp.per_sample._parts.row_groups import RowGroups


B, T, I, O = 3, 4, 7, 5  # noqa: E741 -- shape suffixes


pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("at_most", [1, 8 << 20])
@pytest.mark.parametrize(
    "owners", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], [2, 0, 2, 2, 2, 0]]
)
def test_a_head_and_lookups_of_one_table_have_an_inner_product(
    owners, at_most, monkeypatch
):
    """However many lookups an example has, none included, and in whatever order."""
    monkeypatch.setattr(_tuning, "CHUNK_BYTES", {"cpu": at_most})
    head = FactoredGrads(torch.randn(B, T, I), torch.randn(B, T, O))
    table = EmbeddingGrads(
        torch.tensor([6, 0, 2, 6, 6, 2]),
        torch.tensor(owners),
        torch.randn(len(owners), O),
        num_rows=I,
        num_samples=B,
    )

    every = slice(0, B)
    both = head.gradients(every) * table.gradients(every)
    torch.testing.assert_close(table.products_with(head), both.sum((1, 2)))


@pytest.mark.parametrize("wide_by_position", [True, False])
@pytest.mark.parametrize("thin_by_position", [True, False])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_sums_of_products_take_factors_in_any_order_of_rows(
    wide_by_position, thin_by_position, is_transposed
):
    """Both factors are read in the same order, whatever the order each one lies in."""

    def factor(width, *, by_position):
        if by_position:
            return torch.randn(T, B, width).transpose(0, 1)
        return torch.randn(B, T, width)

    part = FactoredGrads(
        factor(I, by_position=wide_by_position), factor(O, by_position=thin_by_position)
    )
    part = part.transposed() if is_transposed else part
    factors_B, total = torch.rand(B), torch.randn(part.gradients(slice(0, 1)).shape[1:])
    expected = total + torch.einsum("b,bio->io", factors_B, part.gradients(slice(0, B)))
    part.add_weighted_sum(factors_B, total, beta=1)

    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(("left", "right"), [(1e-25, 1e19), (1e19, 1e-25)])
def test_gram_matrices_lose_no_square_of_a_small_factor(left, right):
    """In float32 1e-25 squared is 0, and the gradient is 3e-6 an element."""
    part = FactoredGrads(
        torch.full((B, 3, 40), left, dtype=torch.float32),
        torch.full((B, 3, 40), right, dtype=torch.float32),
    )
    assert part.has_gram_norms

    norms_B = part.squared_norms().sqrt()

    torch.testing.assert_close(norms_B, torch.full([B], 3e-6 * 40), rtol=1e-5, atol=0)


IN_BLOCKS = pytest.mark.parametrize(
    ("positions", "at_most"), [(16, 16), (17, 8), (40, 8), (41, 17), (100, 32)]
)


@IN_BLOCKS
@pytest.mark.parametrize("between", [(), (2,)])
def test_entries_of_gram_matrices_are_left_out_once(
    between, positions, at_most, monkeypatch
):
    """Every pair of positions counts twice, and each one with itself once."""
    monkeypatch.setattr(_tuning, "ROWS_OF_GRAM", at_most)
    monkeypatch.setattr(_tuning, "FEWEST_GRAM_ENTRIES", 0)
    left, right = (torch.randn(B, *between, positions, 400) for _ in range(2))
    part = FactoredGrads(left, right)
    assert part.has_gram_norms
    expected_B = part.gradients(slice(None)).flatten(1).square().sum(1)

    torch.testing.assert_close(part.squared_norms(), expected_B)
    assert len(_Product(left).blocks) == positions // at_most


@IN_BLOCKS
def test_gram_matrices_in_blocks_under_estimate_nothing(
    positions, at_most, monkeypatch
):
    """Where gradients cancel but for less than their rounding."""
    monkeypatch.setattr(_tuning, "ROWS_OF_GRAM", at_most)
    monkeypatch.setattr(_tuning, "FEWEST_GRAM_ENTRIES", 0)
    x = torch.randn(B, positions // 2, 400, dtype=torch.float32)
    left = torch.cat([x, -x * (1 + 1e-4), x[:, : positions % 2]], 1)
    right = torch.randn(B, 1, 300, dtype=torch.float32).expand(-1, positions, -1)
    part = FactoredGrads(left, right)
    assert part.has_gram_norms
    doubled = FactoredGrads(left.double(), right.double())
    true_B = doubled.gradients(slice(None)).flatten(1).square().sum(1)

    for norms_B in (part.squared_norms(), *joint_gram_norms([part, part])):
        assert (norms_B.double() >= true_B * (1 - 1e-5)).all()


@pytest.mark.parametrize("size", [1.0, 1e-23, 1e23])
def test_gram_norms_of_several_layers_are_those_of_each(size):
    """Also where squares of one layer's factors leave the range of float32."""
    shared = torch.randn(B, 7, 400)
    factors = [(shared, 1.0), (shared, size), (torch.randn(B, 7, 400), 1.0)]
    parts = [
        FactoredGrads((left * by).float(), (torch.randn(B, 7, 300) / by).float())
        for left, by in factors
    ]
    share_grams(parts)
    (kind,) = {part.kind_of_grams for part in parts}
    assert kind is not None
    doubled = [FactoredGrads(p.left.double(), p.right.double()) for p in parts]
    expected_LB = torch.stack([part.squared_norms() for part in doubled])

    norms_LB = joint_gram_norms(parts)
    torch.testing.assert_close(norms_LB.double(), expected_LB, rtol=1e-4, atol=0)


def test_gram_norms_in_chunks_or_of_several_matrices_are_found_alone(monkeypatch):
    """They are no matrices of all examples, which others could be put beside."""
    factors = torch.randn(B, 7, 400), torch.randn(B, 7, 300)
    assert FactoredGrads(*factors).kind_of_grams is not None
    assert FactoredGrads(*(x[:, None] for x in factors)).kind_of_grams is None

    monkeypatch.setitem(_tuning.CHUNK_BYTES, "cpu", 1)
    assert FactoredGrads(*factors).kind_of_grams is None


def test_small_gram_matrices_are_computed_whole():
    """Where calls take longer than products."""
    T = 2 * _tuning.ROWS_OF_GRAM
    enough = _tuning.FEWEST_GRAM_ENTRIES // T**2
    for num_samples in (enough, enough - 1):
        product = _Product(torch.randn(num_samples, T, 1))

        assert len(product.blocks) == 1 + (num_samples == enough)


def rows_of(counts):
    """Rows of units in an order that is not theirs."""
    owner_R = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return owner_R[torch.randperm(len(owner_R))]


@given(st.lists(st.integers(0, 70), min_size=1, max_size=40))
def test_buckets_hold_every_row_of_a_unit_once(counts):
    """In their order, with zeros behind them, and with little padding in all."""
    owner_R = rows_of(counts)
    values_R = torch.arange(1.0, len(owner_R) + 1)
    values_R[:1] = math.inf
    buckets = RowGroups(owner_R, len(counts)).buckets
    found = {
        unit: values
        for bucket in buckets
        for unit, values in zip(
            bucket.units_u.tolist(), bucket.gather(values_R).tolist(), strict=True
        )
    }

    for unit, count in enumerate(counts):
        expected = values_R[owner_R == unit].tolist()
        expected += [0.0] * (len(found.get(unit, ())) - count)
        assert found.get(unit, []) == expected
    padded = sum(len(bucket.rows) for bucket in buckets)
    assert padded <= (2 + 1 / 16) * len(owner_R)


@pytest.mark.parametrize(
    ("counts", "shapes"),
    [
        ([1, 5, 6, 20], [(1, 1), (2, 6), (1, 20)]),
        ([1, 5, 6, *[20] * 20], [(3, 6), (20, 20)]),
        # Twice as many rows, though few pairs beside those of the longest unit.
        ([*[1] * 1000, 3, 1000], [(1000, 1), (1, 3), (1, 1000)]),
        # Few rows more, and many pairs: products of a unit's rows would take longer.
        ([*[1] * 4000, *[20] * 3, 80], [(4000, 1), (3, 20), (1, 80)]),
    ],
)
def test_few_short_units_join_longer_ones(counts, shapes):
    """Where that adds little to the rows, and to the pairs of a unit's rows."""
    buckets = RowGroups(rows_of(counts), len(counts)).buckets

    assert [(len(bucket.units_u), bucket.length) for bucket in buckets] == shapes
