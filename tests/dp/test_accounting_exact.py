"""That epsilon is never below an exact reference, and at most 0.1 % above it."""

import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld import common
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType
from scipy import fft
from scipy.special import ndtr

from dp.accounting import (
    Release,
    _buckets,
    _composition,
    _resolution,
    epsilon,
    group_epsilon,
)
from dp.accounting._group_losses import _Losses, group_losses
from dp.accounting._pmf import numbers_in_batch
from dp.accounting._sampled_losses import _turned, sampled_losses


sys.path.insert(0, str(Path(__file__).parent))
from exact_accounting import exact_delta


sys.path.pop(0)


# Size of the group, sampling probability, noise multiplier, steps, delta.
SETTINGS = [
    (1, 0.01, 1.0, 1000, 1e-5),
    (1, 0.01, 1.0, 1000, 1e-9),
    (1, 0.25, 4.5, 160, 1e-5),
    (1, 1e-4, 5.0, 20_000, 1e-9),
    (1, 1e-4, 2.0, 20_000, 1e-7),
    (1, 0.001, 10.0, 20_000, 1e-6),
    (1, 0.001, 1.0366, 20_000, 1e-9),
    (1, 0.01, 20.0, 100, 1e-3),
    (1, 0.004, 0.6, 300, 1e-6),
    (1, 0.1, 0.5, 1000, 1e-5),
    (2, 0.001, 0.8, 5000, 1e-6),
    (5, 0.001, 1.0, 2000, 1e-6),
    (10, 0.001, 1.0, 2000, 1e-6),
    (10, 0.004, 1.1, 3000, 1e-5),
]


def claimed(group_size, q, sigma, steps, delta):
    release = Release(sampling_probability=q, noise_multiplier=sigma, count=steps)
    about = {"delta": delta, "neighboring_relation": "add_or_remove_one"}
    if group_size > 1:
        return group_epsilon([release], group_size=group_size, **about)
    return epsilon([release], **about).epsilon


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_epsilon_is_true_and_tight(setting):
    """The exact delta at what is claimed is at most delta, and 0.1 % below it more.

    The reference is right to about 1e-4 of delta, which is 1e-5 of epsilon.
    """
    group_size, q, sigma, steps, delta = setting
    bound = claimed(*setting)

    def exact(eps):
        return exact_delta(eps, q, sigma, steps, group_size=group_size)

    assert exact(bound) <= delta * (1 + 1e-4)
    assert exact(bound / 1.001) >= delta * (1 - 1e-4)


@pytest.mark.slow
def test_epsilon_is_tight_at_small_probabilities():
    """0.012729 before, where masses of adding an example lost their digits.

    One loss in a hundred thousand is not near 0 then, so the reference needs a finer
    grid; it is right to 1e-3 of delta.
    """
    setting = (1e-5, 1.0, 100_000)
    bound = claimed(1, *setting, 1e-5)

    assert bound == pytest.approx(0.010218, abs=2e-6)
    assert exact_delta(bound, *setting, points=1 << 22) <= 1e-5
    assert exact_delta(bound / 1.001, *setting, points=1 << 22) >= 1e-5 * (1 - 1e-3)


@pytest.mark.parametrize("q", [1e-6, 0.01, 0.3, 0.99])
@pytest.mark.parametrize("interval", [1e-3, 0.02])
def test_adding_is_removing_turned_round(q, interval):
    """Its deltas are those of dp_accounting's losses of adding an example, or above."""
    ours = sampled_losses(q, 1.0, "add_or_remove_one", interval)
    theirs = from_gaussian_mechanism(
        1.0, sampling_prob=q, value_discretization_interval=interval
    )

    for spent in (-2.0, -0.1, 0.0, 1e-7, 0.1, 0.3, 1.0):
        mine, library = (
            losses._pmf_add.get_delta_for_epsilon(spent) for losses in (ours, theirs)
        )
        assert mine == pytest.approx(library, rel=1e-8, abs=1e-13)


