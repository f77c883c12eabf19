"""Under a gradient scaler the step is the same, and no example decides about it."""

import copy

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from dp import DPOptimizer, PoissonSampling, Unamplified, UnsupportedOperationError


def whole_batches(make_run, optimizer=torch.optim.SGD, **changes):
    """A run without noise whose every batch is the dataset."""
    sampling = PoissonSampling(sampling_probability=1.0)
    return make_run(optimizer, noise_multiplier=0.0, sampling=sampling, **changes)


def twins(make_run, optimizer):
    run, twin = whole_batches(make_run, optimizer), whole_batches(make_run, optimizer)
    twin.model.load_state_dict(run.model.state_dict())
    return run, twin


def fused(params, lr):
    return torch.optim.Adam(params, lr=lr, fused=True)


def scaled_step(run, batch, scaler, *, unscale=False, micro_batches=1):
    parts = zip(*(t.tensor_split(micro_batches) for t in batch), strict=True)
    for part in parts:
        loss = run.optimizer.private_loss(run.losses(part)) / micro_batches
        scaler.scale(loss).backward()
    if unscale:
        scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), 1e-3)
    scaler.step(run.optimizer)
    scaler.update()


@pytest.mark.filterwarnings("ignore:a gradient was read or edited:UserWarning")
@pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale and clip"])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, torch.optim.Adam, fused],
    ids=["SGD", "Adam", "fused"],
)
def test_a_scaler_does_not_change_the_result(
    make_run, optimizer, micro_batches, unscale
):
    """To the bit: scales are powers of two, and are gone before clipping.

    A clipping of gradients between backward and step finds zeros, so it does nothing.
    """
    run, twin = twins(make_run, optimizer)
    scaler = GradScaler("cpu", init_scale=3.0 * 2**14)
    for batch, _ in zip(run.loader, range(3), strict=False):
        scaled_step(run, batch, scaler, unscale=unscale, micro_batches=micro_batches)
        next(iter(twin.loader))
        for part in zip(*(t.tensor_split(micro_batches) for t in batch), strict=True):
            twin.optimizer.backward(twin.losses(part))
        twin.optimizer.step()

    assert run.optimizer.ledger.steps == 3
    for parameter, other in zip(
        run.model.parameters(), twin.model.parameters(), strict=True
    ):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("poison", [float("inf"), float("nan"), 1e30])
def test_one_example_can_neither_skip_a_step_nor_change_the_scale(make_run, poison):
    """Whether a step was taken, and the scale, are seen by whoever sees the weights."""
    run = whole_batches(make_run)
    scaler = GradScaler("cpu", init_scale=1024.0)
    batch = next(iter(run.loader))
    batch[0][0] = poison
    before = run.model.weight.detach().clone()

    scaled_step(run, batch, scaler)

    assert run.optimizer.ledger.steps == 1
    assert scaler.get_scale() == 1024.0
    assert not torch.equal(run.model.weight, before)
    assert run.model.weight.isfinite().all()


def test_a_scale_never_grows_away_from_where_it_started(make_run):
    """It would reach infinity, as overflow may not hold it back; no step is lost."""
    run = whole_batches(make_run, steps=12)
    scaler = GradScaler("cpu", init_scale=256.0, growth_interval=2)
    scales = []
    for batch in run.loader:
        scaled_step(run, batch, scaler)
        scales.append(scaler.get_scale())

    assert set(scales) == {256.0, 512.0}
    assert scales.count(512.0) < 5
    assert run.optimizer.ledger.steps == 12


def test_a_scale_is_sent_back_beside_a_parameter_without_elements(make_plan):
    """The smallest parameter could not tell the scaler of an overflow."""
    model, empty = nn.Linear(3, 1), nn.Parameter(torch.zeros(0))
    plan = make_plan(sampling=Unamplified())
    inner = torch.optim.SGD([empty, *model.parameters()], lr=0.1)
    optimizer = DPOptimizer(inner, plan=plan)
    scaler = GradScaler("cpu", init_scale=256.0, growth_interval=1)
    scales = []
    for _ in range(4):
        losses = model(torch.randn(4, 3)).squeeze(1).square()
        scaler.scale(optimizer.private_loss(losses)).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())

    assert scales == [512.0, 256.0, 512.0, 256.0]


def test_a_scale_that_is_sent_back_costs_no_step_and_no_gradient(make_run):
    """The step under it is the step of any other scale."""
    run, twin = twins(make_run, torch.optim.SGD)
    scaler = GradScaler("cpu", init_scale=256.0, growth_interval=1)
    for batch, _ in zip(run.loader, range(4), strict=False):
        scaled_step(run, batch, scaler)
        next(iter(twin.loader))
        twin.optimizer.backward(twin.losses(batch))
        twin.optimizer.step()

    assert scaler.get_scale() in {256.0, 512.0}
    torch.testing.assert_close(run.model.weight, twin.model.weight)


