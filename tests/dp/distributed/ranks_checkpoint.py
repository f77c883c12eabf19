"""Distributed checkpoints of a private run, on every rank."""

import torch
import torch.distributed.checkpoint as dcp
from ranks_training import losses_of, run_of, weights_of
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


NUM_STEPS = 3


def built(kind):
    return run_of(kind, optimizer=torch.optim.Adam, lr=0.1, noise_multiplier=1.0)


def save(*, kind, path):
    """Train, save, and return the weights and what was charged."""
    model, optimizer, loader = built(kind)
    for batch, _ in zip(loader, range(NUM_STEPS), strict=False):
        optimizer.backward(losses_of(model, batch))
        optimizer.step()
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path)
    return weights_of(model), optimizer.ledger.steps


def load(*, kind, path):
    """Load into another layout, train on, and return what was charged before that."""
    model, optimizer, loader = built(kind)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    loaded = weights_of(model), optimizer.ledger.steps
    averages = [s["exp_avg"].norm() for s in optimizer.state.values()]
    optimizer.backward(losses_of(model, next(iter(loader))))
    optimizer.step()
    return *loaded, len(averages), optimizer.ledger.steps
