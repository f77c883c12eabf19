"""That every epsilon is true: against closed forms, published numbers and limits."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant
from hypothesis import given, settings, strategies as st
from scipy import optimize, stats

from dp.accounting import (
    Release,
    _accountant,
    _dp_events,
    _resolution,
    _widths,
    epsilon,
    epsilon_curve,
    merge_equal_releases,
    to_dp_event,
)
from dp.accounting._buckets import _connected


RELATIONS = ("add_or_remove_one", "zero_out", "replace_one")


def cost(*releases, delta=1e-5, relation="add_or_remove_one"):
    """Epsilon of (q, sigma, count) triples."""
    return epsilon(
        [
            Release(sampling_probability=q, noise_multiplier=sigma, count=count)
            for q, sigma, count in releases
        ],
        delta=delta,
        neighboring_relation=relation,
    )


def gaussian_epsilon(sigma, delta):
    """The exact epsilon of one Gaussian release of sensitivity 1.

    Balle and Wang, 2018, Theorem 8: https://arxiv.org/abs/1805.06530
    """

    def excess(eps):
        at = 1 / (2 * sigma)
        spread = eps * sigma
        return (
            stats.norm.cdf(at - spread)
            - math.exp(eps) * stats.norm.cdf(-at - spread)
            - delta
        )

    return optimize.brentq(excess, 0, 200, xtol=1e-12)


@pytest.mark.parametrize("relation", ["add_or_remove_one", "zero_out"])
@pytest.mark.parametrize(("sigma", "count"), [(1.0, 1), (4.0, 16), (0.5, 1), (20.0, 3)])
def test_gaussian_releases_cost_what_the_closed_form_says(sigma, count, relation):
    """T releases at sigma are one at sigma / sqrt(T); the bound is slightly above."""
    exact = gaussian_epsilon(sigma / math.sqrt(count), 1e-5)
    claimed = cost((1.0, sigma, count), relation=relation).epsilon

    assert exact <= claimed <= exact * 1.001


def test_much_that_is_unsampled_is_accounted_at_once():
    """Buckets of 1e-4 would take gigabytes for it; wider ones say the same."""
    fine = cost((1.0, 1.0, 4)).epsilon
    about = math.sqrt(10_000) * 4.265  # A quantile of the normal distribution.

    assert fine == pytest.approx(gaussian_epsilon(0.5, 1e-5), rel=1e-6)
    assert cost((1.0, 1.0, 10_000)).epsilon == pytest.approx(5000 + about, rel=1e-3)


@pytest.mark.parametrize(("sigma", "count"), [(2.0, 1), (8.0, 16)])
def test_replacing_an_example_doubles_the_sensitivity(sigma, count):
    """Noise of sigma C is only sigma / 2 of the distance between such neighbours."""
    exact = gaussian_epsilon(sigma / 2 / math.sqrt(count), 1e-5)
    claimed = cost((1.0, sigma, count), relation="replace_one").epsilon

    assert exact <= claimed <= exact * 1.001


# Sampling probability, noise multiplier, steps, delta, epsilon as published.
PUBLISHED = {
    # Abadi et al. 2016, section 3.2; later conversions from RDP are a bit tighter.
    "abadi 2016": (0.01, 4.0, 10_000, 1e-5, 1.26),
    # TensorFlow Privacy's tutorial on MNIST: 60 epochs of 60000 examples, batch 250.
    "tensorflow privacy": (250 / 60_000, 1.3, 15 * 240, 1e-5, 1.18),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_bounds_are_met(name):
    """The smaller of two bounds is no more than what older accountants printed."""
    q, sigma, steps, delta, published = PUBLISHED[name]
    guarantee = cost((q, sigma, steps), delta=delta)

    assert 0.6 * published < guarantee.epsilon <= published
    assert 0.75 * published < guarantee.epsilon_rdp <= published


# Sigma, q, steps, and what Opacus 1.6 says at delta 1e-5: RDP, and PRV with an error of
# at most 0.01. All 40 settings: tests/benchmarks/accounting_grid.py.
OTHERS = [
    (1.0, 0.01, 1000, 2.101, 1.838),
    (2.0, 0.004, 1000, 0.264, 0.239),
    (4.0, 0.1, 1000, 3.736, 3.455),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "q", "steps", "rdp", "prv"), OTHERS)
def test_epsilon_lies_between_a_lower_bound_and_other_accountants(
    sigma, q, steps, rdp, prv
):
    """Losses rounded down bound it below; independent accountants bound it above."""
    optimistic = privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=sigma,
        sampling_prob=q,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=1e-4,
    ).self_compose(steps)
    claimed = cost((q, sigma, steps)).epsilon

    assert optimistic.get_epsilon_for_delta(1e-5) <= claimed
    assert claimed <= rdp
    assert prv - 2 * 0.01 - 5e-4 <= claimed <= prv + 5e-4


@pytest.mark.parametrize("relation", ["add_or_remove_one", "zero_out"])
def test_divergences_of_one_release_add_up_to_those_of_dp_accounting(relation):
    """To the last bit, of several kinds of release and many of each."""
    kinds = [(0.01, 1.1, 700), (0.02, 0.8, 30), (1.0, 5.0, 3)]
    accountant = RdpAccountant(neighboring_relation=_dp_events.neighbors(relation))
    accountant.compose(
        to_dp_event(
            Release(sampling_probability=q, noise_multiplier=sigma, count=count)
            for q, sigma, count in kinds
        )
    )

    assert cost(*kinds, relation=relation).epsilon_rdp == accountant.get_epsilon(1e-5)


def test_what_counts_share_is_found_once():
    """A progress bar asks after every step: divergences and widths are known by then."""
    before = [
        cache.cache_info().misses
        for cache in (_accountant._divergences, _widths._interval_of)
    ]
    found = [cost((0.013, 1.7, count)).epsilon for count in (9, 10, 13, 16)]
    after = [
        cache.cache_info().misses
        for cache in (_accountant._divergences, _widths._interval_of)
    ]

    assert found == sorted(set(found))
    assert after == [number + 1 for number in before]


@pytest.mark.parametrize(
    ("steps", "delta"), [(1, 1e-15), (10**4, 1e-12), (10**7, 1e-9)]
)
def test_a_divergence_that_is_rounded_to_nothing_is_not_nothing(steps, delta):
    """Of one in a billion, with sigma 500: delta at epsilon 0 is above the one asked for.

    It is the mass by which the laws of a step differ, which the steps add up to about
    its square root at least.
    """
    guarantee = cost((1e-9, 500.0, steps), delta=delta)
    apart = 1e-9 * math.erf(1 / (2 * math.sqrt(2) * 500.0))

    assert math.sqrt(steps) * apart > delta
    assert 0 < guarantee.epsilon_rdp < 0.1
    assert 0 < guarantee.epsilon < 0.1


@pytest.mark.parametrize("relation", RELATIONS)
def test_nothing_released_costs_nothing(relation):
    """Epsilon is 0 before the first step, by no accountant."""
    guarantee = cost(relation=relation)

    assert guarantee.epsilon == guarantee.epsilon_pld == guarantee.epsilon_rdp == 0
    assert guarantee.accountant == "none"


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_release_without_noise_guarantees_nothing(relation):
    """However much noise the others had."""
    guarantee = cost((0.1, 5.0, 10), (0.1, 0.0, 1), relation=relation)

    assert guarantee.epsilon == math.inf
    assert guarantee.accountant == "no noise"


def test_the_smaller_bound_is_reported_and_named():
    """PLD where it is tight; both are in the guarantee."""
    guarantee = cost((0.25, 4.5, 160))

    assert guarantee.epsilon == min(guarantee.epsilon_pld, guarantee.epsilon_rdp)
    assert guarantee.accountant == "PLD"
    assert guarantee.epsilon_pld < guarantee.epsilon_rdp


def test_the_other_bound_is_reported_where_it_is_smaller(monkeypatch):
    """Nothing but the numbers decides which one it is."""
    module = "dp.accounting._accountant"
    monkeypatch.setattr(f"{module}.bound_by_pld", lambda *_: (2.0, 1e-4))
    monkeypatch.setattr(f"{module}._by_rdp", lambda *_: 1.0)
    guarantee = cost((0.25, 4.5, 160))

    assert guarantee.epsilon == 1.0
    assert guarantee.accountant == "RDP"


def test_replacement_has_no_renyi_bound():
    """RDP of dp_accounting would not double the sensitivity, so it is not asked."""
    guarantee = cost((0.25, 4.5, 160), relation="replace_one")

    assert guarantee.epsilon_rdp is None
    assert guarantee.accountant == "PLD"


@pytest.mark.parametrize(("q", "sigma", "count"), [(0.1, 2.0, 10), (1.0, 3.0, 2)])
def test_stronger_relations_cost_more(q, sigma, count):
    """Replacing costs at least what adding or removing does; zeroing out the same."""
    add, zero, replace = (
        cost((q, sigma, count), relation=relation).epsilon
        for relation in ("add_or_remove_one", "zero_out", "replace_one")
    )

    assert zero == pytest.approx(add, rel=1e-3)
    assert replace > add


def check_monotonicity(bound, q, sigma, count, delta):
    base = bound((q, sigma, count), delta)
    slack = base * 1e-3

    assert bound((min(1.0, q * 1.2), sigma, count), delta) >= base - slack
    assert bound((q, sigma / 1.2, count), delta) >= base - slack
    assert bound((q, sigma, count + 5), delta) >= base - slack
    assert bound((q, sigma, count), delta / 2) >= base - slack


@pytest.mark.slow
@settings(max_examples=6)
@given(
    st.floats(0.01, 0.9),
    st.floats(1.0, 8.0),
    st.integers(1, 500),
    st.floats(1e-8, 1e-3),
)
def test_epsilon_is_monotonic(q, sigma, count, delta):
    """More sampling, less noise, more steps or a smaller delta cost more.

    By the vague bound that searches begin with: as valid, and sooner.
    """

    def bound(kind, delta):
        q, sigma, count = kind
        release = Release(sampling_probability=q, noise_multiplier=sigma, count=count)
        return epsilon(
            [release],
            delta=delta,
            neighboring_relation="add_or_remove_one",
            tolerance=1e-3,
        ).epsilon

    check_monotonicity(bound, q, sigma, count, delta)


@pytest.mark.slow
@pytest.mark.parametrize("relation", RELATIONS)
def test_the_claimed_epsilon_is_monotonic(relation):
    """The same of what is claimed, once for every relation."""

    def bound(kind, delta):
        return cost(kind, delta=delta, relation=relation).epsilon

    check_monotonicity(bound, 0.2, 3.0, 40, 1e-6)


@pytest.mark.slow
def test_order_and_grouping_make_no_difference():
    """Equal releases are counted together, and composition has no order."""
    one = cost((0.1, 1.0, 3), (0.2, 2.0, 4), (0.1, 1.0, 5))
    other = cost((0.2, 2.0, 4), (0.1, 1.0, 8))

    assert one.epsilon == pytest.approx(other.epsilon, rel=1e-9)


def test_equal_releases_are_merged():
    """One entry a kind, its counts added up."""
    release = Release(sampling_probability=0.5, noise_multiplier=1.0, count=2)
    other = Release(sampling_probability=0.5, noise_multiplier=2.0, count=1)

    assert merge_equal_releases([release, other, release]) == (
        Release(sampling_probability=0.5, noise_multiplier=1.0, count=4),
        other,
    )


@pytest.mark.slow
def test_the_curve_bounds_every_point():
    """Between computed points it is the next one's; the end is the claim itself."""
    release = Release(sampling_probability=0.25, noise_multiplier=4.5, count=50)
    curve = epsilon_curve([release], delta=1e-5, neighboring_relation="zero_out")

    assert len(curve) == 51
    assert curve[0] == 0
    assert list(curve) == sorted(curve)
    for count in (1, 17, 50):
        true = cost((0.25, 4.5, count), relation="zero_out").epsilon
        assert true <= curve[count] * (1 + 1e-3)
    assert curve[50] == cost((0.25, 4.5, 50), relation="zero_out").epsilon


