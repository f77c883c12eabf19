"""How clipping bounds what one example adds.

Shapes: ``B`` examples, ``G`` groups.
"""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from dp.clipping import FlatClipping


bounds = st.floats(1e-18, 1e18)
dtypes = st.sampled_from([torch.float32, torch.float64])
norms = st.lists(
    st.one_of(
        st.floats(0, 2.0**127, width=32),
        st.sampled_from([0.0, 1e-45, 1.0, math.inf, math.nan]),
    ),
    min_size=1,
)


def factors(numbers, bound, dtype):
    norms_GB = torch.tensor([numbers], dtype=dtype)
    return norms_GB[0], FlatClipping(max_grad_norm=bound).factors(norms_GB)[0]


@given(norms, bounds, dtypes)
def test_clipped_norms_never_exceed_the_bound(numbers, bound, dtype):
    """In exact arithmetic, with room for the rounding of norms and products."""
    norms_B, factors_B = factors(numbers, bound, dtype)

    finite_B = norms_B.isfinite()
    eps = torch.finfo(dtype).eps
    for norm, factor in zip(norms_B[finite_B], factors_B[finite_B], strict=True):
        assert float(norm) * float(factor) * (1 + 8 * eps) <= bound


@given(norms, bounds, dtypes)
def test_factors_only_shrink(numbers, bound, dtype):
    """A factor is in [0, 1], and 1 for whatever is well below the bound."""
    norms_B, factors_B = factors(numbers, bound, dtype)

    assert ((factors_B >= 0) & (factors_B <= 1)).all()
    assert (factors_B[norms_B < 0.99 * bound] == 1).all()


@given(norms, bounds, dtypes)
def test_what_is_not_finite_counts_for_nothing(numbers, bound, dtype):
    """NaN and infinity get exactly 0, which add_weighted_sum leaves out."""
    norms_B, factors_B = factors(numbers, bound, dtype)

    assert (factors_B[~norms_B.isfinite()] == 0).all()


def test_all_parameters_are_clipped_together():
    """Flat clipping has one group, whatever the model is."""
    clipping = FlatClipping(max_grad_norm=1.0)

    assert clipping.group_of([torch.zeros(1), torch.zeros(2)]) == [0, 0]
    assert clipping.group_of([]) == []


@pytest.mark.parametrize(
    ("relation", "factor"),
    [("add_or_remove_one", 1), ("zero_out", 1), ("replace_one", 2)],
)
def test_sensitivity_follows_the_relation(relation, factor):
    """Replacing an example moves the sum by the old and the new one's part."""
    assert FlatClipping(max_grad_norm=1.5).sensitivity(relation) == 1.5 * factor


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_is_none_is_refused(bad):
    """The message names the argument and its value."""
    with pytest.raises(ValueError, match=f"max_grad_norm must be .* got {bad!r}"):
        FlatClipping(max_grad_norm=bad)


@pytest.mark.parametrize("bad", [1e-19, 1e19])
def test_a_bound_that_norms_cannot_be_compared_with_is_refused(bad):
    """Squares of such norms leave float32, and a gradient would look like zero."""
    with pytest.raises(ValueError, match=r"max_grad_norm must be in \[1e-18, 1e\+18\]"):
        FlatClipping(max_grad_norm=bad)
