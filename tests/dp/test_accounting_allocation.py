"""Epsilon of random allocation: anchors, exact values, and bounds from both sides."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from dp.accounting import (
    Release,
    Truncation,
    _accountant,
    _allocation_losses,
    _lower_bounds,
    _own_losses,
    _widths,
    epsilon,
    epsilon_curve,
    group_epsilon,
    merge_equal_releases,
    to_dp_event,
)
from dp.accounting._agreement import check_agreement
from dp.accounting._allocation_losses import allocation_losses, pass_law
from dp.accounting._lower_bounds import lower_bound
from dp.accounting._resolution import DigitsLostError
from dp.accounting._spread_laws import SpreadLaw, lognormal, summed
from dp.calibration import (
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
)
from dp.exceptions import PrivacyError, UnsupportedOperationError


DELTA = 1e-5


def passes(sigma, num_steps, count):
    return Release(
        sampling_probability=1 / num_steps,
        noise_multiplier=sigma,
        count=num_steps * count,
        steps_per_pass=num_steps,
    )


def spent(*releases, delta=DELTA, relation="add_or_remove_one"):
    return epsilon(releases, delta=delta, neighboring_relation=relation).epsilon


@cache
def law_of(sigma, num_steps, points=4000):
    return pass_law(num_steps, sigma, points)


def deltas(law, eps):
    """Return the deltas of a pass, removing and adding, without other buckets."""
    ratios, masses = law.ratios(), law.masses
    p_only = max(law.beyond, 1 - float(masses @ ratios))
    q_only = max(law.zero, 1 - float(masses.sum()))
    return (
        float(masses @ np.maximum(ratios - math.exp(eps), 0)) + p_only,
        float(masses @ np.maximum(1 - math.exp(eps) * ratios, 0)) + q_only,
    )


def exact_of_two(sigma, eps):
    """Return both deltas of a pass of two steps, by an integral over one of them."""
    limit = math.exp(eps)

    def call(c):  # The mean of what a lognormal of mean 1 exceeds c by.
        k = math.log(c)
        return ndtr(-sigma * k + 0.5 / sigma) - c * ndtr(-sigma * k - 0.5 / sigma)

    def put(c):
        k = math.log(c)
        return c * ndtr(sigma * k + 0.5 / sigma) - ndtr(sigma * k - 0.5 / sigma)

    def integral(of_ratio, kink):
        at = sigma * math.log(kink) + 0.5 / sigma
        points = sorted({-9.5, min(max(at, -9.5), 9.5), 9.5})
        return sum(
            quad(
                lambda z: norm.pdf(z) * of_ratio(math.exp(z / sigma - 0.5 / sigma**2)),
                low,
                high,
                epsabs=1e-13,
                epsrel=1e-11,
                limit=200,
            )[0]
            for low, high in pairwise(points)
        )

    def remove(x):
        return (x + 1) / 2 - limit if x >= 2 * limit else call(2 * limit - x) / 2

    def add(x):
        return 0.0 if x >= 2 / limit else limit / 2 * put(2 / limit - x)

    return integral(remove, 2 * limit), integral(add, 2 / limit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sigma", "num_steps", "count", "low", "high"),
    [
        (0.5, 1000, 1, 3.134108, 3.134185),
        (0.8, 1000, 1, 0.283473, 0.283632),
        (1.0, 1000, 1, 0.138832, 0.138860),
        (0.8, 100, 10, 2.907325, 2.907633),
        (1.0, 100, 10, 1.701337, 1.701551),
        (1.0, 1000, 10, 0.464360, 0.464502),
        (2.0, 100, 100, 2.140547, 2.140753),
        (0.3, 10_000, 3, 13.87718, 13.87862),
        (0.5, 2, 5, 24.99148, 24.99394),
    ],
)
def test_epsilon_lies_in_its_bracket(sigma, num_steps, count, low, high):
    """Published brackets: at most 0.06 % above the lower end, and never below it."""
    found = spent(passes(sigma, num_steps, count))

    assert low <= found <= high * 1.0004


@pytest.mark.parametrize(
    ("sigma", "num_steps", "count", "anchor"),
    [
        (0.5, 1000, 1, 3.13460),
        (0.8, 1000, 1, 0.28377),
        (1.0, 1000, 1, 0.13903),
        (0.8, 100, 10, 2.90886),
        (1.0, 100, 10, 1.70235),
        (1.0, 1000, 10, 0.46513),
        (2.0, 100, 100, 2.14167),
        (0.3, 10_000, 3, 13.88033),
        (0.5, 2, 5, 24.99429),
    ],
)
def test_anchors_are_met_to_their_digits(sigma, num_steps, count, anchor, monkeypatch):
    """By grids of 2000 points, as the anchors were computed."""
    coarse = pass_law(num_steps, sigma, 2000)
    monkeypatch.setattr(_allocation_losses, "pass_law", lambda *_: coarse)
    allocation_losses.cache_clear()
    _own_losses.composed.cache_clear()
    losses, _ = _own_losses.composed(
        (passes(sigma, num_steps, count),), "zero_out", 1, coarse.spacing
    )
    found = _own_losses.epsilon_of(losses, DELTA)
    allocation_losses.cache_clear()
    _own_losses.composed.cache_clear()

    digits = len(str(anchor).split(".")[1])
    assert round(found, digits) == pytest.approx(anchor, abs=1.01 * 10**-digits)


@pytest.mark.parametrize(
    ("sigma", "num_steps", "count"),
    [(0.5, 50, 1), (1.0, 4, 20), (0.8, 100, 10), (2.0, 30, 100), (4.0, 1000, 50)],
)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_no_epsilon_is_below_a_lower_bound(sigma, num_steps, count, delta):
    """The lower bound shares nothing with the upper one, and is 0.5 % below it."""
    release = passes(sigma, num_steps, count)

    upper = spent(release, delta=delta)
    lower = lower_bound((release,), delta)

    assert lower <= upper <= lower * 1.005


def test_truncated_batches_are_left_out_of_a_lower_bound():
    """What they cost is no less than nothing, and nothing more is said."""
    truncated = Release(
        sampling_probability=0.1,
        noise_multiplier=1.0,
        count=9,
        truncation=Truncation(max_batch_size=20, dataset_size=100),
    )
    release = passes(1.0, 20, 3)

    assert lower_bound((truncated,), DELTA) == 0
    assert lower_bound((truncated, release), DELTA) == lower_bound((release,), DELTA)


@pytest.mark.slow
def test_lower_bounds_are_below_epsilon_of_poisson_samples_too():
    """A mix of all kinds: what they have in common is composed once."""
    releases = (
        Release(sampling_probability=0.01, noise_multiplier=1.0, count=300),
        Release(sampling_probability=1.0, noise_multiplier=9.0, count=3),
        passes(1.0, 100, 3),
    )

    lower, upper = lower_bound(releases, DELTA), spent(*releases)

    assert lower <= upper <= lower * 1.01
    assert upper > max(spent(r) for r in releases)


@pytest.mark.parametrize(
    ("sigma", "exact"), [(0.5, 9.997244), (1.0, 4.377175), (2.0, 1.993087)]
)
def test_one_step_a_pass_is_the_gaussian_mechanism(sigma, exact):
    """Also by the spread law itself, which the accountant does not need there."""
    law = law_of(sigma, 1)
    found = brentq(lambda e: max(deltas(law, e)) - DELTA, 0, 30)

    assert spent(passes(sigma, 1, 1)) == pytest.approx(exact, rel=1e-5)
    assert exact - 1e-6 <= found <= exact * (1 + 2e-4)


@pytest.mark.parametrize(
    ("sigma", "eps", "remove", "add"),
    [
        (1.0, 0.5, 0.1491775231, 0.1426869658),
        (1.0, 3.0, 0.0001677028, 0.0000159027),
        (0.7, 1.0, 0.1901458128, 0.1706114355),
        (0.7, -0.5, 0.5694706306, 0.5756271365),
        (1.0, -1.0, 0.6505872468, 0.6539014134),
    ],
)
def test_two_steps_are_as_by_quadrature(sigma, eps, remove, add):
    """Never below, above by less than 7e-6, in both directions and for both signs."""
    exact = exact_of_two(sigma, eps)
    upper = deltas(law_of(sigma, 2), eps)
    lower = _lower_bounds.deltas(_lower_bounds._one(passes(sigma, 2, 1), 1200)[0], eps)

    assert exact == pytest.approx((remove, add), abs=1e-10)
    for ours, below, true in zip(upper, lower, exact, strict=True):
        assert true <= ours <= true + 7e-6
        assert true - 3e-5 <= below <= true


@pytest.mark.parametrize("eps", [-0.5, 0.1, 0.5])
def test_both_directions_are_one_law(eps):
    """H(P, Q; g) = 1 - g + g H(Q, P; 1 / g), for a pair of probability laws."""
    law, g = law_of(1.0, 100), math.exp(eps)

    remove, add = deltas(law, eps)[0], deltas(law, -eps)[1]

    assert remove == pytest.approx(1 - g + g * add, abs=1e-11)


@pytest.mark.slow
def test_a_spread_keeps_mass_and_mean():
    """What leaves the grid is at 0 or counts as infinite."""
    for law in (lognormal(0.8, 0.01), law_of(0.8, 100), law_of(0.8, 7).on_grid(0.03)):
        mean = float(law.masses @ law.ratios()) + law.beyond

        assert (law.masses >= 0).all()
        assert float(law.masses.sum()) + law.zero == pytest.approx(1, abs=1e-12)
        assert mean == pytest.approx(1, abs=1e-11)


@pytest.mark.slow
def test_a_coarser_grid_is_never_a_smaller_bound():
    """Refinement in every way that there is: points of the sums, and buckets."""
    for eps in (-0.3, 0.0, 0.4):
        fine, medium, coarse = (
            max(deltas(law_of(1.0, 50, points), eps)) for points in (4000, 1000, 250)
        )
        assert fine <= medium <= coarse

    release = passes(1.0, 50, 4)
    bounds = [
        epsilon(
            [release],
            delta=DELTA,
            neighboring_relation="zero_out",
            interval=interval,
        ).epsilon
        for interval in (0.2, 0.05, 0.0125, 0.003125)
    ]
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.slow
def test_a_second_gradient_may_depend_on_the_first_release():
    """By quadrature: no choice of it costs more than the bound."""
    z = np.linspace(-8, 8, 1601)
    weights = np.outer(norm.pdf(z), norm.pdf(z))
    weights /= weights.sum()
    law = law_of(1.0, 2)
    for second in ((z <= 0.5) * 1.0, np.sign(z), np.full_like(z, 0.5)):
        ratio = 0.5 * (
            np.exp(z[:, None] - 0.5)
            + np.exp(z[None] * second[:, None] - second[:, None] ** 2 / 2)
        )
        for eps in (0.5, 1.5):
            remove, add = deltas(law, eps)

            assert (weights * np.maximum(ratio - math.exp(eps), 0)).sum() <= remove
            assert (weights * np.maximum(1 - math.exp(eps) * ratio, 0)).sum() <= add


@pytest.mark.parametrize(
    ("sigma", "num_steps"), [(0.3, 3), (0.05, 10), (0.02, 4), (0.03, 100_000)]
)
def test_epsilons_that_say_nothing_are_still_bounds(sigma, num_steps):
    """One participation bounds a pass, whatever is spread or counts as infinite."""
    found = spent(passes(sigma, num_steps, 1))
    of_one = Release(sampling_probability=1.0, noise_multiplier=sigma, count=1)

    assert lower_bound((passes(sigma, num_steps, 1),), DELTA) <= found
    assert found <= spent(of_one) * 1.001


def test_masses_that_lost_their_digits_are_refused(monkeypatch):
    """No bound follows from them."""
    right = pass_law(10, 1.0)
    wrong = SpreadLaw(right.spacing, right.first, right.masses * 1.01)
    monkeypatch.setattr(_allocation_losses, "pass_law", lambda *_: wrong)
    allocation_losses.cache_clear()

    with pytest.raises(DigitsLostError, match=r"sum to 1\.0"):
        allocation_losses(10, 1.0, 0.123)
    allocation_losses.cache_clear()


def test_a_law_whose_mean_is_beyond_is_left_as_it_is():
    """There is no tail to cut off."""
    law = SpreadLaw(1.0, -60, np.array([1e-19, 1.0, 1e-19]), beyond=1.0)

    assert law.pruned() is law


@pytest.mark.slow
def test_losses_beyond_400_count_as_infinite():
    """Their exponentials would be no numbers. What is beyond is in the atom."""
    release = passes(0.045, 50, 1)
    found = spent(release)

    assert lower_bound((release,), DELTA) <= found
    assert found <= spent(
        Release(sampling_probability=1.0, noise_multiplier=0.045, count=1)
    )
    losses = allocation_losses(50, 0.04, 0.1)
    assert losses._pmf_remove._infinity_mass > 1e-5
    assert losses._pmf_remove.size * 0.1 > 400


def test_few_points_on_a_wide_law_are_spread_onto_the_number_of_steps():
    """So that dividing by it moves whole buckets, however coarse the grid is."""
    law = pass_law(2, 0.08, 50)

    assert law.spacing == pytest.approx(math.log(2))
    assert float(law.masses @ law.ratios()) + law.beyond == pytest.approx(1, abs=1e-9)


def test_sums_are_on_nested_grids():
    """So a mean that is on a grid point stays there."""
    one = SpreadLaw(0.5, 0, np.array([1.0]))
    two = summed(one, one, points=64)

    assert float(two.masses @ two.ratios()) == pytest.approx(2, abs=1e-12)


@pytest.mark.slow
def test_a_part_of_a_pass_costs_as_much_as_all_of_it():
    """And parts of two passes are two passes."""
    part = Release(
        sampling_probability=0.1, noise_multiplier=1.0, count=4, steps_per_pass=10
    )

    assert merge_equal_releases([part, part]) == (passes(1.0, 10, 2),)
    assert spent(part) == spent(passes(1.0, 10, 1))
    assert spent(part, part) == spent(passes(1.0, 10, 2))
    curve = epsilon_curve(
        [passes(1.0, 10, 2)], delta=DELTA, neighboring_relation="zero_out"
    )
    assert curve[1] >= spent(part, relation="zero_out")
    assert curve[11] == curve[20]


def test_adding_and_zeroing_out_cost_the_same_and_replacing_is_refused():
    """No bound is proven for it, so none is named."""
    release = passes(1.0, 10, 2)

    assert spent(release) == spent(release, relation="zero_out")
    with pytest.raises(ValueError, match="no bound is proven for an example that is"):
        spent(release, relation="replace_one")


def test_what_has_no_bound_is_refused_by_name():
    """Groups, truncated batches, events of dp_accounting, and other probabilities."""
    release = passes(1.0, 10, 2)
    about = {"delta": DELTA, "neighboring_relation": "zero_out"}

    with pytest.raises(UnsupportedOperationError, match="groups of examples"):
        group_epsilon([release], group_size=2, **about)
    with pytest.raises(UnsupportedOperationError, match="no event for random alloc"):
        to_dp_event([release])
    with pytest.raises(ValueError, match="whose batches are truncated"):
        Release(
            sampling_probability=0.1,
            noise_multiplier=1.0,
            count=10,
            steps_per_pass=10,
            truncation=Truncation(max_batch_size=3, dataset_size=9),
        )
    with pytest.raises(ValueError, match="must be 1 / 10"):
        Release(
            sampling_probability=0.2,
            noise_multiplier=1.0,
            count=10,
            steps_per_pass=10,
        )
    assert epsilon([release], **about).epsilon_rdp is None


@pytest.mark.slow
def test_a_law_that_is_too_narrow_is_not_certified(monkeypatch):
    """The lower bound does not know of it."""
    right = pass_law
    releases = (passes(1.0, 20, 3),)
    check_agreement(releases, 1e-6, "zero_out")
    monkeypatch.setattr(
        _allocation_losses, "pass_law", lambda t, sigma: right(t, 1.05 * sigma)
    )
    for cached in _caches():
        cached.cache_clear()

    with pytest.raises(PrivacyError, match=r"at least .* by its lower bound"):
        check_agreement(releases, 1e-6, "zero_out")
    for cached in _caches():
        cached.cache_clear()


def _caches():
    return (
        allocation_losses,
        check_agreement,
        _own_losses.composed,
        _widths._interval_of,
        _accountant.bound_by_pld,
    )


@pytest.mark.slow
def test_poisson_samples_beside_passes_are_still_compared():
    """With dp_accounting's own losses."""
    poisson = Release(sampling_probability=0.1, noise_multiplier=1.0, count=9)

    check_agreement((poisson, passes(1.0, 20, 3)), 1e-6, "zero_out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "num_steps", "count", "anchor", "poisson"),
    [
        (1.0, 100, 10, 1.3698, 1.4147),
        (3.0, 100, 10, 0.7910, 0.8136),
        (8.0, 100, 10, 0.5702, 0.5863),
        (3.0, 4, 40, 4.4422, 4.5391),
    ],
)
def test_it_needs_less_noise_than_poisson_sampling(
    target, num_steps, count, anchor, poisson
):
    """Anchors of both; the target is kept, and 0.05 % of it is wasted at most."""
    about = {
        "target_epsilon": target,
        "target_delta": DELTA,
        "sampling_probability": 1 / num_steps,
        "steps": num_steps * count,
        "neighboring_relation": "add_or_remove_one",
    }

    found = calibrate_noise_multiplier(**about, steps_per_pass=num_steps)

    assert found == pytest.approx(anchor, rel=5e-4)
    assert calibrate_noise_multiplier(**about) == pytest.approx(poisson, rel=5e-4)
    release = passes(found, num_steps, count)
    assert target * 0.9995 <= spent(release) <= target


@pytest.mark.slow
def test_steps_are_found_in_whole_passes():
    """One pass more would exceed the target."""
    about = {
        "target_epsilon": 3.0,
        "target_delta": DELTA,
        "noise_multiplier": 1.0,
        "neighboring_relation": "add_or_remove_one",
        "steps_per_pass": 100,
    }

    found = calibrate_steps(**about, sampling_probability=0.01)

    assert found % 100 == 0
    assert spent(passes(1.0, 100, found // 100)) <= 3.0
    assert spent(passes(1.0, 100, found // 100 + 1)) > 3.0
    with pytest.raises(ValueError, match="a pass of 100 steps"):
        calibrate_steps(**{**about, "target_epsilon": 0.01}, sampling_probability=0.01)
    with pytest.raises(ValueError, match="fixes the sampling probability"):
        calibrate_sampling_probability(**about, steps=100)