def test_the_curve_follows_the_order_of_releases():
    """What was released first is on the curve first."""
    releases = [
        Release(sampling_probability=1.0, noise_multiplier=sigma, count=2)
        for sigma in (20.0, 4.0)
    ]
    curve = epsilon_curve(releases, delta=1e-5, neighboring_relation="zero_out")

    assert curve[2] == pytest.approx(
        cost((1.0, 20.0, 2), relation="zero_out").epsilon, rel=0.02
    )
    assert curve[4] == cost((1.0, 20.0, 2), (1.0, 4.0, 2), relation="zero_out").epsilon


def test_a_larger_tolerance_is_a_larger_bound():
    """As valid, and sooner, in wider buckets."""
    release = Release(sampling_probability=0.1, noise_multiplier=2.0, count=10)
    fine, coarse = (
        epsilon(
            [release], delta=1e-5, neighboring_relation="zero_out", tolerance=tolerance
        )
        for tolerance in (1e-5, 1e-1)
    )

    assert fine.interval < coarse.interval
    assert fine.epsilon_pld < coarse.epsilon_pld < fine.epsilon_pld * 1.1


@pytest.mark.parametrize("relation", RELATIONS)
def test_epsilon_is_that_of_dp_accountings_own_accountant(relation):
    """Composing term by term changes nothing, to the last bit."""
    releases = (
        Release(sampling_probability=0.1, noise_multiplier=2.0, count=10),
        Release(sampling_probability=1.0, noise_multiplier=8.0, count=3),
    )
    ours = epsilon(releases, delta=1e-6, neighboring_relation=relation)
    accountant = PLDAccountant(_dp_events.neighbors(relation), ours.interval)
    accountant.compose(to_dp_event(releases))

    assert ours.epsilon_pld == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sampling_probability": 0.0}, r"sampling_probability must be in \(0, 1\]"),
        ({"sampling_probability": 1.1}, r"got 1\.1"),
        ({"noise_multiplier": -1.0}, r"noise_multiplier must be >= 0 and finite"),
        ({"noise_multiplier": math.nan}, r"got nan"),
        ({"count": 0}, r"count must be a whole number >= 1, got 0"),
        ({"count": 1.5}, r"count must be a whole number >= 1, got 1\.5"),
    ],
)
def test_an_invalid_release_is_refused(change, told):
    """The message names the number and its value."""
    good = {"sampling_probability": 0.5, "noise_multiplier": 1.0, "count": 1}
    with pytest.raises(ValueError, match=told):
        Release(**{**good, **change})


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_an_invalid_delta_is_refused(delta):
    """Strictly between 0 and 1."""
    with pytest.raises(ValueError, match="delta must be strictly between 0 and 1"):
        cost((0.5, 1.0, 1), delta=delta)


def test_an_unknown_relation_is_refused():
    """The message lists those there are."""
    with pytest.raises(ValueError, match="neighboring_relation must be one of 'add_or"):
        cost((0.5, 1.0, 1), relation="replace")


def test_a_single_bucket_has_all_mass_that_delta_leaves():
    """One end alone is connected with nothing."""
    assert _connected(np.array([0.25]), 0.1).tolist() == [0.75]


def test_a_bound_that_was_infinite_is_refined_as_far_as_may_be():
    """How much is left cannot be told from how little changed."""
    assert _resolution._next_ratio(math.inf, 2.0, 1e-5) == _resolution._LARGEST_RATIO
