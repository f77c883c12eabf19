"""Correlated noise: its coefficients, its plan, and what a step releases.

A theorem says what it costs, and fails in five ways; each has a test in the section
"The ways in which the theorem fails".
"""

import copy
import io
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import (
    BandedNoise,
    CyclicPoisson,
    DPOptimizer,
    GaussianNoise,
    PoissonSampling,
    PrivacyPlan,
    RandomAllocation,
    Schedule,
)
from dp.accounting import Release, epsilon, group_epsilon, merge_equal_releases
from dp.exceptions import (
    BudgetExhaustedError,
    LedgerError,
    PrivacyError,
    SamplingMismatchError,
    UnsupportedOperationError,
)
from dp.ledger import Ledger
from dp.noise._gaussian import witnessed
from dp.sampling import PassStep


CYCLIC = CyclicPoisson(sampling_probability=0.25, bands=4)
FOUR = BandedNoise.optimal(4, steps=20)
ONE_EXAMPLE = 1 + 1e-6  # What one example adds to all sums, up to rounding.


@pytest.fixture
def make_correlated(make_run):
    """Build a run of 20 steps whose noise has 4 bands; each example is in every 4th."""

    def make(**changes):
        return make_run(**{"sampling": CYCLIC, "correlation": FOUR, **changes})

    return make


class Witness:
    """The sums of each release before and after noise was added."""

    def __init__(self):
        self.sums, self.noisy = [], []

    def __call__(self, add, sums):
        self.sums.append(torch.cat([s.flatten() for s in sums]).clone())
        used = add()
        self.noisy.append(torch.cat([s.flatten() for s in sums]).clone())
        return used

    def norms(self):
        """Return the norm of each sum before noise."""
        return [float(s.norm()) for s in self.sums]


# Coefficients


@pytest.mark.parametrize(
    ("steps", "bands", "square_root", "optimal"),
    [
        (128, 1, 8.031189, 8.031189),
        (128, 2, 6.032360, 5.828211),
        (128, 4, 4.602424, 4.364085),
        (128, 8, 3.600815, 3.432825),
        (128, 16, 2.946099, 2.872554),
        (128, 32, 2.578996, 2.565281),
        (512, 1, 16.015617, 16.015617),
        (512, 2, 11.960588, 11.439301),
        (512, 4, 8.994326, 8.283115),
        (512, 8, 6.810633, 6.151067),
        (512, 16, 5.224213, 4.746778),
        (512, 32, 4.117620, 3.849710),
    ],
)
def test_errors_of_prefix_sums_are_the_published_ones(
    steps, bands, square_root, optimal
):
    """To the digits that two other implementations agree on."""
    root = BandedNoise.square_root(bands).prefix_error(steps)
    least = BandedNoise.optimal(bands, steps=steps).prefix_error(steps)

    assert (round(root, 6), round(least, 6)) == (square_root, optimal)


def test_coefficients_are_the_published_ones():
    """Of the square root exactly, of the minimum to six digits."""
    assert BandedNoise.square_root(4).coefficients == (1.0, 0.5, 0.375, 0.3125)
    best = [BandedNoise.optimal(2, steps=n).coefficients[1] for n in (128, 512)]
    assert best == pytest.approx([0.778142, 0.854078], abs=1e-6)
    assert BandedNoise.optimal(4, steps=128).coefficients[1:] == pytest.approx(
        [0.726440, 0.630946, 0.549763], abs=1e-6
    )


@pytest.mark.parametrize("steps", [1, 3, 100, 20_000])
@pytest.mark.parametrize("bands", [2, 8])
def test_the_minimum_is_no_larger_than_the_square_root(steps, bands):
    """Nor than independent noise, also over fewer steps than bands."""
    least = BandedNoise.optimal(bands, steps=steps).prefix_error(steps)

    assert least <= BandedNoise.square_root(bands).prefix_error(steps) + 1e-12
    assert least <= math.sqrt((steps + 1) / 2) + 1e-9


