"""Optimizers that shard or average, and trainers' entry points, on every rank."""

import warnings

import torch
from ranks_training import (
    dataset_of,
    losses_of,
    model_of,
    plan_of,
    run_of,
    weights_of,
)

import dp


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.* is deprecated")
    from torch.distributed.optim import ZeroRedundancyOptimizer


def sharded(params, lr):
    return ZeroRedundancyOptimizer(params, torch.optim.Adam, lr=lr)


def stepped(model, optimizer, loader, *, entry):
    for batch, _ in zip(loader, range(3), strict=False):
        losses = losses_of(model, batch)
        if entry == "backward":
            optimizer.backward(losses)
        else:
            optimizer.private_loss(losses).backward()
        optimizer.step()
        model.zero_grad()
    return weights_of(model), optimizer.ledger.steps


def train(*, kind, inner, entry):
    """Train by one of the two entries; return the weights and what was charged."""
    optimizer = {"adam": torch.optim.Adam, "zero": sharded}[inner]
    model, private, loader = run_of(
        kind,
        optimizer=optimizer,
        lr=0.1,
        sampling=dp.PoissonSampling(sampling_probability=1.0),
    )
    return stepped(model, private, loader, entry=entry)


def around():
    """Build the private class inside the sharding one, and say what came of it."""
    model, plan = model_of(), plan_of()
    loader = plan.loader(dataset_of())
    kind = dp.wrap_class(torch.optim.Adam, plan=plan, loader=loader)
    outer = ZeroRedundancyOptimizer(model.parameters(), kind, lr=0.1)
    losses = losses_of(model, next(iter(loader)))
    with warnings.catch_warnings():
        # Each rank's share lacks the other ranks' parameters, which is told first.
        warnings.filterwarnings("ignore", ".* are in no group of this private optim")
        outer.optim.backward(losses)
    try:
        outer.step()
    except dp.PrivacyError as error:
        return type(error).__name__, str(error)
    return "none", ""
