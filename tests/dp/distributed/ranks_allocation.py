"""Random allocation on every rank."""

from itertools import chain

import ranks_training
from ranks_failures import error_of
from torch import distributed

import dp


ALLOCATION = dp.RandomAllocation(steps_per_pass=4)


def _run(**changes):
    return ranks_training.run_of(sampling=ALLOCATION, **changes)


def training():
    """Return what this rank saw of each pass, its charges and its parameters."""
    seen, state, weights = ranks_training.witness(*_run(noise_multiplier=1.0))
    passes = [list(chain(*seen[i : i + 4])) for i in range(0, len(seen), 4)]
    return passes, state, weights


def without_noise():
    """Return the sums of a pass at fixed weights, and of one batch of all examples."""
    return ranks_training.total_at_fixed_weights(*_run(steps=4, lr=0.0))


def one_rank_begins_anew():
    """The last rank starts another pass in the middle of one."""
    model, optimizer, loader = _run(noise_multiplier=1.0)
    batches = iter(loader)
    for _ in range(2):
        optimizer.backward(ranks_training.losses_of(model, next(batches)))
        optimizer.step()
    if distributed.get_rank() == distributed.get_world_size() - 1:
        batches = iter(loader)
    optimizer.backward(ranks_training.losses_of(model, next(batches)))
    before = optimizer.ledger.steps
    name, message = error_of(optimizer.step)
    return name, message, optimizer.ledger.steps - before
