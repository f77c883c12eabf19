"""Correlated noise on every rank."""

import ranks_training
import torch
from ranks_failures import error_of
from torch import distributed

import dp


CYCLIC = dp.CyclicPoisson(sampling_probability=0.25, bands=4)
NOISE = dp.BandedNoise.optimal(4, steps=20)


def _run(**changes):
    return ranks_training.run_of(sampling=CYCLIC, correlation=NOISE, **changes)


def training():
    """Return what this rank saw of each step, its charges and its parameters."""
    return ranks_training.witness(*_run(noise_multiplier=1.0))


def without_noise():
    """Return the sums of a round at fixed weights, and of one batch of all examples."""
    return ranks_training.total_at_fixed_weights(*_run(steps=4, lr=0.0))


def prefix_error():
    """Return the noise of prefix sums of many steps, in which no example is."""
    model, optimizer, loader = _run(noise_multiplier=1.0, lr=0.0)
    scale = optimizer.plan.expected_batch_size / optimizer.plan.max_grad_norm
    total, squares, number = 0.0, 0.0, 0
    for batch in loader:
        optimizer.backward(0 * ranks_training.losses_of(model, batch))
        optimizer.step()
        grads = [p.grad.flatten() for p in model.parameters()]
        total = total + scale * torch.cat(grads)
        squares += float(total.square().sum())
        number += total.numel()
    return squares, number


def one_rank_begins_anew():
    """The last rank starts another iteration in the middle of one."""
    model, optimizer, loader = _run(noise_multiplier=1.0)
    batches = iter(loader)
    for _ in range(4):
        optimizer.backward(ranks_training.losses_of(model, next(batches)))
        optimizer.step()
    if distributed.get_rank() == distributed.get_world_size() - 1:
        batches = iter(loader)
    optimizer.backward(ranks_training.losses_of(model, next(batches)))
    before = optimizer.ledger.steps
    name, message = error_of(optimizer.step)
    return name, message, optimizer.ledger.steps - before
