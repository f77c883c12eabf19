"""How clipping bounds what one example adds.

Shapes: ``B`` examples, ``G`` groups.
"""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from dp.clipping import (
    AutomaticClipping,
    FlatClipping,
    PerGroupClipping,
    PerLayerClipping,
)


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


@pytest.mark.parametrize("bound", [1e-18, 1e-16, 1e-9])
def test_factors_that_float32_cannot_hold_count_for_nothing(bound):
    """Below the normal numbers a factor rounds up by as much as a quarter: beyond C."""
    num_steps = torch.arange(1.6, 40.0)  # Nearer to the next that float32 can hold.
    norms_B = (bound / (num_steps.double() * 2.0**-149)).float()
    norms_B = norms_B[norms_B.isfinite()]
    factors_B = FlatClipping(max_grad_norm=bound).factors(norms_B[None])[0]
    by_hand_B = (bound / norms_B.double()).float()

    assert (factors_B.double() * norms_B.double() <= bound).all()
    assert len(norms_B) > 5
    assert (by_hand_B.double() * norms_B.double() > bound).any()  # The twin.


@given(norms, bounds, dtypes)
def test_factors_only_shrink(numbers, bound, dtype):
    """A factor is in [0, 1], and 1 for whatever is well below the bound."""
    norms_B, factors_B = factors(numbers, bound, dtype)

    assert ((factors_B >= 0) & (factors_B <= 1)).all()
    assert (factors_B[norms_B < 0.99 * bound] == 1).all()


@given(norms, bounds, dtypes)
def test_a_non_finite_norm_has_factor_zero(numbers, bound, dtype):
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
def test_an_invalid_bound_is_refused(bad):
    """The message names the argument and its value."""
    with pytest.raises(ValueError, match=f"max_grad_norm must be .* got {bad!r}"):
        FlatClipping(max_grad_norm=bad)


@pytest.mark.parametrize("bad", [1e-19, 1e19])
def test_a_bound_that_norms_cannot_be_compared_with_is_refused(bad):
    """Squares of such norms leave float32, and a gradient would look like zero."""
    with pytest.raises(ValueError, match=r"max_grad_norm must be in \[1e-18, 1e\+18\]"):
        FlatClipping(max_grad_norm=bad)


def rules(bound, num_groups):
    sizes, norms = (1,) * num_groups, (bound / math.sqrt(num_groups),) * num_groups
    return {
        "flat": FlatClipping(max_grad_norm=bound),
        "by layer": PerLayerClipping(max_grad_norm=bound),
        "by group": PerGroupClipping(group_sizes=sizes, max_grad_norms=norms),
        "automatic": AutomaticClipping(max_grad_norm=bound),
    }


@given(
    st.lists(norms, min_size=1, max_size=4),
    st.floats(1e-12, 1e12),
    dtypes,
    st.sampled_from(["flat", "by layer", "by group", "automatic"]),
)
def test_no_contribution_is_longer_than_the_sensitivity(groups, bound, dtype, kind):
    """Under every rule, over all groups together, in exact arithmetic."""
    num_examples = min(map(len, groups))
    norms_GB = torch.tensor([group[:num_examples] for group in groups], dtype=dtype)
    rule = rules(bound, len(groups))[kind]
    parameters = [torch.zeros(1)] * len(groups)
    group_of = rule.group_of(parameters)
    if len(set(group_of)) == 1:
        norms_GB = norms_GB[:1]
    factors_GB = rule.factors(norms_GB)

    sensitivity = rule.sensitivity("add_or_remove_one")
    for norms_G, factors_G in zip(norms_GB.T, factors_GB.T, strict=True):
        if not norms_G.isfinite().all():
            assert not factors_G.any()
            continue
        products = [
            float(n) * float(f) for n, f in zip(norms_G, factors_G, strict=True)
        ]
        assert math.hypot(*products) * (1 + 8 * torch.finfo(dtype).eps) <= sensitivity


@pytest.mark.parametrize("kind", ["flat", "by layer", "by group", "automatic"])
def test_long_gradients_use_the_sensitivity_and_no_more(kind):
    """Every group far beyond its bound: together they are as long as is declared."""
    rule = rules(2.0, 4)[kind]
    num_groups = len(set(rule.group_of([torch.zeros(1)] * 4)))
    norms_G1 = torch.full((num_groups, 1), 1e6, dtype=torch.float64)

    products = (norms_G1 * rule.factors(norms_G1)).flatten().tolist()

    assert 1.999 <= math.hypot(*products) <= rule.sensitivity("add_or_remove_one")


@pytest.mark.parametrize("kind", ["by layer", "by group", "automatic"])
def test_replacing_an_example_counts_twice(kind):
    """As with flat clipping."""
    rule = rules(1.5, 2)[kind]

    assert rule.sensitivity("replace_one") == pytest.approx(3.0)


def test_groups_are_consecutive_parameters():
    """In the optimizer's order, and all of them."""
    rule = PerGroupClipping(group_sizes=(2, 1), max_grad_norms=(1.0, 2.0))

    assert rule.group_of([torch.zeros(1)] * 3) == [0, 0, 1]
    with pytest.raises(ValueError, match=r"must add up to .* got 2 of them"):
        rule.group_of([torch.zeros(1)] * 2)


def test_automatic_clipping_prefers_no_example():
    """Whatever is well above the stability constant gets the same length."""
    norms_GB = torch.tensor([[10.0, 1e3, 1e6]])
    factors_GB = AutomaticClipping(max_grad_norm=2.0).factors(norms_GB)

    torch.testing.assert_close(
        norms_GB * factors_GB, torch.full((1, 3), 2.0), rtol=2e-3, atol=0
    )


@pytest.mark.parametrize(
    ("sizes", "bounds"), [((1,), (1.0, 2.0)), ((), ()), ((0,), (1.0,)), ((1,), (0.0,))]
)
def test_groups_that_are_none_are_refused(sizes, bounds):
    """The message names what is wrong."""
    with pytest.raises(ValueError, match=r"group_size|max_grad_norm"):
        PerGroupClipping(group_sizes=sizes, max_grad_norms=bounds)


def test_an_invalid_stability_is_refused():
    """Without it a zero gradient would be divided by zero."""
    with pytest.raises(ValueError, match=r"stability must be > 0 and finite, got 0\.0"):
        AutomaticClipping(max_grad_norm=1.0, stability=0.0)