def test_what_no_bucket_holds_is_not_lost():
    """It has the largest loss of adding an example, or an infinite one beyond."""
    reached, beyond = (
        _turned(DensePLDPmf(0.5, first, np.array([0.2, 0.2]), 0.6, True), 0.4)  # noqa: FBT003
        for first in (-2, 1)
    )

    assert reached._infinity_mass == 0
    assert reached._probs.sum() == pytest.approx(1.0)
    assert beyond._infinity_mass == pytest.approx(1 - float(beyond._probs.sum()))
    assert beyond._infinity_mass > 0.5


@pytest.mark.slow
def test_the_reference_knows_the_gaussian_mechanism():
    """One release on all data at sigma 1 costs 4.377175 at delta 1e-5."""
    assert exact_delta(4.377175, 1.0, 10.0, 100) == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.slow
def test_what_was_loose_is_tight():
    """Groups cost 64 % less than one fixed width of buckets had it: 2.341 before."""
    assert claimed(5, 0.001, 1.0, 2000, 1e-6) == pytest.approx(1.42875, abs=2e-5)
    assert claimed(10, 0.001, 1.0, 2000, 1e-6) == pytest.approx(3.03345, abs=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("q", "sigma", "steps"),
    [
        (0.01, 0.05, 1000),
        (0.1, 0.5, 10_000),
        (1e-6, 100.0, 1000),
        (1e-6, 0.05, 1),
        (1e-5, 0.3, 10**5),
        (0.9, 1.0, 10**5),
        (0.01, 30.0, 10**7),
    ],
)
@pytest.mark.parametrize("relation", ["zero_out", "replace_one"])
def test_time_is_bounded(q, sigma, steps, relation):
    """Whatever is asked, there is an answer within seconds."""
    release = Release(sampling_probability=q, noise_multiplier=sigma, count=steps)
    start = time.process_time()
    bound = epsilon([release], delta=1e-7, neighboring_relation=relation).epsilon

    assert bound >= 0
    assert time.process_time() - start < 10  # Two on a machine that does nothing else.


def test_what_costs_too_much_is_taken_for_unsampled():
    """Epsilons of thousands say nothing; the bound is that of all the data."""
    sampled = Release(sampling_probability=0.5, noise_multiplier=0.1, count=10_000)
    full = Release(sampling_probability=1.0, noise_multiplier=0.1, count=10_000)
    about = {"delta": 1e-5, "neighboring_relation": "zero_out"}

    assert (
        epsilon([sampled], **about).epsilon_pld == epsilon([full], **about).epsilon_pld
    )


@pytest.mark.slow
def test_many_kinds_of_releases_are_composed_as_they_are():
    """A width is chosen for a few of them, which does not change what is composed."""
    releases = [
        Release(sampling_probability=0.1, noise_multiplier=4 + i / 10, count=2)
        for i in range(12)
    ]
    about = {"delta": 1e-5, "neighboring_relation": "zero_out"}
    least, most = (
        epsilon(
            [Release(sampling_probability=0.1, noise_multiplier=sigma, count=24)],
            **about,
        ).epsilon
        for sigma in (5.1, 4.0)
    )

    assert least < epsilon(releases, **about).epsilon < most


@pytest.mark.slow
def test_steps_that_follow_each_other_share_a_width():
    """So epsilon grows with every step, and does not fall where a width changes."""
    spent = [claimed(1, 0.1, 2.0, steps, 1e-5) for steps in range(60, 70)]

    assert spent == sorted(spent)


@pytest.mark.parametrize("last", [math.nan, 3.0])
def test_masses_that_are_none_are_refused(last):
    """No epsilon follows from masses that are not finite or do not sum to one."""

    class Ends:
        upper_x_truncation, lower_x_truncation = -1.0, 1.0

    class Wrong:
        def privacy_loss_tail(self):
            return Ends

        def privacy_loss(self, x):
            return x

        def get_delta_for_epsilon(self, epsilon):
            return [0.5] * (len(epsilon) - 1) + [last]

    with pytest.raises(_resolution.DigitsLostError, match="masses of privacy losses"):
        _buckets.bucket(Wrong(), 0.5)


def test_finer_buckets_that_raise_epsilon_are_an_error():
    """A bound that contradicts another is no bound."""
    bounds = iter([(1.0, 10), (1.0, 10), (1.1, 20)])

    with pytest.raises(ArithmeticError, match=r"raised epsilon from 1\.0 to 1\.1"):
        _resolution.choose_interval(lambda _width: next(bounds), 1.0, 1e-5)