def test_scaled_half_precision_trains_like_single(make_plan):
    """Gradients too small for float16 come through because they were scaled."""
    torch.manual_seed(0)
    x = torch.randn(8, 16) * 1e-3
    plan = make_plan(sampling=Unamplified(), noise_multiplier=0.0, max_grad_norm=1e3)
    gradients = {}
    for precision in ("half, scaled", "half", "single"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = DPOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), plan=plan)
        scaler = GradScaler("cpu", enabled=precision == "half, scaled")
        with torch.autocast("cpu", torch.float16, enabled=precision != "single"):
            output = model(x).squeeze(1).float()
        losses = output * 1e-6
        scaler.scale(optimizer.private_loss(losses)).backward()
        scaler.step(optimizer)
        scaler.update()
        gradients[precision] = model[0].weight.grad

    exact = gradients["single"]
    error = {
        k: ((g - exact).norm() / exact.norm()).item() for k, g in gradients.items()
    }
    assert error["half, scaled"] < 0.02
    assert error["half"] > 0.02


def test_a_scale_means_what_it_means_to_a_mean_loss(make_plan):
    """Divided by the batch size first, or 65536 would overflow what it is made for."""
    torch.manual_seed(0)
    start, x = nn.Linear(16, 1), torch.randn(8, 16)
    plan = make_plan(sampling=Unamplified(), noise_multiplier=0.0, max_grad_norm=1e3)
    gradients = []
    for precision in (torch.float32, torch.float16):
        model = copy.deepcopy(start)
        optimizer = DPOptimizer(torch.optim.SGD(model.parameters(), lr=0), plan=plan)
        scaler = GradScaler("cpu")
        with torch.autocast("cpu", torch.float16, enabled=precision == torch.float16):
            output = model(x).squeeze(1)
        losses = 4 * (1 + output.float()).square()
        scaler.scale(optimizer.private_loss(losses)).backward()
        scaler.step(optimizer)
        gradients.append(model.weight.grad.clone())

    exact, half = gradients
    assert ((half - exact).norm() / exact.norm()).item() < 0.02


def test_a_disabled_scaler_changes_nothing(make_run):
    """It calls ``step`` as anybody else."""
    run = make_run()
    scaler = GradScaler("cpu", enabled=False)
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    scaler.step(run.optimizer)
    scaler.update()

    assert run.optimizer.ledger.steps == 1


def test_an_empty_batch_passes_a_scaler_too(make_run):
    """Nobody was drawn, and the mean loss of nobody is 0."""
    run = make_run(sampling=PoissonSampling(sampling_probability=1e-12))
    loss = run.optimizer.private_loss(run.losses(next(iter(run.loader))))
    scaler = GradScaler("cpu")
    scaler.scale(loss).backward()
    scaler.step(run.optimizer)
    scaler.update()

    assert loss.item() == 0
    assert run.optimizer.ledger.steps == 1


@pytest.mark.parametrize("order", ["backward last", "backward first"])
def test_losses_that_did_not_pass_private_loss_are_refused(make_plan, order):
    """They would be clipped at a scale that nobody knows; nothing is charged."""
    model = nn.Linear(3, 1)
    plan = make_plan(sampling=Unamplified(backwards_per_step=2))
    optimizer = DPOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), plan=plan)
    scaler = GradScaler("cpu")
    ways = [
        lambda losses: scaler.scale(optimizer.private_loss(losses)).backward(),
        lambda losses: optimizer.backward(losses * scaler.get_scale()),
    ]
    for backward in ways if order == "backward last" else reversed(ways):
        backward(model(torch.randn(4, 3)).square().squeeze(1))

    with pytest.raises(UnsupportedOperationError, match="private_loss"):
        scaler.step(optimizer)

    assert optimizer.ledger.steps == 0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_private_loss_takes_scales_only(make_run, weight):
    """A sign or a zero would be divided out, which nobody who wrote it means."""
    run = make_run()
    loss = run.optimizer.private_loss(run.losses(next(iter(run.loader))))

    with pytest.raises(ValueError, match="the vector of losses"):
        (loss * weight).backward()


def test_a_private_loss_is_a_mean_to_log(make_run):
    """Its value is that of the losses; evaluation needs no graph."""
    run = whole_batches(make_run)
    batch = next(iter(run.loader))
    with torch.no_grad():
        loss = run.optimizer.private_loss(run.losses(batch))

    torch.testing.assert_close(loss, run.losses(batch).mean().detach())


def test_gradients_cleared_on_the_model_are_dropped(make_run):
    """Trainers call ``model.zero_grad()``, which no optimizer hears of."""
    run, twin = twins(make_run, torch.optim.SGD)
    batch = next(iter(run.loader))
    next(iter(twin.loader))
    run.optimizer.private_loss(run.losses(batch) * -3).backward()
    run.model.zero_grad()
    run.optimizer.private_loss(run.losses(batch)).backward()
    run.optimizer.step()
    twin.optimizer.backward(twin.losses(batch))
    twin.optimizer.step()

    torch.testing.assert_close(run.model.weight, twin.model.weight)
