"""What a plan promises, and what it refuses to be."""

import dataclasses
import math

import pytest
import torch
from torch.utils.data import TensorDataset

import dp
from dp import PoissonSampling, Schedule, TruncatedPoissonSampling, Unamplified
from dp.accounting import Release, epsilon


POISSON = PoissonSampling(sampling_probability=0.5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"noise_multiplier": -0.1}, "noise_multiplier must be >= 0 and finite"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0 and finite, got 0.0"),
        ({"expected_batch_size": math.inf}, "expected_batch_size must be > 0"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"target_delta": 1.0}, "target_delta must be strictly between 0 and 1"),
        ({"target_epsilon": 0.0}, "target_epsilon must be > 0 and finite"),
        ({"neighboring_relation": "swap"}, "neighboring_relation must be one of 'add"),
        ({"unit_of_privacy": " "}, "unit_of_privacy must say whose data"),
    ],
)
def test_numbers_out_of_range_are_refused(make_plan, change, told):
    """The message names the number, and its value where it says something."""
    with pytest.raises(ValueError, match=told):
        make_plan(**change)


@pytest.mark.parametrize("sampling", [0.5, None, "poisson", PoissonSampling])
def test_sampling_is_a_scheme(make_plan, sampling):
    """A number alone would not say how batches are drawn."""
    with pytest.raises(
        TypeError, match=r"sampling must be PoissonSampling\(\.\.\.\), RandomA"
    ):
        make_plan(sampling=sampling)


def test_a_plan_cannot_be_changed(make_plan):
    """What was decided before the run stays decided."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_plan().noise_multiplier = 0.1


def test_equal_plans_are_equal(make_plan):
    """A plan is a value."""
    assert make_plan() == make_plan()
    assert hash(make_plan()) == hash(make_plan())
    assert make_plan(steps=21) != make_plan()


@pytest.mark.parametrize(
    ("sampling", "probability"), [(POISSON, 0.5), (Unamplified(), 1.0)], ids=repr
)
def test_releases_are_what_the_steps_release(make_plan, sampling, probability):
    """Without Poisson sampling no amplification is claimed."""
    plan = make_plan(sampling=sampling, noise_multiplier=2.0)

    assert plan.sampling_probability == probability
    assert plan.releases(0) == ()
    assert plan.releases(7) == (
        Release(sampling_probability=probability, noise_multiplier=2.0, count=7),
    )


def test_the_guarantee_is_of_all_steps(make_plan):
    """What a plan costs is known before it is run."""
    plan = make_plan(steps=4, neighboring_relation="zero_out")
    by_hand = epsilon(plan.releases(4), delta=1e-5, neighboring_relation="zero_out")

    assert plan.guarantee() == by_hand


def test_the_loader_samples_as_planned(make_plan):
    """Its probability and number of batches are the plan's; the rest is the caller's."""
    dataset = TensorDataset(torch.arange(30.0))
    loader = make_plan(steps=3).loader(
        dataset, collate_fn=len, empty_batch=0, num_workers=0, pin_memory=False
    )

    assert loader.sampling_probability == 0.5
    batches = list(loader)
    assert len(batches) == 3
    assert all(isinstance(batch, int) for batch in batches)


def test_an_unamplified_plan_has_no_loader(make_plan):
    """Any loader serves, so there is none to prove anything."""
    with pytest.raises(TypeError, match="or any torch DataLoader"):
        make_plan(sampling=Unamplified()).loader(TensorDataset(torch.zeros(3)))


@pytest.mark.slow
@pytest.mark.parametrize("probability", [0.25, None])
def test_plan_for_keeps_the_target(probability):
    """The least noise that does, and everything else as it was asked for."""
    plan = dp.plan_for(
        target_epsilon=2.0,
        target_delta=1e-6,
        steps=20,
        max_grad_norm=0.5,
        expected_batch_size=64,
        sampling_probability=probability,
        neighboring_relation="zero_out",
        unit_of_privacy="one patient",
    )

    assert 1.98 < plan.guarantee().epsilon <= 2.0
    assert plan.target_epsilon == 2.0
    assert plan.target_delta == 1e-6
    assert plan.sampling_probability == (probability or 1.0)
    assert isinstance(plan.sampling, PoissonSampling if probability else Unamplified)
    assert plan.max_grad_norm == 0.5
    assert plan.expected_batch_size == 64
    assert plan.neighboring_relation == "zero_out"
    assert plan.unit_of_privacy == "one patient"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"target_epsilon": -1.0}, "target_epsilon must be > 0"),
        ({"target_delta": 0.0}, "delta must be strictly between 0 and 1"),
        ({"steps": 0}, "whole number >= 1, got 0"),
        ({"sampling_probability": 2.0}, "sampling_probability must be in"),
        ({"sampling_probability": 0.0}, "sampling_probability must be in"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be > 0"),
    ],
)
def test_plan_for_refuses_what_no_plan_can_be(change, told):
    """A sampling probability of 0 is an error, not a wish for no amplification."""
    good = {
        "target_epsilon": 2.0,
        "target_delta": 1e-6,
        "steps": 1,
        "max_grad_norm": 1.0,
        "expected_batch_size": 64,
        "sampling_probability": 1.0,
    }
    with pytest.raises(ValueError, match=told):
        dp.plan_for(**{**good, **change})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "expected_batchsize",
            "'expected_batchsize'; did you mean 'expected_batch_size'",
        ),
        ("colour", "'colour'$"),
    ],
)
def test_a_misspelt_argument_is_answered_with_the_one_that_was_meant(name, told):
    """If there is one that is near."""
    with pytest.raises(TypeError, match=f"plan_for.. got an unexpected.*{told}"):
        dp.plan_for(**{name: 3}, target_delta=1e-6, max_grad_norm=1.0)


@pytest.mark.parametrize("norm", [1e-19, 1e19, Schedule([(2, 1.0), (2, 1e-20)])])
def test_norms_whose_squares_are_no_numbers_are_refused(make_plan, norm):
    """Below them clipping would not bound anything, by a schedule or not."""
    with pytest.raises(ValueError, match=r"max_grad_norm must be in \[1e-18, 1e\+18\]"):
        make_plan(max_grad_norm=norm)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_delta": 0.3},
        {"target_delta": 1e-2, "expected_batch_size": 50.0},
        {"target_delta": 0.1, "sampling": Unamplified()},
        {
            "target_delta": 1e-3,
            "neighboring_relation": "zero_out",
            "sampling": TruncatedPoissonSampling(
                sampling_probability=0.5, max_batch_size=800, dataset_size=1000
            ),
        },
    ],
)
def test_a_delta_that_permits_publishing_an_example_is_warned_of(make_plan, changes):
    """It is one over the number of examples or more, as the public numbers have it."""
    with pytest.warns(UserWarning, match="permits publishing an example outright"):
        make_plan(**changes)
