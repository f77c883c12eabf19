"""That what is calibrated keeps the target, and wastes little of it."""

import math

import pytest
from hypothesis import given, strategies as st

from dp.accounting import Release, epsilon
from dp.calibration import (
    _calibrate,
    _search,
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
)
from dp.schedule import Schedule


def spent(q, sigma, steps, relation="add_or_remove_one"):
    release = Release(sampling_probability=q, noise_multiplier=sigma, count=steps)
    return epsilon([release], delta=1e-5, neighboring_relation=relation).epsilon


def target(epsilon, relation="add_or_remove_one"):
    return {
        "target_epsilon": epsilon,
        "target_delta": 1e-5,
        "neighboring_relation": relation,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "q", "steps", "relation"),
    [
        (3.0, 0.25, 160, "add_or_remove_one"),
        (1e-4, 0.1, 10, "add_or_remove_one"),
        (50.0, 0.1, 1000, "add_or_remove_one"),
        (1e6, 0.1, 10, "add_or_remove_one"),
        (0.05, 1.0, 4, "zero_out"),
        (2.0, 0.5, 8, "replace_one"),
    ],
)
def test_the_least_noise_never_overshoots_and_wastes_little(limit, q, steps, relation):
    """The epsilon of the noise is at most the target, and within 0.05 % of it."""
    sigma = calibrate_noise_multiplier(
        **target(limit, relation), sampling_probability=q, steps=steps
    )

    assert (1 - 5e-4) * limit <= spent(q, sigma, steps, relation) <= limit


def test_a_shape_is_scaled_as_a_whole():
    """The least factor, by which every step's noise is multiplied."""
    shape = Schedule(((2, 2.0), (2, 1.0)))
    factor = calibrate_noise_multiplier(
        **target(4.0), sampling_probability=1.0, steps=3, shape=shape
    )
    releases = [
        Release(sampling_probability=1.0, noise_multiplier=2 * factor, count=2),
        Release(sampling_probability=1.0, noise_multiplier=factor, count=1),
    ]
    cost = epsilon(releases, delta=1e-5, neighboring_relation="add_or_remove_one")

    assert (1 - 5e-4) * 4 <= cost.epsilon <= 4


def test_a_shape_that_reaches_zero_cannot_be_scaled():
    """A step without noise stays without noise."""
    with pytest.raises(ValueError, match="shape must be above 0 at every step"):
        calibrate_noise_multiplier(
            **target(4.0),
            sampling_probability=1.0,
            steps=3,
            shape=Schedule(((2, 2.0), (2, 0.0))),
        )


@pytest.mark.slow
def test_the_largest_probability_never_overshoots():
    """Larger batches until the target is reached, or all of the data."""
    q = calibrate_sampling_probability(**target(1.0), noise_multiplier=8.0, steps=200)

    assert 1 - 5e-4 <= spent(q, 8.0, 200) <= 1.0
    assert (
        calibrate_sampling_probability(**target(9.0), noise_multiplier=3.0, steps=1)
        == 1
    )


@pytest.mark.slow
def test_the_most_steps_never_overshoot():
    """One step more would; a loose target still ends somewhere."""
    steps = calibrate_steps(
        **target(1.0), noise_multiplier=3.0, sampling_probability=0.1
    )

    assert spent(0.1, 3.0, steps) <= 1.0 < spent(0.1, 3.0, math.ceil(steps * 1.01))


@pytest.mark.slow
def test_steps_have_an_end(monkeypatch):
    """However much noise there is."""
    monkeypatch.setattr(_calibrate, "_MOST_STEPS", 100)
    steps = calibrate_steps(
        **target(50.0), noise_multiplier=30.0, sampling_probability=0.01
    )

    assert steps == 100


@pytest.mark.parametrize(
    ("limit", "sigma", "q"), [(3.0, 2.0, 0.9), (9.0, 1.0, 1.0), (1.0, 3.0, 0.1)]
)
def test_a_few_steps_are_exactly_the_most(limit, sigma, q):
    """Where each step costs much, one step more would exceed the target."""
    steps = calibrate_steps(
        **target(limit), noise_multiplier=sigma, sampling_probability=q
    )

    assert spent(q, sigma, steps) <= limit < spent(q, sigma, steps + 1)


def test_a_target_below_one_step_is_refused():
    """The message says what to change."""
    with pytest.raises(ValueError, match="does not allow one step at noise_multiplier"):
        calibrate_steps(**target(0.1), noise_multiplier=0.5, sampling_probability=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "q", "steps"),
    [(1.0, 0.01, 1000), (8.0, 0.05, 300), (0.2, 1.0, 100), (50.0, 0.1, 1000)],
)
def test_few_claims_are_computed(asked, limit, q, steps):
    """At most six: each may take a second."""
    calibrate_noise_multiplier(**target(limit), sampling_probability=q, steps=steps)

    assert 1 <= len(asked) <= 6


@pytest.fixture
def asked(monkeypatch):
    """List every epsilon that a search lets the accountant claim."""
    asked = []
    original = _search.epsilon

    def counted(*releases, **about):
        guarantee = original(*releases, **about)
        asked.append(guarantee.epsilon)
        return guarantee

    monkeypatch.setattr(_search, "epsilon", counted)
    return asked


@pytest.mark.parametrize("error", [0.5, 0.97, 1.03, 2.0])
def test_nothing_is_believed_of_where_a_search_begins(monkeypatch, asked, error):
    """However wrong the start and its slope are, what is returned was claimed."""

    def start(_search):
        return 50.0 * error, -0.1

    monkeypatch.setattr(_search.Search, "_start", start)
    sigma = calibrate_noise_multiplier(
        **target(1.0, "zero_out"), sampling_probability=1.0, steps=100
    )

    assert spent(1.0, sigma, 100, "zero_out") in asked
    assert 1 - 5e-4 <= spent(1.0, sigma, 100, "zero_out") <= 1.0


@given(st.floats(-5, 5), st.floats(-3, -0.2))
def test_a_search_ends_at_what_is_kept(least, slope):
    """Of a line of any slope, the next numbers to ask close in on where it crosses."""
    line = _search._Line(slope=-1.0)
    at = 0.0
    for _ in range(12):
        line.add(math.exp(at), slope * (at - least))
        at = line.crossing()

    assert math.log(line.smallest_kept()) == pytest.approx(least, abs=2e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"target_epsilon": math.inf},
            "target_epsilon must be > 0 and finite, got inf",
        ),
        ({"target_delta": 0.0}, "target_delta must be strictly between 0 and 1"),
        ({"noise_multiplier": 0.0}, "noise_multiplier must be > 0 and finite, got 0.0"),
    ],
)
@pytest.mark.parametrize("search", [calibrate_steps, calibrate_sampling_probability])
def test_numbers_out_of_range_are_refused(search, change, told):
    """Nothing is searched for."""
    other = {"steps": 3} if search is not calibrate_steps else {}
    if search is calibrate_steps:
        other = {"sampling_probability": 0.5}
    with pytest.raises(ValueError, match=told):
        search(**{**target(1.0), "noise_multiplier": 1.0, **other, **change})
