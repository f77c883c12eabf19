"""Loss functions that several ranks evaluate again, together."""

import threading
from unittest.mock import patch

import torch
from ranks_training import dataset_of, losses_of, run_of, weights_of
from torch import distributed

import dp
from dp.evidence import looking
from dp.evidence._schedule import FIRST


def train(kind="plain", *, num_steps=6, mixes=False, num_parts=1, **plan):
    """Train by a function; return weights, examples, evidence, and steps looked at."""
    model, optimizer, loader = run_of(kind, dataset=dataset_of(), **plan)
    drawn, steps = [], []

    log = threading.local()  # Out of reach, or a look would undo what it is told.
    log.looked_at = steps

    def loss_fn(batch):
        if looking():
            log.looked_at.append(optimizer.ledger.steps)
        losses = losses_of(model, batch)
        return losses / losses.mean().item() if mixes and len(losses) else losses

    for batch, _ in zip(loader, range(num_steps), strict=False):
        drawn.append(batch[2].tolist())
        for part in zip(*(t.tensor_split(num_parts) for t in batch), strict=True):
            optimizer.backward(loss_fn, list(part))
        optimizer.step()
    (record,) = optimizer.certificate().runs[0].evidence.values()
    return {
        "weights": weights_of(model),
        "drawn": drawn,
        "record": record.to_dict(),
        "looked_at": steps,
        "segment": optimizer.ledger.segment,
    }


def surprised(kind="plain"):
    """Train while one rank's losses surprise; return the steps of all looks.

    No step after the first ones is due: a look that was due breaks the record itself.
    """
    model, optimizer, loader = run_of(kind, dataset=dataset_of(), q=1.0)
    steps, scale = [], 1.0

    log = threading.local()
    log.looked_at = steps

    def loss_fn(batch):
        if looking():
            log.looked_at.append(optimizer.ledger.steps)
        losses = losses_of(model, batch)
        return losses * torch.tensor([scale] + [1.0] * (len(losses) - 1))

    with patch("dp.evidence._watch.is_due", lambda _segment, step: step < FIRST):
        for number, batch in zip(range(6), loader, strict=False):
            scale = 1e4 if number == 4 and distributed.get_rank() == 1 else 1.0
            optimizer.backward(loss_fn, list(batch))
            optimizer.step()
    return steps


def steered(kind):
    """What a rank says of gradients that follow its batch, though no loss does."""
    model, optimizer, loader = run_of(kind, dataset=dataset_of(), q=1.0)

    def loss_fn(batch):
        losses = losses_of(model, batch)
        share = losses.detach().softmax(0)
        return losses.detach() + share * (losses - losses.detach())

    batch = next(iter(loader))
    try:
        optimizer.backward(loss_fn, list(batch))
    except dp.SampleMixingError as error:
        return str(error)
    finally:
        distributed.barrier()
    return ""


def mixed(kind="plain"):
    """What a rank says of a loss that uses its batch; every rank draws all it has."""
    try:
        train(kind, num_steps=1, mixes=True, q=1.0)
    except dp.SampleMixingError as error:
        return str(error)
    finally:
        distributed.barrier()
    return ""
