"""That statistics and training together keep one budget, fixed before either."""

import pytest

from dp.accounting import Release, epsilon
from dp.calibration import calibrate_noise_multiplier
from dp.sampling import PoissonSampling, Unamplified
from dp.tables import Recipe, Shape, Shares, Target


def shape(num_units=455, num_measured=30, num_outputs=2, *, is_regression=False):
    return Shape(
        num_units=num_units,
        num_measured=num_measured,
        num_features=30,
        num_outputs=num_outputs,
        is_regression=is_regression,
    )


def target(spent=3.0, delta=1e-5):
    return Target(
        epsilon=spent, delta=delta, relation="zero_out", unit_of_privacy="one row"
    )


@pytest.mark.slow
@pytest.mark.parametrize("spent", [1.0, 3.0, 8.0])
@pytest.mark.parametrize(
    "table",
    [
        shape(),
        shape(142, 13, 3),
        shape(353, 11, 1, is_regression=True),
        shape(24_000, 13),
        shape(num_measured=0),
    ],
    ids=["cancer", "wine", "diabetes", "census", "declared"],
)
def test_statistics_and_training_cost_the_target_together(table, spent):
    """At most, and 0.05 % below it at most."""
    recipe = Recipe.of(table, target(spent))
    plan = recipe.plan(table, target(spent), max_grad_norm=1.0)
    releases = [*recipe.shares.releases, *plan.releases(plan.steps)]
    whole = epsilon(releases, delta=1e-5, neighboring_relation="zero_out").epsilon

    assert 0.9995 * spent <= whole <= spent
    assert plan.target_epsilon <= spent
    assert bool(recipe.shares.releases) == bool(table.num_measured)
    assert plan.guarantee().epsilon <= plan.target_epsilon


@pytest.mark.parametrize(
    ("is_regression", "model", "share"),
    [(True, "linear", 0.75), (True, "mlp", 0.5), (False, "linear", 0.5)],
)
def test_a_linear_regression_averages_more_of_its_steps(is_regression, model, share):
    """Elsewhere weights of the first half have not arrived yet."""
    table = shape(num_outputs=1, is_regression=is_regression)

    assert Recipe.of(table, target(), model=model).averaged_share == share


def test_few_rows_are_trained_on_whole():
    """Batches are drawn from more than 5000, and steps are capped."""
    few = Recipe.of(shape(), target()).plan(shape(), target(), max_grad_norm=1.0)
    many_rows = shape(24_000, 13)
    many = Recipe.of(many_rows, target())
    plan = many.plan(many_rows, target(), max_grad_norm=1.0)

    assert isinstance(few.sampling, Unamplified)
    assert plan.sampling == PoissonSampling(sampling_probability=5000 / 24_000)
    assert many.model == "mlp"
    assert many.steps == 1000


def test_what_is_given_stays():
    """Model, steps and batches of the user's own."""
    recipe = Recipe.of(
        shape(), target(), model="mlp", steps=7, sampling_probability=0.5
    )

    assert (recipe.model, recipe.steps, recipe.sampling_probability) == ("mlp", 7, 0.5)


def test_moments_are_left_out_where_they_would_say_nothing():
    """Which public numbers decide, before anything is spent."""
    assert Shares.of(shape(), target(1.0)).moments is None
    assert Shares.of(shape(24_000, 13), target(1.0)).moments is not None


@pytest.mark.slow
def test_noise_is_calibrated_beside_other_releases():
    """The others are paid first; where they leave nothing, that is said."""
    about = {
        "target_epsilon": 1.0,
        "target_delta": 1e-5,
        "sampling_probability": 0.1,
        "steps": 50,
        "neighboring_relation": "zero_out",
    }
    other = Release(sampling_probability=1.0, noise_multiplier=8.0, count=1)
    alone = calibrate_noise_multiplier(**about)
    beside = calibrate_noise_multiplier(**about, other_releases=[other])
    run = Release(sampling_probability=0.1, noise_multiplier=beside, count=50)
    spent = epsilon([other, run], delta=1e-5, neighboring_relation="zero_out").epsilon

    assert beside > alone
    assert 0.9995 <= spent <= 1.0
    with pytest.raises(ValueError, match="leaves nothing for the steps; add noise"):
        calibrate_noise_multiplier(
            **about,
            other_releases=[
                Release(sampling_probability=1.0, noise_multiplier=2.0, count=1)
            ],
        )