def test_the_error_is_that_of_the_matrices():
    """The definition, by dense inverses."""
    n, noise = 40, BandedNoise((1.0, -0.3, 0.7))
    c = noise.coefficients
    matrix = sum(np.eye(n, k=-k) * c[k] for k in range(3))
    rows = np.tril(np.ones((n, n))) @ np.linalg.inv(matrix)

    expected = np.linalg.norm(rows) / math.sqrt(n) * np.linalg.norm(c)
    assert noise.prefix_error(n) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "noise",
    [
        *(BandedNoise.square_root(b) for b in range(1, 33)),
        BandedNoise.optimal(16, steps=512),
        BandedNoise((3.0, 4.0)),
        BandedNoise((1.0, -1.0, 1e-30)),
        BandedNoise((0.5,)),
        BandedNoise((1.0, 2.0**-30)),  # The norm of which is rounded down to 1.
        BandedNoise((1.0, 0.0, 2.0**-11.5)),
        BandedNoise((1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_no_column_is_longer_than_one_by_as_much_as_a_rounding(noise):
    """In exact numbers, of which float32 has every one."""
    units = noise.unit_coefficients

    square = sum(Fraction(c) ** 2 for c in units)
    assert 1 - 1e-6 < square <= 1
    assert [float(np.float32(c)) for c in units] == list(units)


@pytest.mark.parametrize(
    "bad", [(), [1.0], (0.0, 1.0), (-1.0,), (1.0, math.inf), (1.0, math.nan)]
)
def test_coefficients_that_define_no_noise_are_refused(bad):
    """With what was given."""
    with pytest.raises(ValueError, match="coefficients must be"):
        BandedNoise(bad)


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_numbers_of_bands_and_steps_are_whole(bad):
    """As every count is."""
    for make in (
        BandedNoise.square_root,
        lambda n: BandedNoise.optimal(n, steps=4),
        lambda n: BandedNoise.optimal(4, steps=n),
        BandedNoise.square_root(2).prefix_error,
    ):
        with pytest.raises((TypeError, ValueError)):
            make(bad)


# The plan


def test_a_plan_states_its_correlation(make_plan):
    """It is written and read, and plans without one say nothing of it."""
    plan = make_plan(sampling=CYCLIC, correlation=FOUR)

    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert "correlation" not in make_plan().to_dict()
    assert (plan.bands, make_plan().bands) == (4, None)
    assert plan.sampling_probability == 0.25
    assert plan.releases(8) == (
        Release(sampling_probability=0.25, noise_multiplier=1.0, count=8, bands=4),
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sampling": PoissonSampling(sampling_probability=0.25)}, "CyclicPoisson"),
        ({"sampling": RandomAllocation(steps_per_pass=4)}, "in the next step: plan wi"),
        ({"sampling": dp.Unamplified()}, "correlation has 4 bands"),
        ({"steps": 18}, "a multiple of bands=4.*got 18; plan for 20"),
        ({"noise_multiplier": Schedule([(4, 2.0), (4, 1.0)])}, "noise_multiplier must"),
        ({"max_grad_norm": Schedule([(4, 2.0), (4, 1.0)])}, "max_grad_norm must be a"),
        ({"renyi_order": 8.0}, "renyi_order must be None with cyclic Poisson"),
        ({"group_size": 2}, "group_size must be 1 with cyclic Poisson"),
    ],
)
def test_a_plan_without_a_bound_is_refused(make_plan, change, told):
    """Before anything is drawn."""
    with pytest.raises(ValueError, match=told):
        make_plan(**{"sampling": CYCLIC, "correlation": FOUR, **change})


ABOUT = {
    "target_delta": 1e-5,
    "max_grad_norm": 1.0,
    "expected_batch_size": 10,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bands", "sigma", "ratio"),
    [
        (1, 0.6097, 1.0),
        (2, 0.6865, 0.804),
        (4, 0.7924, 0.672),
        (8, 0.9418, 0.593),
        (16, 1.1514, 0.560),
    ],
)
def test_noise_for_the_same_epsilon_is_the_published_one(bands, sigma, ratio):
    """And so is the error of prefix sums against independent noise, to three digits."""
    plan = dp.plan_for(
        **ABOUT,
        target_epsilon=8.0,
        sampling_probability=1 / 64,
        steps=512,
        mechanism="correlated",
        bands=bands,
    )

    assert plan.noise_multiplier == pytest.approx(sigma, abs=1e-4)
    error = plan.noise_multiplier * plan.correlation.prefix_error(512)
    assert error / (0.609677 * math.sqrt(513 / 2)) == pytest.approx(ratio, abs=5e-4)
    assert 7.996 < plan.guarantee().epsilon <= 8.0
    assert plan.sampling.bands == bands


@pytest.mark.slow
def test_the_number_of_bands_is_chosen():
    """By the error, which is told; of 512 steps at epsilon 8, sixteen are best."""
    numbers = {**ABOUT, "target_epsilon": 8.0, "sampling_probability": 1 / 64}
    plan, best = (
        dp.plan_for(**numbers, steps=512, mechanism=mechanism)
        for mechanism in ("correlated", "best")
    )

    assert plan.sampling == CyclicPoisson(sampling_probability=1 / 64, bands=16)
    assert best.correlation == plan.correlation
    assert best.compared[0] == plan.compared[0]
    assert best.compared[2] == plan.compared[1]
    assert "16 bands" in plan.compared[1]
    assert "memory for 30 copies of the parameters" in plan.compared[1]


@pytest.mark.slow
def test_independent_noise_is_taken_where_it_has_less_error():
    """So correlated noise is never worse: here batches are of half of the data."""
    plan = dp.plan_for(
        **ABOUT,
        target_epsilon=1.0,
        sampling_probability=0.5,
        steps=64,
        mechanism="correlated",
    )

    assert plan.sampling == PoissonSampling(sampling_probability=0.5)
    assert plan.correlation is None
    assert len(plan.compared) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 17}, "steps=17 have no divisor from 2 to 16"),
        ({"sampling_probability": 0.6}, "have no divisor"),
        ({"group_size": 2}, "group_size must be 1 with cyclic"),
        ({"renyi_order": 8.0}, "renyi_order must be None with cyclic"),
        ({"max_grad_norm": Schedule([(10, 1.0)])}, "max_grad_norm must be a number"),
        (
            {
                "max_batch_size": 30,
                "dataset_size": 100,
                "neighboring_relation": "zero_out",
            },
            "batches are truncated",
        ),
    ],
)
def test_independent_noise_is_taken_where_correlation_has_no_bound(change, told):
    """``"best"`` says why; ``"correlated"`` refuses by name."""
    numbers = {
        **ABOUT,
        "target_epsilon": 3.0,
        "sampling_probability": 0.1,
        "steps": 20,
        **change,
    }

    plan = dp.plan_for(**numbers, mechanism="best")

    assert plan.correlation is None
    assert any(
        sentence.startswith("Correlated noise was not:") for sentence in plan.compared
    )
    with pytest.raises(ValueError, match=told):
        dp.plan_for(**numbers, mechanism="correlated")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bands": 2}, "bands=2 is for correlated noise"),
        ({"mechanism": "allocation", "bands": 2}, "got 'allocation'"),
        ({"mechanism": "correlated", "noise_multiplier": 1.0}, "no noise_multiplier"),
        ({"mechanism": "correlated", "steps": None}, "give these two"),
        ({"mechanism": "correlated", "bands": 3}, "multiple of bands=3"),
        ({"mechanism": "correlated", "bands": 20}, "at most 1 / bands"),
        ({"mechanism": "correlated", "bands": 0}, "bands must be a whole number"),
    ],
)
def test_numbers_of_bands_that_cannot_be_planned_are_refused(change, told):
    """With what was given."""
    numbers = {
        **ABOUT,
        "target_epsilon": 3.0,
        "sampling_probability": 0.1,
        "steps": 20,
        **change,
    }
    with pytest.raises(ValueError, match=told):
        dp.plan_for(**numbers)


