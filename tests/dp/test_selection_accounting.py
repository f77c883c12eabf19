"""What the best of a random number of runs costs."""

import math

import pytest
from dp_accounting.rdp.rdp_privacy_accountant import _compute_rdp_repeat_and_select
from hypothesis import given, settings, strategies as st

from dp import NegativeBinomialRuns, PoissonRuns, Release
from dp.accounting import Truncation, epsilon
from dp.accounting._renyi import epsilon_of_order
from dp.accounting._selection import (
    ORDERS,
    _rdp,
    check_selectable,
    selection_epsilon,
)


LAWS = {
    "Poisson": PoissonRuns,
    "geometric": lambda mean: NegativeBinomialRuns(mean=mean, shape=1.0),
    "logarithmic": NegativeBinomialRuns,
}
# Sigma, mean, law, epsilon at q = 0.01, 1000 steps, delta = 1e-5.
ANCHORS = (
    (1.0, 10.0, "Poisson", 3.5443),
    (1.0, 10.0, "geometric", 4.1029),
    (1.0, 10.0, "logarithmic", 3.5222),
    (1.0, 100.0, "Poisson", 11.676),
    (1.0, 100.0, "geometric", 5.2700),
    (1.0, 100.0, "logarithmic", 4.3011),
    (2.0, 10.0, "Poisson", 1.2750),
    (2.0, 10.0, "geometric", 1.4890),
    (2.0, 10.0, "logarithmic", 1.2310),
    (2.0, 100.0, "Poisson", 4.1072),
    (2.0, 100.0, "geometric", 1.8894),
    (2.0, 100.0, "logarithmic", 1.4805),
)


def steps(sigma, *, q=0.01, count=1000):
    return (Release(sampling_probability=q, noise_multiplier=sigma, count=count),)


def cost(releases, runs, **changes):
    about = {"delta": 1e-5, "relation": "add_or_remove_one", **changes}
    return selection_epsilon(releases, runs, **about)


@pytest.mark.parametrize(("sigma", "mean", "law", "expected"), ANCHORS)
def test_anchors_are_reproduced(sigma, mean, law, expected):
    """To a third of a percent: orders are other ones, and so are PLD's buckets."""
    found = cost([steps(sigma)], LAWS[law](mean=mean))

    assert found == pytest.approx(expected, rel=0.0035)


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("mean", [1.5, 20.0])
def test_divergences_are_those_of_dp_accounting(mean, shape):
    """Which has the truncated negative binomial law as an event of its own."""
    rdp = _rdp(steps(1.0), "add_or_remove_one")
    reference = _compute_rdp_repeat_and_select(list(ORDERS), rdp, mean, shape)
    expected = min(
        epsilon_of_order(float(one), order, 1e-5)
        for one, order in zip(reference, ORDERS, strict=True)
    )

    found = cost([steps(1.0)], NegativeBinomialRuns(mean=mean, shape=shape))

    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@given(
    st.floats(1.01, 300.0),
    st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 10.0)),
)
@settings(max_examples=50, deadline=None)
def test_a_negative_binomial_law_has_the_stated_mean(mean, shape):
    """And is a law: so its parameter is right."""
    law = list(NegativeBinomialRuns(mean=mean, shape=shape).probabilities())

    assert sum(p for _, p in law) == pytest.approx(1, rel=1e-9)
    assert sum(k * p for k, p in law) == pytest.approx(mean, rel=1e-6)
    assert law[0][0] == 1


@pytest.mark.parametrize("mean", [0.3, 1.0, 10.0, 500.0])
def test_a_poisson_law_has_the_stated_mean(mean):
    """It may be 0."""
    law = list(PoissonRuns(mean=mean).probabilities())

    assert law[0] == (0, math.exp(-mean))
    assert sum(p for _, p in law) == pytest.approx(1, rel=1e-9)
    assert sum(k * p for k, p in law) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_best_of_several_costs_more_than_one_run(law):
    """And with more runs more; a few runs as above cost less than all of them."""
    one = epsilon(
        steps(1.0), delta=1e-5, neighboring_relation="add_or_remove_one"
    ).epsilon
    all_of_them = epsilon(
        steps(1.0, count=10_000), delta=1e-5, neighboring_relation="add_or_remove_one"
    ).epsilon

    few, many = cost([steps(1.0)], law(mean=10.0)), cost([steps(1.0)], law(mean=50.0))

    assert one < few < many
    assert few < all_of_them


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_bound_is_the_worst_candidates(law):
    """Also where one is worse at some orders, and another at others."""
    worst, other = steps(1.0), steps(6.0, q=0.5, count=20)
    runs = law(mean=10.0)

    both = cost([worst, other], runs)

    assert both >= max(cost([worst], runs), cost([other], runs))
    assert cost([worst, worst, steps(2.0)], runs) == cost([worst], runs)


def test_releases_without_noise_have_no_bound():
    """As anywhere."""
    assert cost([steps(0.0)], PoissonRuns(mean=2.0)) == math.inf


@pytest.mark.parametrize("mean", [0.0, -1.0, 501.0, math.nan])
def test_means_out_of_range_are_refused(mean):
    """By name."""
    with pytest.raises(ValueError, match="mean"):
        PoissonRuns(mean=mean)
    with pytest.raises(ValueError, match="mean"):
        NegativeBinomialRuns(mean=mean)


def test_laws_out_of_range_are_refused():
    """One run on average is one run; shapes are those that are tested."""
    with pytest.raises(ValueError, match=r"mean must be in \(1, 500\]"):
        NegativeBinomialRuns(mean=1.0)
    with pytest.raises(ValueError, match="shape"):
        NegativeBinomialRuns(mean=2.0, shape=11.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"relation": "replace_one"}, "'replace_one'"),
        ({"group_size": 2}, "groups of 2"),
        (
            {
                "releases": (
                    Release(
                        sampling_probability=0.1,
                        noise_multiplier=1.0,
                        count=10,
                        steps_per_pass=10,
                    ),
                )
            },
            "random allocation",
        ),
    ],
)
def test_what_no_divergence_is_known_of_is_refused(changes, reason):
    """By name, with what to do."""
    about = {"releases": steps(1.0), "relation": "zero_out", "group_size": 1, **changes}
    with pytest.raises(ValueError, match=reason):
        check_selectable(*about.values())


def test_cyclic_sampling_is_refused():
    """Its rounds are not composed here."""
    cyclic = Release(sampling_probability=0.1, noise_multiplier=1.0, count=8, bands=4)

    with pytest.raises(ValueError, match="cyclic Poisson sampling"):
        check_selectable([cyclic], "zero_out", 1)


def test_truncated_batches_are_refused():
    """No Renyi divergence is known of them."""
    truncated = Release(
        sampling_probability=0.1,
        noise_multiplier=1.0,
        count=1,
        truncation=Truncation(max_batch_size=3, dataset_size=10),
    )
    with pytest.raises(ValueError, match="truncated batches"):
        check_selectable([truncated], "zero_out", 1)
