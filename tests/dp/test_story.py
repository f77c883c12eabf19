"""The defect that this project exists for, and its cure.

``AcceleratedOptimizer.param_groups = ...`` once reached only the outermost wrapper:
the schedule looked right from outside, and the update used the old learning rate.
"""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import SGD, Optimizer

from dp.optimizer._transparent import TransparentOptimizer


class ReferenceCopies(Optimizer):
    """A wrapper as Opacus' was: it copies references when it is built."""

    def __init__(self, inner):
        self.original_optimizer = inner
        self.param_groups = inner.param_groups
        self.state = inner.state
        self.defaults = inner.defaults

    def step(self, closure=None):
        return self.original_optimizer.step(closure)

    def zero_grad(self, set_to_none=True):  # noqa: FBT002 -- torch's signature
        self.original_optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.original_optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.original_optimizer.load_state_dict(state_dict)


class Forwards(TransparentOptimizer):
    """What every DPOptimizer is, before privacy."""


def stack(wrapper, depth):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], lr=0.1)
    for _ in range(depth):
        optimizer = wrapper(optimizer)
    return weight, optimizer


def distance_of_a_step(weight, optimizer):
    """How far one step moves a weight whose gradient is 1: the rate really used."""
    before = weight.item()
    weight.grad = torch.ones(1)
    optimizer.step()
    return before - weight.item()


def rebind(optimizer):
    optimizer.param_groups = [{**g, "lr": 0.025} for g in optimizer.param_groups]


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_learning_rate_rebound_from_outside_is_the_one_that_is_used(depth):
    """Assigning ``param_groups`` on the outermost layer reaches the update."""
    weight, optimizer = stack(Forwards, depth)

    rebind(optimizer)

    assert distance_of_a_step(weight, optimizer) == pytest.approx(0.025)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_reference_copies_lose_a_rebound_learning_rate(depth):
    """The check above can fail: this is the defect it looks for."""
    weight, optimizer = stack(ReferenceCopies, depth)

    rebind(optimizer)

    assert optimizer.param_groups[0]["lr"] == 0.025
    assert distance_of_a_step(weight, optimizer) == pytest.approx(0.1)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("wrapper", "rate_used"), [(Forwards, 0.025), (ReferenceCopies, 0.1)]
)
def test_accelerate_reaches_the_update_only_through_forwarding(
    accelerator, wrapper, rate_used, depth
):
    """Accelerate rebinds ``param_groups``; the copies' update never hears of it."""
    weight, optimizer = stack(wrapper, depth)
    prepared = accelerator.prepare_optimizer(optimizer)
    assert isinstance(prepared, AcceleratedOptimizer)

    rebind(prepared)

    assert prepared.param_groups[0]["lr"] == 0.025
    assert distance_of_a_step(weight, prepared) == pytest.approx(rate_used)


@pytest.mark.slow
def test_accelerate_and_a_scheduler_drive_the_private_update(accelerator, make_run):
    """The real thing: DPOptimizer in accelerate, its rate halved by a scheduler."""
    run = make_run(noise_multiplier=0.0)
    prepared = accelerator.prepare_optimizer(run.optimizer)
    rebind(prepared)
    scheduler = torch.optim.lr_scheduler.StepLR(prepared, 1, gamma=0.5)
    rates = []
    for batch, _ in zip(run.loader, range(3), strict=False):
        before = [p.detach().clone() for p in run.model.parameters()]
        run.optimizer.backward(run.losses(batch))
        prepared.step()
        scheduler.step()
        moved = [b - p for b, p in zip(before, run.model.parameters(), strict=True)]
        grads = [p.grad for p in run.model.parameters()]
        rates.append([m / g for m, g in zip(moved, grads, strict=True)])

    for used, expected in zip(rates, [0.025, 0.0125, 0.00625], strict=True):
        for ratio in used:
            torch.testing.assert_close(
                ratio, torch.full_like(ratio, expected), rtol=0.05, atol=0.0
            )
    assert run.optimizer.ledger.steps == 3