# What it costs


@pytest.mark.parametrize("relation", ["add_or_remove_one", "zero_out", "replace_one"])
@pytest.mark.parametrize("steps", [4, 37, 40])
def test_a_round_costs_one_poisson_sample(relation, steps):
    """At the coin of an eligible example; a part of a round costs all of it."""
    about = {"delta": 1e-5, "neighboring_relation": relation}
    rounds = Release(
        sampling_probability=0.1, noise_multiplier=1.0, count=steps, bands=4
    )
    samples = Release(
        sampling_probability=0.4, noise_multiplier=1.0, count=-(-steps // 4)
    )

    assert epsilon([rounds], **about) == epsilon([samples], **about)
    assert rounds.num_participations == samples.count
    assert str(dp.accounting.to_dp_event([rounds])) == str(
        dp.accounting.to_dp_event([samples])
    )


def test_parts_of_two_rounds_are_no_round():
    """Where they are counted together."""
    part = Release(sampling_probability=0.1, noise_multiplier=1.0, count=2, bands=4)

    (both,) = merge_equal_releases([part, part])

    assert (both.count, both.bands) == (8, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"bands": 0},
        {"bands": 11},
        {"bands": 4, "steps_per_pass": 10},
        {
            "bands": 4,
            "truncation": dp.accounting.Truncation(max_batch_size=3, dataset_size=9),
        },
    ],
)
def test_releases_that_are_no_rounds_are_refused(change):
    """By the numbers that contradict one another."""
    with pytest.raises(ValueError, match="bands"):
        Release(
            **{
                "sampling_probability": 0.1,
                "noise_multiplier": 1.0,
                "count": 1,
                **change,
            }
        )


def test_groups_of_examples_have_no_bound():
    """Each has a group of its own, which the theorem is not about."""
    release = Release(sampling_probability=0.1, noise_multiplier=1.0, count=4, bands=4)
    about = {"delta": 1e-5, "neighboring_relation": "zero_out", "group_size": 2}

    for cost in (epsilon, group_epsilon):
        with pytest.raises(UnsupportedOperationError, match="CyclicPoisson"):
            cost([release], **about)


