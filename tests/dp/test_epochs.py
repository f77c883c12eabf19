"""Plans in epochs, a batch size and a number of examples that is public."""

import inspect

import pytest
import torch
from hypothesis import given, strategies as st

from dp import PrivacyPlan, plan_for
from dp.calibration._epochs import numbers_of_epochs, steps_of_epoch
from dp.sampling import PoissonLoader
from dp.sampling._refused_arguments import _TAKEN


TARGET = {"target_epsilon": 3.0, "target_delta": 1e-6, "max_grad_norm": 1.0}
GIVEN = {
    "epochs": None,
    "batch_size": None,
    "dataset_size": None,
    "sampling_probability": None,
    "steps": None,
    "expected_batch_size": None,
}


@pytest.mark.slow
def test_a_plan_in_epochs_is_the_plan_of_the_numbers_that_follow():
    """To the last digit."""
    in_epochs = plan_for(**TARGET, epochs=2.5, batch_size=64, dataset_size=1000)

    assert in_epochs == plan_for(
        **TARGET, sampling_probability=0.064, steps=40, expected_batch_size=64
    )


@pytest.mark.slow
def test_steps_are_found_for_a_batch_size_and_given_noise():
    """Epochs may be left out, as steps may."""
    plan = plan_for(**TARGET, batch_size=64, dataset_size=1000, noise_multiplier=2.0)

    assert plan.steps > 1
    assert plan.guarantee().epsilon <= 3.0


@pytest.mark.slow
def test_truncated_batches_take_the_same_number_of_examples():
    """It says both how many there are, and how likely each is drawn."""
    plan = plan_for(
        **TARGET,
        epochs=1,
        batch_size=50,
        dataset_size=1000,
        max_batch_size=80,
        neighboring_relation="zero_out",
    )

    assert plan.sampling.dataset_size == 1000
    assert (plan.sampling_probability, plan.steps) == (0.05, 20)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_an_epoch_has_as_many_steps_as_batches_of_a_shuffled_loader(total, size):
    """Rounded up, and at least one."""
    steps = steps_of_epoch(total, size)

    assert steps == max(1, -(-total // size))


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({}, TypeError, "plan_for needs expected_batch_size"),
        ({"epochs": 3}, ValueError, "epochs=3 needs batch_size and dataset_size"),
        ({"batch_size": 3}, ValueError, "batch_size=3 needs dataset_size"),
        (
            {"batch_size": 0, "dataset_size": 9},
            ValueError,
            "batch_size must be a whole number >= 1",
        ),
        (
            {"batch_size": 3, "dataset_size": 2},
            ValueError,
            "batch_size=3 is more than dataset_size=2",
        ),
        (
            {"batch_size": 3, "dataset_size": 9, "sampling_probability": 0.5},
            ValueError,
            r"sampling_probability=0\.5 follows from batch_size",
        ),
        (
            {"batch_size": 3, "dataset_size": 9, "expected_batch_size": 3},
            ValueError,
            "expected_batch_size=3 follows from",
        ),
        (
            {"batch_size": 3, "dataset_size": 9, "epochs": 1, "steps": 5},
            ValueError,
            "steps=5 follows from",
        ),
        (
            {"batch_size": 3, "dataset_size": 9, "epochs": 0},
            ValueError,
            "epochs must be > 0",
        ),
    ],
)
def test_numbers_that_are_missing_or_given_twice_are_refused(changes, error, told):
    """By name, with what to do."""
    with pytest.raises(error, match=told):
        numbers_of_epochs(**{**GIVEN, **changes})


@pytest.mark.slow
def test_a_collate_function_of_ones_own_raises_what_it_raises():
    """Only torch's own is explained, and only where shapes differ."""

    def failing(examples):
        raise RuntimeError(f"{len(examples)} examples")

    rows = [torch.zeros(1), torch.zeros(1)]
    loader = PoissonLoader(
        rows, sampling_probability=1.0, steps=1, collate_fn=failing, empty_batch=0
    )
    with pytest.raises(RuntimeError, match="2 examples"):
        next(iter(loader))
    strange = [torch.zeros(1), torch.zeros(1, device="meta")]
    loader = PoissonLoader(strange, sampling_probability=1.0, steps=1)
    with pytest.raises((RuntimeError, ValueError), match=r"^(?!the examples)"):
        next(iter(loader))
    with pytest.raises(
        TypeError, match=r"takes no timeout, got 3; build.*timeout=\.\.\."
    ):
        plan_for(**TARGET, batch_size=1, dataset_size=2, epochs=1).loader(
            rows, timeout=3
        )


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("colate_fn", "; did you mean 'collate_fn'?"),
        ("unit", "; did you mean 'units'?"),
        ("colour", ""),
    ],
)
def test_a_misspelt_argument_of_a_loader_is_told_what_was_meant(misspelt, meant):
    """It is not said that another loader takes what none takes."""
    plan = plan_for(**TARGET, batch_size=1, dataset_size=2, epochs=1)
    with pytest.raises(TypeError) as error:
        plan.loader([torch.zeros(1)] * 2, **{misspelt: 3})

    assert str(error.value) == f"plan.loader takes no {misspelt}, got 3{meant}"


def test_loaders_know_which_arguments_a_plan_takes():
    """Those of its signature, so that a suggestion is one that helps."""
    parameters = inspect.signature(PrivacyPlan.loader).parameters

    assert {"self", "dataset", *_TAKEN, "refused"} == set(parameters)
