"""Owners as values: what meets, what is shared, what is regular after all.

Shapes: ``U`` units, ``N`` entries.
"""

import pytest
import torch
from hypothesis import given, strategies as st

from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.owner_moves import joined, reshaped
from dp.per_sample._isolation.owners import (
    EVERYBODYS,
    MIXED,
    NOBODY,
    NOBODYS,
    Owners,
    meet,
    regularized,
    scattered,
)


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "met"),
    [
        ([0, 0, 0], 0),
        ([0, 1], MIXED),
        ([NOBODY, 2], 2),
        ([NOBODY, NOBODY], NOBODY),
        ([MIXED, 2], MIXED),
        ([MIXED, NOBODY], MIXED),
        ([], NOBODY),
    ],
)
def test_what_meets_in_a_sum_has_one_owner_or_is_mixed(rows, met):
    """Nobody yields; mixed stays mixed."""
    assert meet(torch.tensor(rows, dtype=torch.long), 0).tolist() == [met]


OWNERS = st.lists(st.sampled_from([NOBODY, MIXED, 0, 1, 2]), min_size=4, max_size=4)


@given(OWNERS, OWNERS)
def test_two_consumers_join_element_by_element(one, other):
    """In any order, as if they were summed."""
    left, right = (Owners.irregular(torch.tensor(rows)) for rows in (one, other))
    found, back = (
        joined(a, b, rank=1, num_units=3, device=CPU).as_rows(1, 3).expand(4)
        for a, b in ((left, right), (right, left))
    )

    expected = meet(torch.tensor([one, other]), 0)[0]
    assert torch.equal(found, expected)
    assert torch.equal(back, expected)


def test_whole_tensors_join_without_being_written_out():
    """Nobody's yields, and everybody's stays so."""
    some = Owners.regular(0)
    options = {"rank": 2, "num_units": 3, "device": CPU}

    assert joined(some, NOBODYS, **options) is some
    assert joined(NOBODYS, some, **options) is some
    assert joined(some, EVERYBODYS, **options) is EVERYBODYS
    assert joined(some, Owners.regular(0), **options) is some
    assert joined(some, Owners.regular(1), **options).has_mixed()


@pytest.mark.slow
@given(
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.data(),
)
def test_regular_owners_are_recognised(num_units, outer, inner, axis, data):
    """Also where some of the rows are nobody's, which hold zeros."""
    owners = Owners.regular(axis, outer, inner)
    shape = [2, 2, 2]
    shape[axis] = outer * num_units * inner
    rows = owners.as_rows(3, num_units).expand(shape).clone()
    kept = data.draw(
        st.lists(st.booleans(), min_size=rows.numel(), max_size=rows.numel())
    )
    holes = rows.masked_fill(~torch.tensor(kept).view(shape), NOBODY)

    assert regularized(Owners.irregular(rows), shape, num_units) == owners
    found = regularized(Owners.irregular(holes), shape, num_units)
    spread = found.as_rows(3, num_units).expand(shape)
    assert ((spread == holes) | (holes == NOBODY)).all()


@given(st.lists(st.integers(-2, 2), min_size=6, max_size=6))
def test_what_is_called_regular_is(rows):
    """Irregular owners stay as they are."""
    owners = Owners.irregular(torch.tensor(rows)[:, None])
    found = regularized(owners, (6, 2), 3).as_rows(2, 3).expand(6, 2)
    written = owners.as_rows(2, 3).expand(6, 2)

    assert ((found == written) | (written == NOBODY)).all()


@given(st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_a_change_of_shape_moves_owners_as_elements(rows):
    """In the order of memory."""
    full = torch.tensor(rows)
    for old, new in (((12,), (3, 4)), ((3, 4), (4, 3)), ((2, 6), (2, 3, 2))):
        found = reshaped(full.view(old), old, new)

        assert torch.equal(found.expand(new), full.view(new))


@given(st.lists(st.integers(0, 3), min_size=5, max_size=5), OWNERS)
def test_rows_that_are_taken_twice_have_both_takers(index, more):
    """Nobody's where nothing was taken."""
    taken, owner = torch.tensor(index), torch.tensor([*more, 0])
    found = scattered(owner, [4], 0, taken)
    expected = [int(meet(owner[taken == i], 0)) for i in range(4)]

    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("owners", "layout"),
    [
        (Owners.regular(0), Layout(-2)),
        (Owners.regular(1, inner=3), Layout(-1)),
        (Owners.regular(0, outer=3), Layout(-2, time_major=True)),
        (Owners.regular(0, outer=3, inner=2), None),
        (NOBODYS, None),
        (Owners.irregular(torch.tensor([[0], [0], [1]])), None),
    ],
)
def test_rules_of_gradients_read_regular_owners_as_a_layout(owners, layout):
    """Positions on both sides of the units, and irregular owners, are grouped by row."""
    assert Layout.of(owners, 2) == layout