def test_a_renyi_filter_knows_no_rounds(make_plan):
    """A plan with one refuses a state that was charged for them."""
    rounds = Ledger(make_plan(sampling=CYCLIC))
    reserve(rounds, place(0))
    ledger = Ledger(make_plan(renyi_order=8.0))
    ledger.load_state_dict(rounds.state_dict())

    with pytest.raises(ValueError, match="has no bound for rounds by cyclic Poisson"):
        ledger.spent()


# What a step releases


def final_weights(correlation, sigma=0.0, seed=7):
    """Train a linear model with noise and batches of a debugging seed."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 3), torch.randn(60)
    model = nn.Linear(3, 1)
    plan = PrivacyPlan(
        sampling=CyclicPoisson(sampling_probability=0.1, bands=4),
        correlation=correlation,
        noise_multiplier=sigma,
        max_grad_norm=1.0,
        expected_batch_size=6.0,
        steps=40,
        target_delta=1e-5,
    )
    loader = plan.loader(TensorDataset(x, y))
    sgd = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    noise = GaussianNoise(rng="debug", seed=seed)
    optimizer = DPOptimizer(sgd, plan=plan, loader=loader, noise=noise)
    for a, b in loader:
        optimizer.backward((model(a).squeeze(1) - b).square())
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
def test_without_noise_a_run_is_the_ordinary_one_up_to_rounding():
    """The recursion gives back every sum."""
    ordinary = final_weights(None)

    assert torch.allclose(final_weights(FOUR), ordinary, atol=1e-6)
    assert not torch.allclose(final_weights(FOUR, sigma=1.0), ordinary, atol=1e-2)


def test_sums_keep_their_parameters_whatever_their_memory_is(make_correlated):
    """An empty batch lays them out in another way than one whose gradients are found."""
    run, released, noisy = make_correlated(num_features=2), [], []
    right = GaussianNoise.add_

    def add_(self, sums, *, stddev):
        used = right(self, sums, stddev=stddev)
        values = run.optimizer.mechanism.recursion._totals
        noisy.append(torch.cat([value.flatten() for value in values]).clone())
        return used

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GaussianNoise, "add_", add_)
        for step, (x, y) in enumerate(run.loader):
            output = run.model(x).squeeze(1) - y
            run.optimizer.backward(output if step % 2 else output - run.model.bias)
            run.optimizer.step()
            grads = [p.grad.flatten() for p in run.model.parameters()]
            released.append(torch.cat(grads) * 10)

    units = FOUR.unit_coefficients
    for t in range(20):
        combined = sum(units[k] * released[t - k] for k in range(min(t, 3) + 1))
        assert torch.allclose(combined, noisy[t], atol=1e-5)


@pytest.mark.slow
def test_one_band_is_independent_noise():
    """To the last bit: it is DP-SGD."""
    one = BandedNoise((2.0,))

    assert torch.equal(final_weights(one, sigma=1.0), final_weights(None, sigma=1.0))


@pytest.mark.statistical
def test_prefix_sums_have_the_error_that_is_told(make_correlated, decisions):
    """Of 4000 coordinates, 20 steps and an example without a gradient.

    False alarms: below 1e-9. Independent noise has half as much error again.
    """
    run = make_correlated(num_examples=1, num_features=4000, lr=1.0)
    start = run.model.weight.detach().clone()
    errors = []
    for batch in run.loader:
        run.optimizer.backward(0 * run.losses(batch))
        run.optimizer.step()
        errors.append(((run.model.weight.detach() - start) * 10).square().mean())

    found = math.sqrt(float(torch.stack(errors).mean()))
    assert not decisions.differs("error", found, FOUR.prefix_error(20), rel=0.1)
    assert FOUR.prefix_error(20) < 0.7 * math.sqrt(21 / 2)


def test_the_noise_of_a_release_is_known(make_correlated):
    """To whatever corrects for it: it is the norm of a row of the inverse matrix."""
    run = make_correlated()
    units = FOUR.unit_coefficients
    matrix = sum(np.eye(20, k=-k) * units[k] for k in range(4))
    rows = np.linalg.norm(np.linalg.inv(matrix), axis=1)
    found = []
    for batch in run.loader:
        run.optimizer.backward(run.losses(batch))
        run.optimizer.step()
        found.append(run.optimizer.mechanism.released_stddev * 10)

    assert found == pytest.approx(list(rows), rel=1e-9)


def test_noisy_sums_are_rounded_to_the_lattice(make_correlated):
    """Before anything is computed from them; so no rounding is of private numbers."""
    run, witness = make_correlated(), Witness()
    with witnessed(witness):
        run.train(20)

    spacing = GaussianNoise().granularity(stddev=1.0)
    for noisy in witness.noisy:
        assert torch.equal(noisy, (noisy / spacing).round() * spacing)


def test_releases_follow_from_noisy_sums(make_correlated):
    """By the recursion that is stated, whatever the sums are."""
    run, witness, released = make_correlated(), Witness(), []
    with witnessed(witness):
        for batch in run.loader:
            run.optimizer.backward(run.losses(batch))
            run.optimizer.step()
            grads = [p.grad.flatten() for p in run.model.parameters()]
            released.append(torch.cat(grads) * 10)

    units = FOUR.unit_coefficients
    for t, noisy in enumerate(witness.noisy):
        combined = sum(units[k] * released[t - k] for k in range(min(t, 3) + 1))
        assert torch.allclose(combined, noisy, atol=1e-5)


# The ways in which the theorem fails


def blocks(norms, *, bands=4):
    """Return the norm of all that one participation adds, by the step that it is in."""
    return [math.hypot(*norms[t : t + bands]) for t in range(0, len(norms), bands)]


@pytest.fixture
def lone(make_correlated):
    """Build a run on one example of group 0, whose gradient is always clipped."""

    def make(monkeypatch, **changes):
        monkeypatch.setattr(
            "dp.sampling._cyclic_loader.allocate_at_random",
            lambda num_examples, *, num_steps: [
                np.arange(num_examples if i == 0 else 0, dtype=np.uint64)
                for i in range(num_steps)
            ],
        )
        run = make_correlated(num_examples=1, **changes)
        run.losses = lambda batch: 1e4 * run.model(batch[0]).squeeze(1)
        return run

    return make


def test_one_participation_adds_a_vector_of_the_clipping_norm(lone, monkeypatch):
    """Over all steps that it is in, until the next one: no more, and no less."""
    run, witness = lone(monkeypatch), Witness()
    with witnessed(witness):
        run.train(20)

    assert blocks(witness.norms()) == pytest.approx([1.0] * 5, rel=1e-5)


@pytest.mark.filterwarnings("ignore:a batch was drawn and left out")
@pytest.mark.parametrize("skipped", [{1}, {2, 3}, {3}, {5, 10, 15}, {1, 2, 3, 7}])
def test_a_skipped_step_does_not_bring_participations_closer(
    lone, monkeypatch, skipped
):
    """1: eligibility and recursion count the same; what follows a gap begins anew."""
    run, witness = lone(monkeypatch), Witness()
    positions = []
    with witnessed(witness):
        for position, batch in enumerate(run.loader):
            if position in skipped:
                continue
            run.optimizer.backward(run.losses(batch))
            run.optimizer.step()
            positions.append(position)

    norms = dict(zip(positions, witness.norms(), strict=True))
    for start in range(0, 20, 4):
        block = [norms.get(position, 0.0) for position in range(start, start + 4)]
        assert math.hypot(*block) <= ONE_EXAMPLE
    for gap in skipped - {19}:
        following = gap + 1
        if following not in skipped and following % 4:
            assert norms[following] == 0.0


def test_a_parameter_without_gradients_takes_part_in_the_recursion(make_correlated):
    """2: its sums are zeros, and its noise is correlated as all other noise."""
    run, witness, released = make_correlated(num_features=2), Witness(), []
    with witnessed(witness):
        for step, (x, _) in enumerate(run.loader):
            output = run.model(x).squeeze(1)
            losses = output if step % 2 else output - run.model.bias
            run.optimizer.backward(losses)
            run.optimizer.step()
            released.append(run.model.bias.grad.clone() * 10)

    units = FOUR.unit_coefficients
    for t in range(20):
        combined = sum(units[k] * released[t - k] for k in range(min(t, 3) + 1))
        assert float((witness.noisy[t] - combined).abs().min()) < 1e-5


def test_sums_of_another_clipping_norm_count_in_units_of_theirs(lone, monkeypatch):
    """2: so a participation adds the same share of the norm of every step."""
    run, witness = lone(monkeypatch), Witness()
    norms = []
    with witnessed(witness):
        for position, batch in enumerate(run.loader):
            if position % 4 == 0:
                run.optimizer.max_grad_norm = 10.0 ** -(position // 4)
            norms.append(run.optimizer.max_grad_norm)
            run.optimizer.backward(run.losses(batch))
            run.optimizer.step()

    shares = [a / b for a, b in zip(witness.norms(), norms, strict=True)]
    assert blocks(shares) == pytest.approx([1.0] * 5, rel=1e-5)


def test_a_norm_that_changes_between_rounds_scales_earlier_sums(monkeypatch, lone):
    """2: what is left of a block in the next round is scaled to the norm there."""
    run, witness = lone(monkeypatch), Witness()
    first = next(iter(run.loader))
    mechanism = run.optimizer.mechanism
    del first
    with witnessed(witness):
        for position, norm in enumerate((1.0, 1.0, 0.01, 100.0)):
            sums = [torch.ones(3) * norm if position == 0 else torch.zeros(3)]
            with mechanism.recursion.step(
                place(position, position=position),
                (),
                segment="one",
                num_ranks=1,
                max_grad_norm=norm,
            ):
                mechanism.recursion.combine(sums)
                mechanism.noise.add_(sums, stddev=norm)
                mechanism.recursion.separate(sums)

    for position, norm in enumerate((1.0, 1.0, 0.01, 100.0)):
        expected = FOUR.unit_coefficients[position] * norm
        assert witness.sums[position].tolist() == pytest.approx([expected] * 3)


def test_more_coefficients_than_bands_are_refused(make_plan):
    """3: fewer are not; the norm is that of the very coefficients that are used."""
    with pytest.raises(
        ValueError, match=r"one of 5 steps in a row at most; got CyclicPoisson"
    ):
        make_plan(sampling=CYCLIC, correlation=BandedNoise.square_root(5))

    assert make_plan(sampling=CYCLIC, correlation=BandedNoise.square_root(3))
    assert make_plan(sampling=CYCLIC).correlation is None


def test_groups_are_no_permutation():
    """4: whether one example is there moves no other; sizes vary as coins do."""
    sizes = []
    for _ in range(20):
        loader = dp.CyclicPoissonLoader(
            range(200), sampling_probability=0.5, bands=2, steps=2
        )
        sizes.append([len(batch) for batch in loader])

    assert all(sum(pair) == 200 for pair in sizes)
    # Equal sizes twenty times in a row: probability 1e-25.
    assert any(pair[0] != 100 for pair in sizes)


def secrets(run):
    """Return the bytes of all private sums that a run keeps."""
    histories = run.optimizer.mechanism.recursion._histories
    assert histories
    return [
        tensor.numpy().tobytes()
        for history in histories
        for past in history.sums
        for tensor in past.tensors
        if tensor.numel() > 1
    ]


def test_no_state_holds_anything_of_the_recursion(make_correlated):
    """5: neither a checkpoint, nor a pickle, nor a copy."""
    run = make_correlated(num_features=50)
    run.train(7)
    kept = secrets(run)
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    copied = copy.deepcopy(run.optimizer.mechanism)
    pickled = pickle.dumps(run.optimizer.mechanism)

    assert len(kept) == 3
    for secret in kept:
        assert secret not in file.getvalue()
        assert secret not in pickled
    assert copied.recursion._histories == []
    assert pickle.loads(pickled).recursion._histories == []  # noqa: S301 -- our own


def test_a_resume_begins_anew_and_pays_for_a_round(
    make_correlated, check_resumed_steps
):
    """5: the round that was broken off stays charged; nothing is needed to go on."""
    check_resumed_steps(make_correlated(), make_correlated())


def test_a_state_that_is_loaded_ends_the_correlation(lone, monkeypatch):
    """5: its parameters have none of the noise that would be taken back."""
    run, witness = lone(monkeypatch), Witness()
    state = copy.deepcopy(run.optimizer.state_dict())
    with witnessed(witness):
        for position, batch in zip(range(4), run.loader, strict=False):
            if position == 2:
                run.optimizer.load_state_dict(state)
            run.optimizer.backward(run.losses(batch))
            run.optimizer.step()

    assert [norm > 0 for norm in witness.norms()] == [True, True, False, False]


# When the recursion begins anew


def test_an_iteration_begins_the_recursion_anew(lone, monkeypatch):
    """Examples have other groups then, and may be in its first step again."""
    run, witness = lone(monkeypatch), Witness()
    with witnessed(witness):
        run.train(2)
        run.train(4)

    norms = witness.norms()
    assert norms[2] == pytest.approx(norms[0], rel=1e-5)
    assert math.hypot(*norms[2:]) <= ONE_EXAMPLE
    assert run.optimizer.ledger.steps == 8


def test_another_iteration_does_not_go_on_where_one_was_left(lone, monkeypatch):
    """Its third step follows no second one, though that number was released last."""
    run, witness = lone(monkeypatch), Witness()
    with witnessed(witness):
        run.train(2)
        for position, batch in zip(range(3), run.loader, strict=False):
            if position == 2:
                run.optimizer.backward(run.losses(batch))
                run.optimizer.step()

    assert [norm > 0 for norm in witness.norms()] == [True, True, False]


def test_other_parameters_begin_the_recursion_anew(lone, monkeypatch):
    """Their sums are of other things."""
    run, witness = lone(monkeypatch), Witness()
    with witnessed(witness):
        for position, batch in zip(range(3), run.loader, strict=False):
            run.model.bias.requires_grad_(position < 1)
            run.optimizer.backward(run.losses(batch))
            run.optimizer.step()

    assert [norm > 0 for norm in witness.norms()] == [True, False, False]


@pytest.mark.filterwarnings("ignore:a batch was drawn and left out")
def test_a_release_that_failed_begins_the_recursion_anew(lone, monkeypatch):
    """It was charged, and some of its sums may have been taken on."""
    run, witness = lone(monkeypatch), Witness()
    right = GaussianNoise.add_

    def broken(self, sums, *, stddev):
        del self, sums, stddev
        raise RuntimeError("no randomness")

    with witnessed(witness):
        for position, batch in zip(range(4), run.loader, strict=False):
            run.optimizer.backward(run.losses(batch))
            if position == 1:
                monkeypatch.setattr(GaussianNoise, "add_", broken)
                with pytest.raises(RuntimeError, match="no randomness"):
                    run.optimizer.step()
                monkeypatch.setattr(GaussianNoise, "add_", right)
            else:
                run.optimizer.step()

    assert [norm > 0 for norm in witness.norms()] == [True, False, False]
    assert run.optimizer.ledger.steps == 4


# Charges


def reserve(ledger, where, **changes):
    numbers = {
        "sampling_probability": 0.25,
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
    }
    ledger.reserve(**{**numbers, **changes}, in_pass=where)


def place(step, number=10**9, num_steps=4, chain=10**9, position=0):
    return PassStep(
        number=number, step=step, num_steps=num_steps, chain=chain, position=position
    )


def test_a_round_is_charged_whole_before_its_first_release(make_correlated):
    """Its other steps are paid for by then."""
    run = make_correlated()
    charged, exhausted = [], []
    for batch in run.loader:
        run.optimizer.backward(run.losses(batch))
        run.optimizer.step()
        charged.append(run.optimizer.ledger.steps)
        exhausted.append(run.optimizer.ledger.is_exhausted)

    assert exhausted == [False] * 19 + [True]
    assert charged == [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4 + [20] * 4
    (charge,) = run.optimizer.ledger.charges()
    assert (charge.count, charge.bands, charge.steps_per_pass) == (20, 4, None)
    assert run.optimizer.spent() == run.optimizer.plan.guarantee()
    with pytest.raises(BudgetExhaustedError):
        run.train(1)


@pytest.mark.parametrize(
    "other",
    [None, place(0, num_steps=5), PassStep(number=1, step=0, num_steps=4)],
)
def test_a_release_of_no_round_or_of_another_scheme_is_refused(make_plan, other):
    """Nothing is charged; a pass by random allocation is no round."""
    ledger = Ledger(make_plan(sampling=CYCLIC))
    with pytest.raises(SamplingMismatchError, match=r"the plan draws by CyclicPoisson"):
        reserve(ledger, other)
    assert ledger.steps == 0
    for sampling in (
        PoissonSampling(sampling_probability=0.25),
        RandomAllocation(steps_per_pass=4),
    ):
        with pytest.raises(SamplingMismatchError, match="of a round of 4 steps"):
            reserve(Ledger(make_plan(sampling=sampling)), place(0))


def test_noise_below_the_plan_is_refused_and_more_of_it_is_not(make_correlated):
    """No bound is proven for it, at any step of a round; more costs no more."""
    run = make_correlated()
    run.train(1)
    told = (
        r"noise_multiplier=0\.99 is below the plan's 1\.0: no bound is proven for less"
    )
    with pytest.raises(PrivacyError, match=told):
        run.optimizer.noise_multiplier = 0.99
    run.optimizer.assign_public(noise_multiplier=0.99, reason="planned")
    with pytest.raises(PrivacyError, match=told):
        run.train(1)
    assert run.optimizer.ledger.steps == 4

    run.optimizer.zero_grad()
    run.optimizer.noise_multiplier = 3.0
    run.train(5)

    assert run.optimizer.ledger.steps == 12
    assert {c.noise_multiplier for c in run.optimizer.ledger.charges()} == {1.0}


def test_the_norm_is_one_in_a_round(make_plan):
    """Its one charge states it."""
    ledger = Ledger(make_plan(sampling=CYCLIC))
    reserve(ledger, place(0))

    with pytest.raises(PrivacyError, match=r"0\.5 within a round"):
        reserve(ledger, place(1), max_grad_norm=0.5)
    with pytest.raises(SamplingMismatchError, match="a round is charged for one"):
        reserve(ledger, place(0))


def test_a_state_keeps_charges_of_rounds(make_correlated):
    """And a state in which a charge was altered is damaged."""
    run = make_correlated()
    run.train(3)
    state = run.optimizer.ledger.state_dict()
    ledger = Ledger(run.optimizer.plan)
    ledger.load_state_dict(json.loads(json.dumps(state)))

    assert ledger.charges() == run.optimizer.ledger.charges()
    for segment in state["segments"].values():
        segment[0]["bands"] = 5
    with pytest.raises(LedgerError, match="at most 1 / bands"):
        Ledger(run.optimizer.plan).load_state_dict(state)


def test_a_state_of_another_correlation_is_told(make_correlated):
    """As every other number of the plan is."""
    run = make_correlated()
    other = make_correlated(correlation=BandedNoise.square_root(4))
    state = run.optimizer.state_dict()

    with pytest.warns(UserWarning, match="correlation="):
        other.optimizer.load_state_dict(state)


# The certificate


@pytest.fixture
def certificate(make_correlated):
    run = make_correlated(
        sampling=CyclicPoisson(sampling_probability=0.1, bands=4), num_examples=100
    )
    run.train(20)
    return run.optimizer.certificate(private_data_touches=())


@pytest.mark.slow
def test_a_certificate_states_rounds_and_verifies(certificate, tmp_path):
    """In words and numbers, which dp_accounting alone finds again."""
    text = certificate.to_text()

    assert "5 x a round of 4 steps, q = 0.4 in one, sigma = 1, C = 1" in text
    assert "of groups of units      none is proven for cyclic Poisson sampling" in text
    assert f"4 bands: 1, {FOUR.coefficients[1]:g}" in text
    assert "Every example was in one group of an iteration" in text
    assert "exactly one batch of each pass" not in text
    assert certificate.epsilon_of_groups == {}
    certificate.write(tmp_path)
    verification = dp.verify(tmp_path / "certificate.json")
    assert verification.ok, verification.to_text()
    assert "by dp_accounting" in verification.computed
    assert dp.Certificate.from_json(certificate.to_json()) == certificate


def test_a_certificate_lists_a_few_coefficients(make_correlated):
    """The plan in its JSON has all of them."""
    run = make_correlated(
        sampling=CyclicPoisson(sampling_probability=0.1, bands=10),
        correlation=BandedNoise.square_root(10),
    )
    run.train(10)

    assert "10 bands: 1, 0.5, 0.375" in run.optimizer.certificate().to_text()
    assert "and 2 more" in run.optimizer.certificate().to_text()


def test_without_amplification_an_example_may_be_in_every_step(certificate):
    """Then correlation adds its contributions up: b times the square, at most."""
    worst = sum(FOUR.unit_coefficients)
    gaussian = epsilon(
        [Release(sampling_probability=1.0, noise_multiplier=1 / worst, count=20)],
        delta=1e-5,
        neighboring_relation="add_or_remove_one",
    )

    assert certificate.epsilon_unamplified >= gaussian.epsilon


def altered(certificate, *path, value):
    body = json.loads(certificate.to_json())
    at = body
    for key in path[:-1]:
        at = at[key] if key != "segment" else next(iter(at["segments"].values()))
    at[path[-1]] = value
    return dp.Certificate.from_json(json.dumps(body))


@pytest.mark.parametrize(
    ("path", "value", "claim"),
    [
        (("epsilon",), 1.0, "epsilon"),
        (("epsilon_of_groups",), {"2": 3.0}, "epsilon of 2 units"),
        (("assumptions",), [], "assumptions"),
        (("runs", 0, "segment", 0, "count"), 18, "run 1: passes"),
        (("runs", 0, "segment", 0, "bands"), None, "run 1: sampling"),
        (("runs", 0, "plan", "correlation"), [1.0, 0.5], "run 1: plan"),
    ],
)
def test_what_was_altered_is_found(certificate, path, value, claim):
    """By the line that it is about."""
    verification = dp.verify(altered(certificate, *path, value=value), quick=True)

    refuted = {f.claim for f in verification.findings if not f.holds}
    assert claim in refuted, verification.to_text()


@pytest.mark.slow
def test_runs_by_both_schemes_are_composed(certificate, make_run):
    """Groups have no bound then, and both assumptions are stated."""
    other = make_run()
    other.train(2)
    both = dp.compose(certificate, other.optimizer.certificate())

    assert both.epsilon > certificate.epsilon
    assert both.epsilon_of_groups == {}
    assert any("in turn" in sentence for sentence in both.assumptions)
    assert any("at the stated probability, and" in s for s in both.assumptions)