def test_widths_without_digits_are_not_used():
    """Buckets that are too narrow to have masses end the search, or begin it wider."""

    def bound_at(width):
        if width < 0.3:
            raise _resolution.DigitsLostError
        return 1 + width**2, 10

    assert _resolution.choose_interval(bound_at, 1.0, 1e-9) >= 0.3
    assert _resolution.choose_interval(bound_at, 0.2, 1e-9) == 0.4


def test_widths_at_which_lost_digits_raise_epsilon_are_not_used():
    """Below a ten-thousandth a rise is lost digits, and a wider bucket is as true."""

    def bound_at(width):
        return 1 + (0.1 if width < 2e-5 else width), 10

    assert 2e-5 <= _resolution.choose_interval(bound_at, 1e-3, 1e-9) < 1e-4


@pytest.mark.parametrize(
    ("q", "sigma", "count", "delta"),
    [
        (0.25, 3000.0, 1, 1e-9),
        (0.9, 1000.0, 1, 1e-9),
        (1.0, 1000.0, 1, 1e-5),
        (1.0, 3000.0, 20, 1e-5),
    ],
)
def test_epsilon_of_very_large_noise_is_true_and_tight(q, sigma, count, delta):
    """Where narrow buckets lose digits: a person adds noise of a thousand norms."""
    release = Release(sampling_probability=q, noise_multiplier=sigma, count=count)
    about = {"delta": delta, "neighboring_relation": "add_or_remove_one"}

    bound = epsilon([release], **about).epsilon_pld

    # Releases on all data are one with less noise.
    sigma /= math.sqrt(count)
    assert exact_delta_of_one(bound, q, sigma) <= delta * (1 + 1e-5)
    assert exact_delta_of_one(bound / 1.001, q, sigma) >= delta * (1 - 1e-5)


def exact_delta_of_one(eps, q, sigma):
    """The delta of one release, of the worse of adding and removing an example."""
    deltas = []
    for way in (1, -1):
        ratio = (math.exp(way * eps) - (1 - q)) / q
        if ratio <= 0:  # The loss is never as large.
            continue
        x = sigma**2 * math.log(ratio) + 1 / 2
        without, one = ndtr(-way * x / sigma), ndtr(-way * (x - 1) / sigma)
        mixed = (1 - q) * without + q * one
        more, less = (mixed, without) if way == 1 else (without, mixed)
        deltas.append(more - math.exp(eps) * less)
    return max(deltas)


def test_the_narrowest_width_is_one_that_is_allowed():
    """Divided by a ratio that leads there, a width may be rounded to below it."""
    for start in range(1, 100):
        width = _resolution.choose_interval(lambda w: (w, 10), start * 1e-5, 1e-9)
        assert _resolution.checked(width) < 5e-7


def test_widths_at_which_lost_digits_count_as_infinite_are_not_used():
    """The bound of a wider one is as true, and says something."""

    def bound_at(width):
        return (math.inf if width < 0.3 else 1 + width**2), 10

    assert _resolution.choose_interval(bound_at, 1.0, 1e-9) >= 0.3


@pytest.mark.slow
def test_rounding_is_on_the_safe_side():
    """Composing rounds delta; that much less of it is there to be spent."""
    release = Release(sampling_probability=0.1, noise_multiplier=100.0, count=10**6)
    lost = _composition.most_rounded((release,))
    about = {"neighboring_relation": "zero_out"}

    assert lost == pytest.approx(5e-10)
    assert epsilon([release], delta=lost / 2, **about).epsilon_pld == math.inf


def powers(masses, count, dtype):
    """The masses of so many releases, by a power of a Fourier transform in a dtype."""
    low, high = common.compute_self_convolve_bounds(masses, count, 1e-15)
    size = fft.next_fast_len(max(high - low + 1, len(masses)))
    one = fft.fft(masses.astype(dtype), size)
    if dtype is np.float64:
        power = one**count  # As the library does.
    else:
        power, left = np.ones_like(one), count
        while left:
            power = power * one if left & 1 else power
            one, left = one * one, left >> 1
    return low, np.roll(np.real(fft.ifft(power)), -low)[: high - low + 1]


