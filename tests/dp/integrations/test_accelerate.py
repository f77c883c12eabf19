"""DPOptimizer in Hugging Face Accelerate, by its real Accelerator."""

from itertools import permutations

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import DataLoaderShard
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.optim.lr_scheduler import StepLR

from dp import (
    BudgetExhaustedError,
    PoissonSampling,
    RandomAllocation,
    SamplingMismatchError,
    Unamplified,
)
from dp.integrations.accelerate import (
    AcceleratedLoader,
    prepare,
    private_loss,
    private_optimizer,
)


@pytest.fixture
def make_accelerator():
    """Build an Accelerator; its state, one for the process, is reset after the test."""

    def make(**arguments):
        return Accelerator(cpu=True, **arguments)

    yield make
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(script, accelerator, optimizer, loader, *, scheduler=None, num_batches=None):
    """The loop of accelerate's documentation, with a vector of losses."""
    for number, batch in enumerate(loader):
        if number == num_batches:
            break
        with accelerator.accumulate(script.model):
            loss = private_loss(script.losses(batch), optimizer)
            accelerator.backward(loss)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("order", [*permutations(range(4))][::5])
def test_objects_are_prepared_in_any_order(make_script, make_accelerator, order):
    """The prepared schedule drives the private update; each step is charged once."""
    script, accelerator = make_script(), make_accelerator()
    scheduler = StepLR(script.optimizer, 2, gamma=0.5)
    objects = [script.model, script.optimizer, scheduler, script.loader]

    prepared = prepare(accelerator, *(objects[i] for i in order))
    script.model, optimizer, scheduler, loader = (
        prepared[order.index(i)] for i in range(4)
    )
    train(script, accelerator, optimizer, loader, scheduler=scheduler)

    assert isinstance(optimizer, AcceleratedOptimizer)
    assert isinstance(loader, AcceleratedLoader)
    script.assert_private(steps=6, rates=[0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


@pytest.mark.parametrize("parts", [1, 2])
def test_random_allocation_trains_in_whole_passes(make_script, make_accelerator, parts):
    """One charge a pass, and batches may be split."""
    script = make_script(sampling=RandomAllocation(steps_per_pass=3))
    accelerator = make_accelerator(gradient_accumulation_steps=parts)
    model, optimizer, loader = prepare(
        accelerator, script.model, script.optimizer, script.loader
    )
    script.model = model

    train(script, accelerator, optimizer, loader)

    script.assert_private(steps=6)
    (charge,) = script.optimizer.ledger.charges()
    assert (charge.count, charge.steps_per_pass) == (6, 3)


def test_accelerates_own_prepare_passes_a_private_loader_on(
    make_script, make_accelerator
):
    """On the host nothing is missing; only devices and accumulation need ours."""
    script, accelerator = make_script(), make_accelerator()

    script.model, optimizer, loader = accelerator.prepare(
        script.model, script.optimizer, script.loader
    )
    train(script, accelerator, optimizer, loader)

    assert loader is script.loader
    script.assert_private(steps=6, rates=[0.1] * 6)


def test_one_object_is_prepared_alone(make_script, make_accelerator):
    """As accelerate's prepare: one in, one out."""
    script, accelerator = make_script(), make_accelerator()

    assert isinstance(prepare(accelerator, script.optimizer), AcceleratedOptimizer)
    assert isinstance(prepare(accelerator, script.loader), AcceleratedLoader)


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_accumulation_divides_once(make_script, make_accelerator, parts):
    """The update is that of the whole draw, however many parts accelerate divides by."""
    script = make_script(
        noise_multiplier=0.0, sampling=PoissonSampling(sampling_probability=1.0)
    )
    accelerator = make_accelerator(gradient_accumulation_steps=parts)
    expected = script.update_without_noise(script.data.tensors, lr=0.1)
    before = script.weights()

    optimizer, loader = prepare(accelerator, script.optimizer, script.loader)
    train(script, accelerator, optimizer, loader, num_batches=parts)

    torch.testing.assert_close(script.weights() - before, expected)
    assert script.optimizer.ledger.steps == 1
    assert len(loader) == 6 * parts


@pytest.mark.filterwarnings("ignore:a batch was drawn and left out")
def test_accumulation_without_parts_is_not_silent(make_script, make_accelerator):
    """Accelerate skips the step of a whole draw; the draw's examples would be lost."""
    script = make_script()
    accelerator = make_accelerator(gradient_accumulation_steps=2)
    optimizer = accelerator.prepare(script.optimizer)

    with pytest.warns(UserWarning, match="its step was never taken"):
        train(script, accelerator, optimizer, script.loader)


def test_a_pass_that_was_left_within_a_batch_does_not_shift_the_next(
    make_script, make_accelerator
):
    """Accelerate counts parts over passes; the private loader starts it anew."""
    script = make_script()
    accelerator = make_accelerator(gradient_accumulation_steps=3)
    optimizer, loader = prepare(accelerator, script.optimizer, script.loader)

    train(script, accelerator, optimizer, loader, num_batches=4)  # A draw and a third.
    train(script, accelerator, optimizer, loader, num_batches=15)

    script.assert_private(steps=6)


def test_a_saved_state_resumes_with_its_ledger(make_script, make_accelerator, tmp_path):
    """Model, moments, schedule and what was spent come back; the budget goes on."""
    script, accelerator = make_script(torch.optim.Adam), make_accelerator()
    objects = script.model, script.optimizer, StepLR(script.optimizer, 1, gamma=0.5)
    script.model, optimizer, scheduler = prepare(accelerator, *objects)
    train(
        script,
        accelerator,
        optimizer,
        script.loader,
        scheduler=scheduler,
        num_batches=4,
    )
    accelerator.save_state(tmp_path)

    resumed, accelerator = make_script(torch.optim.Adam), make_accelerator()
    objects = resumed.model, resumed.optimizer, StepLR(resumed.optimizer, 1, gamma=0.5)
    resumed.model, optimizer, scheduler = prepare(accelerator, *objects)
    accelerator.load_state(tmp_path)

    assert torch.equal(resumed.weights(), script.weights())
    assert resumed.optimizer.spent() == script.optimizer.spent()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 16)
    moments = [s["exp_avg"] for s in script.optimizer.state.values()]
    for loaded, saved in zip(resumed.optimizer.state.values(), moments, strict=True):
        assert torch.equal(loaded["exp_avg"], saved)
    with pytest.raises(BudgetExhaustedError, match="6 of 6 steps"):
        train(resumed, accelerator, optimizer, resumed.loader)
    assert len(resumed.witness.rates) == 2


def test_clipping_by_accelerate_changes_nothing(make_script, make_accelerator):
    """Each example was clipped; between backward and step there is no gradient."""
    script = make_script(noise_multiplier=0.0)
    accelerator = make_accelerator()
    optimizer = prepare(accelerator, script.optimizer)
    batch = next(iter(script.loader))
    expected = script.update_without_noise(batch, lr=0.1)
    before = script.weights()

    accelerator.backward(private_loss(script.losses(batch), optimizer))
    with pytest.warns(UserWarning, match="a norm is 0"):
        norm = accelerator.clip_grad_norm_(script.model.parameters(), 1e-6)
    optimizer.step()

    assert norm == 0
    torch.testing.assert_close(script.weights() - before, expected)


def test_bfloat16_trains_with_the_noise_of_float32(make_script, make_accelerator):
    """The forward pass is in bfloat16; sums and noise are not."""
    script, accelerator = make_script(), make_accelerator(mixed_precision="bf16")
    seen = []
    script.model.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    script.model, optimizer, loader = prepare(
        accelerator, nn.Sequential(script.model), script.optimizer, script.loader
    )

    train(script, accelerator, optimizer, loader)

    assert set(seen) == {torch.bfloat16}
    script.assert_private(steps=6, rates=[0.1] * 6)


def test_objects_can_be_unwrapped_and_freed(make_script, make_accelerator):
    """What accelerate holds goes; the optimizer and what it spent stay."""
    script, accelerator = make_script(), make_accelerator(mixed_precision="bf16")
    plain = script.model
    script.model, optimizer, loader = prepare(
        accelerator, script.model, script.optimizer, script.loader
    )
    train(script, accelerator, optimizer, loader, num_batches=2)
    spent = private_optimizer(optimizer).spent()

    assert accelerator.unwrap_model(script.model) is plain
    assert private_optimizer(optimizer) is script.optimizer
    accelerator.free_memory()
    assert script.optimizer.spent() == spent
    assert accelerator._optimizers == []


def test_skipping_batches_of_a_private_loader_is_refused(make_script, make_accelerator):
    """The loader that skips would be another one, whose batches have no tickets."""
    script, accelerator = make_script(), make_accelerator()

    with pytest.raises(SamplingMismatchError, match="every draw is a new one"):
        skip_first_batches(prepare(accelerator, script.loader), 2)
    with pytest.raises(SamplingMismatchError, match="was taken out of it"):
        next(iter(skip_first_batches(script.loader, 2)))


def test_a_loader_that_accelerate_rebuilds_is_refused(make_script):
    """As it would be for several processes: it reads one batch ahead, too."""
    script = make_script()
    rebuilt = DataLoaderShard(
        script.data, batch_sampler=script.loader.batch_sampler, device="cpu"
    )

    with pytest.raises(SamplingMismatchError, match="was taken out of it"):
        next(iter(rebuilt))


def test_reading_one_batch_ahead_is_refused(make_script):
    """The ticket is that of the batch drawn last, whose examples were not computed."""
    script = make_script()
    batches = iter(script.loader)
    first, second = next(batches), next(batches)
    while len(second[0]) == len(first[0]):  # Equal numbers cannot be told apart.
        first, second = second, next(batches)

    def step_on_the_first():
        script.optimizer.backward(script.losses(first))
        script.optimizer.step()

    with pytest.raises(SamplingMismatchError):
        step_on_the_first()

    assert script.optimizer.ledger.steps == 0


def test_another_loader_needs_no_ticket_without_amplification(
    make_script, make_accelerator
):
    """An unamplified plan takes accelerate's loaders, which read one batch ahead."""
    script = make_script()
    accelerator = make_accelerator()
    plan = type(script.plan)(
        sampling=Unamplified(),
        noise_multiplier=10.0,
        max_grad_norm=1.0,
        expected_batch_size=10.0,
        steps=6,
        target_delta=1e-5,
    )
    inner = torch.optim.SGD(script.model.parameters(), lr=0.1)
    private = type(script.optimizer)(inner, plan=plan)
    loader = torch.utils.data.DataLoader(script.data, batch_size=10, shuffle=True)

    optimizer, loader = prepare(accelerator, private, loader)
    train(script, accelerator, optimizer, loader)

    assert isinstance(loader, DataLoaderShard)
    assert private.ledger.steps == 4


def test_an_optimizer_that_is_not_private_is_named(make_script, make_accelerator):
    """A loss that nobody clips must not look private."""
    script, accelerator = make_script(), make_accelerator()
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    losses = script.losses(next(iter(script.loader)))

    with pytest.raises(TypeError, match="no DPOptimizer was found in Accelerated"):
        private_loss(losses, accelerator.prepare(plain))


def test_a_loader_for_accelerate_knows_its_data(make_script, make_accelerator):
    """What logs and progress bars ask of a loader."""
    script = make_script()
    accelerator = make_accelerator(device_placement=False)

    loader = prepare(accelerator, script.loader)

    assert loader.dataset is script.data
    assert len(list(loader)) == len(loader) == 6
