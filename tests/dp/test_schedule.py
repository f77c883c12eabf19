"""That a schedule is a value, and that every stage sees the same number of it."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, strategies as st

import dp
from dp import DPOptimizer, PoissonSampling, PrivacyError, Schedule, Unamplified
from dp.accounting import Release, merge_equal_releases
from dp.clipping import FlatClipping


ALL = PoissonSampling(sampling_probability=1.0)
phases = st.lists(
    st.tuples(st.integers(1, 5), st.floats(0, 9)), min_size=1, max_size=4
).map(tuple)


@given(phases, st.integers(0, 30))
def test_runs_are_the_values_step_by_step(phases, num_steps):
    """Counting by runs and asking for every step give the same."""
    schedule = Schedule(phases)
    by_runs = [v for count, v in schedule.phases_until(num_steps) for _ in range(count)]

    assert by_runs == [schedule(step) for step in range(num_steps)]


def test_a_schedule_is_a_value():
    """It is equal, hashable and copied as what it holds."""
    schedule = Schedule([(2, 1.0), (3, 0.5)])

    assert schedule == Schedule(((2, 1.0), (3, 0.5)))
    assert hash(schedule) == hash(copy.deepcopy(schedule))
    assert schedule.scaled(2) == Schedule([(2, 2.0), (3, 1.0)])


def test_a_function_of_the_step_is_evaluated_at_once():
    """Equal values become one phase; rounding goes up, so noise is never less."""
    schedule = Schedule.of(lambda step: 1.0 - step / 3000, steps=1000, digits=2)

    assert schedule(0) == 1.0
    assert schedule(500) == 0.84
    assert len(schedule.phases) < 40
    assert all(schedule(step) >= 1.0 - step / 3000 for step in range(1000))
    assert Schedule.of(lambda _: 0.0, steps=3) == Schedule([(3, 0.0)])


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([], "a schedule needs a phase"),
        ([(0, 1.0)], "steps_of_a_phase must be a whole number >= 1, got 0"),
        ([(1, -1.0)], "value_of_a_phase must be >= 0 and finite, got -1.0"),
    ],
)
def test_an_invalid_schedule_is_refused(phases, told):
    """The message names the number and its value."""
    with pytest.raises(ValueError, match=told):
        Schedule(phases)


def released(run, batch):
    """The scale of what a step did to a wide parameter: noise over batch size."""
    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()
    return run.wide.grad.std().item() * run.optimizer.plan.expected_batch_size


@pytest.fixture
def wide_run(make_run):
    """A run with a parameter that no example reaches: it shows the noise alone."""

    def make(**changes):
        run = make_run(**changes)
        run.wide = torch.nn.Parameter(torch.zeros(20_000))
        run.optimizer.add_param_group({"params": [run.wide]})
        return run

    return make


@pytest.mark.statistical
def test_noise_and_charges_follow_the_plans_schedules(wide_run, decisions):
    """Noise of sigma_t C_t, and the ledger has both.

    20 000 draws have a standard error of 0.5 %: false alarms 5e-15, and a scale that is
    off by 6 % is missed with probability 3e-5.
    """
    run = wide_run(
        noise_multiplier=Schedule([(1, 2.0), (1, 1.0)]),
        max_grad_norm=Schedule([(2, 1.0), (1, 0.25)]),
    )
    scales = [
        released(run, batch) for batch, _ in zip(run.loader, range(4), strict=False)
    ]

    for scale, planned in zip(scales, [2.0, 1.0, 0.25, 0.25], strict=True):
        assert not decisions.differs("scale", scale, planned, rel=0.04)
    assert [
        (c.noise_multiplier, c.max_grad_norm, c.count)
        for c in run.optimizer.ledger.charges()
    ] == [(2.0, 1.0, 1), (1.0, 1.0, 1), (1.0, 0.25, 2)]
    assert run.optimizer.ledger.releases() == merge_equal_releases(
        run.optimizer.plan.releases(4)
    )


def test_clipping_follows_the_schedule_of_the_norm(make_run):
    """The sum of clipped gradients shrinks as C does; noise is off to see it."""
    run = make_run(
        sampling=ALL,
        noise_multiplier=0.0,
        max_grad_norm=Schedule([(1, 1e-3), (1, 1e-5)]),
        expected_batch_size=1.0,
    )
    norms = []
    for batch, _ in zip(run.loader, range(2), strict=False):
        run.optimizer.backward(run.losses(batch) * 1e6)
        run.optimizer.step()
        norms.append(
            torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm()
        )

    assert norms[0] <= 20 * 1e-3
    assert 0 < norms[1] <= 20 * 1e-5


@pytest.mark.statistical
def test_an_assigned_number_holds_in_every_stage(wide_run, decisions):
    """Noise, clipping and charges read one place; deleting returns to the plan.

    Rates of error as above: false alarms 3e-15.
    """
    run = wide_run(noise_multiplier=1.0, sampling=ALL)
    batches = iter(run.loader)
    run.optimizer.noise_multiplier = 3.0
    run.optimizer.max_grad_norm = 0.5
    first = released(run, next(batches))
    del run.optimizer.noise_multiplier
    del run.optimizer.max_grad_norm
    second = released(run, next(batches))

    assert not decisions.differs("assigned", first, 1.5, rel=0.04)
    assert not decisions.differs("planned", second, 1.0, rel=0.04)
    assert [
        (c.noise_multiplier, c.max_grad_norm) for c in run.optimizer.ledger.charges()
    ] == [(3.0, 0.5), (1.0, 1.0)]


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- our own bytes


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_keeps_what_was_assigned(make_run, copied):
    """And its own assignments stay its own."""
    run = make_run()
    run.optimizer.noise_multiplier = 3.0
    twin = copied(run.optimizer)
    twin.max_grad_norm = 0.5

    assert (twin.noise_multiplier, twin.max_grad_norm) == (3.0, 0.5)
    assert (run.optimizer.noise_multiplier, run.optimizer.max_grad_norm) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("noise_multiplier", -1.0), ("max_grad_norm", 0.0), ("max_grad_norm", "1")],
)
def test_only_a_number_in_range_can_be_assigned(make_run, name, value):
    """The message is that of the plan, and nothing changes."""
    run = make_run()

    with pytest.raises(ValueError, match=f"{name} must be"):
        setattr(run.optimizer, name, value)
    assert getattr(run.optimizer, name) == 1.0


def test_a_norm_that_changes_within_a_batch_is_refused(make_run):
    """Its sum was clipped to one norm and would get the noise of another."""
    run = make_run()
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    run.optimizer.max_grad_norm = 0.1

    with pytest.raises(PrivacyError, match=r"max_grad_norm changed from 1\.0 to 0\.1"):
        run.optimizer.step()
    assert run.optimizer.ledger.steps == 0


def test_a_custom_rule_is_scaled_with_the_norm(make_plan):
    """The factor is the rule's own, for a norm in the rule's own unit."""
    rule = FlatClipping(max_grad_norm=4.0)
    plan = make_plan(
        sampling=Unamplified(), max_grad_norm=Schedule([(1, 4.0), (1, 1.0)])
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = DPOptimizer(torch.optim.SGD([weight], lr=1.0), plan=plan, clipping=rule)
    optimizer.backward(weight * torch.tensor([8.0, 0.0]))
    optimizer.step()
    clipping = optimizer.mechanism.effective_clipping

    assert clipping.factors(torch.tensor([[8.0, 0.5]])).tolist() == [
        pytest.approx([1 / 8, 1.0], rel=1e-5)
    ]
    assert clipping.sensitivity("replace_one") == 2.0
    assert clipping.group_of([weight]) == [0]


@pytest.mark.slow
def test_a_plan_finds_the_number_that_is_left_out():
    """Noise, steps or the sampling probability; a schedule of noise is a shape."""
    common = {
        "target_epsilon": 2.0,
        "target_delta": 1e-5,
        "max_grad_norm": 1.0,
        "expected_batch_size": 10.0,
    }
    by_shape = dp.plan_for(
        **common, steps=4, noise_multiplier=Schedule([(2, 2.0), (2, 1.0)])
    )
    by_steps = dp.plan_for(**common, noise_multiplier=8.0)
    by_probability = dp.plan_for(
        **common, noise_multiplier=2.0, steps=10, sampling_probability="largest"
    )

    for plan in (by_shape, by_steps, by_probability):
        assert 1.9 < plan.guarantee().epsilon <= 2.0
    assert by_shape.noise_multiplier(0) == 2 * by_shape.noise_multiplier(3)
    assert by_shape.releases(3) == (
        Release(
            sampling_probability=1.0,
            noise_multiplier=by_shape.noise_multiplier(0),
            count=2,
        ),
        Release(
            sampling_probability=1.0,
            noise_multiplier=by_shape.noise_multiplier(2),
            count=1,
        ),
    )
    assert isinstance(by_steps.sampling, Unamplified)
    assert 0 < by_probability.sampling_probability < 1


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"steps": 4, "noise_multiplier": 1.0},
        {"noise_multiplier": 1.0, "sampling_probability": "largest"},
        {"steps": 4, "sampling_probability": "largest"},
        {"noise_multiplier": Schedule([(1, 1.0)])},
    ],
)
def test_exactly_one_number_is_left_out(given):
    """What is over- or under-determined is refused, with what was given."""
    with pytest.raises(ValueError, match="leave out exactly one number"):
        dp.plan_for(
            target_epsilon=2.0,
            target_delta=1e-5,
            max_grad_norm=1.0,
            expected_batch_size=10.0,
            **given,
        )


@pytest.mark.parametrize("norm", [1e-19, 1e-30, 1e19])
def test_a_norm_has_the_range_of_a_rule_wherever_it_comes_from(make_plan, norm):
    """Squares near it underflow in float32: one example moved a sum by 2e5 C."""
    with pytest.raises(ValueError, match=r"max_grad_norm must be in \[1e-18, 1e\+18\]"):
        make_plan(max_grad_norm=Schedule([(1, 1.0), (9, norm)]))
    weight = torch.nn.Parameter(torch.zeros(1))
    plan = make_plan(sampling=Unamplified())
    optimizer = DPOptimizer(torch.optim.SGD([weight], lr=1.0), plan=plan)
    with pytest.raises(ValueError, match=r"max_grad_norm must be in \[1e-18, 1e\+18\]"):
        optimizer.max_grad_norm = norm

    assert optimizer.max_grad_norm == 1.0