@pytest.mark.skipif(
    np.finfo(np.longdouble).eps == np.finfo(np.float64).eps,
    reason="needs numbers of more digits",
)
@pytest.mark.parametrize(
    ("count", "q", "sigma", "width"),
    [
        (3_070, 1.6e-5, 0.564, 1.2e-4),
        (14_670, 0.015, 0.747, 5e-4),
        (441_816, 1.383379014971608e-4, 0.60531569592785, 7.095245342356358e-5),
    ],
)
def test_composing_rounds_no_more_than_is_taken_off(count, q, sigma, width):
    """Composed again with more digits, delta is larger by no more, at any epsilon."""
    release = Release(sampling_probability=q, noise_multiplier=sigma, count=count)
    losses = sampled_losses(q, sigma, "add_or_remove_one", width)
    too_small = 0.0
    for pmf in (losses._pmf_remove, losses._pmf_add):
        masses = np.asarray(pmf._probs)
        low, right = powers(masses, count, np.longdouble)
        _, rounded = powers(masses, count, np.float64)
        epsilons = width * (low + count * pmf._lower_loss + np.arange(len(right)))
        some = (epsilons > 0) & (epsilons < 100)
        off, epsilons = (rounded - right).astype(np.float64)[some], epsilons[some]
        upper = np.cumsum(off[::-1])[::-1]
        lower = np.cumsum((off * np.exp(-epsilons))[::-1])[::-1]
        too_small = max(too_small, float(-(upper - np.exp(epsilons) * lower).min()))

    assert too_small <= _composition.most_rounded((release,))


@pytest.mark.slow
def test_many_releases_at_a_small_delta_cost_what_they_cost():
    """By exponential tilting, 3.9872 keeps 1.135 times this delta: it was claimed."""
    releases = [
        Release(sampling_probability=q, noise_multiplier=sigma, count=count)
        for q, sigma, count in (
            (0.009070270958846865, 5.509202461314344, 13),
            (0.0001383379014971608, 0.60531569592785, 441_816),
            (0.9999927504389134, 203.87027193665836, 40),
        )
    ]
    spent = epsilon(
        releases,
        delta=7.766148222047161e-11,
        neighboring_relation="add_or_remove_one",
    )

    assert spent.epsilon > 4.01


def test_a_width_without_digits_anywhere_ends_the_search():
    """At the widest that there is, instead of never."""

    def bound_at(_width):
        raise _resolution.DigitsLostError

    width = _resolution.first_width(bound_at, 1.0)

    assert _resolution.LARGEST <= width < 2 * _resolution.LARGEST


def test_a_width_is_found_where_the_next_power_of_two_costs_too_much():
    """513 steps are affordable and 1024 are not: the width is chosen for 513."""
    about = {"sampling_probability": 0.5, "noise_multiplier": 0.5}
    releases = (Release(**about, count=513),)
    powers = _resolution.reference(releases)
    rough = [_resolution.rough_epsilon(r, 1e-5, 1) for r in (releases, powers)]
    spent = epsilon(releases, delta=1e-5, neighboring_relation="add_or_remove_one")

    assert rough[0] < _resolution.LARGEST < rough[1]
    assert 0 < spent.interval < 1
    assert spent.epsilon_pld == spent.epsilon < rough[0] * 1.01


def test_a_group_that_is_always_drawn_is_a_gaussian_of_its_size():
    """The mixture has one component then, and every loss is reached."""
    group = group_losses(
        group_size=2, sampling_probability=1.0, sigma=3.0, interval=0.02
    )
    one = sampled_losses(1.0, 1.5, "add_or_remove_one", 0.02)

    for spent in (0.1, 1.0, 2.0):
        assert group.get_delta_for_epsilon(spent) == pytest.approx(
            one.get_delta_for_epsilon(spent), rel=1e-9
        )


def test_losses_below_the_least_have_the_delta_of_certainty():
    """Removing a group: below log(1 - q)^k every outcome counts."""
    sizes, weights = numbers_in_batch(2, 0.25)
    losses = _Losses(3.0, sizes, weights, adjacency_type=AdjacencyType.REMOVE)
    below = [-3.0, -2.0, -1.0]

    assert losses.get_delta_for_epsilon(below) == pytest.approx(
        [-math.expm1(spent) for spent in below]
    )
