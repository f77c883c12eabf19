"""Ranks that differ, raise, stall or die, and what the others are told."""

import os
import time
import warnings
from unittest.mock import patch

import ranks_release
import ranks_training
import torch
from torch import distributed

import dp
from dp.distributed import Exchange
from dp.ledger._remarks import Remarks


def error_of(function, *args, **kwargs):
    """Return the name and the message of what *function* raises."""
    try:
        function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the test is told
        return type(error).__name__, str(error)
    return None, ""


def error_of_train(**changes):
    return error_of(ranks_release.train, **changes)


def _first_step(**changes):
    model, optimizer, loader = ranks_training.run_of(**changes)
    batches = iter(loader)
    optimizer.backward(ranks_training.losses_of(model, next(batches)))
    return model, optimizer, batches


def differing(what):
    """Differ on the last rank in something; return the error and what was charged."""
    odd = distributed.get_rank() == distributed.get_world_size() - 1
    changes = {}
    if odd and what == "the plan":
        changes["target_delta"] = 1e-6
    if odd and what == "the clipping norm":
        changes["max_grad_norm"] = 0.5
    if odd and what == "the noise":
        changes["noise_multiplier"] = 3.0
    if odd and what == "the dataset":
        columns = ranks_training.dataset_of().tensors
        order = torch.arange(ranks_training.NUM_EXAMPLES).flip(0)
        changes["dataset"] = torch.utils.data.TensorDataset(
            *(c[order] for c in columns)
        )
    model, optimizer, batches = _first_step(**changes)
    if odd and what == "the batch":
        optimizer.zero_grad()
        optimizer.backward(ranks_training.losses_of(model, next(batches)))
    if odd and what == "the ledger":
        charges = {"sampling_probability": 0.1, "noise_multiplier": 1.0}
        optimizer.ledger.reserve(**charges, max_grad_norm=1.0)
    if odd and what == "the parameters' values":
        with torch.no_grad():
            model.first.bias[0] += 1e-9
    before = optimizer.ledger.steps
    name, message = error_of(optimizer.step)
    return name, message, optimizer.ledger.steps - before


def remarked():
    """Each rank saw something else of its losses; return the error and charges."""
    _, optimizer, _ = _first_step()
    said = (f"rank {distributed.get_rank()} has seen it",)
    optimizer.ledger.remark(Remarks(assumptions=said))
    name, message = error_of(optimizer.step)
    return name, message, optimizer.ledger.steps


def sharded(same):
    """Each rank has a dataset that it says is its own; return the error and charges."""
    columns = ranks_training.dataset_of().tensors
    rank, size = distributed.get_rank(), distributed.get_world_size()
    mine = columns if same else [c[rank::size] for c in columns]
    model, optimizer, loader = ranks_training.run_of()
    loader = optimizer.plan.loader(torch.utils.data.TensorDataset(*mine), sharded=True)
    optimizer.attach(loader)
    optimizer.backward(ranks_training.losses_of(model, next(iter(loader))))
    return *error_of(optimizer.step), optimizer.ledger.steps


def raising_on_the_last_rank():
    """One rank has not computed its batch; the others find out at once."""
    model, optimizer, loader = ranks_training.run_of(q=1.0)
    batch = next(iter(loader))
    if distributed.get_rank() < distributed.get_world_size() - 1:
        optimizer.backward(ranks_training.losses_of(model, batch))
    began = time.monotonic()
    name, message = error_of(optimizer.step)
    return name, message, optimizer.ledger.steps, time.monotonic() - began


def after_an_error_all_go_on():
    """A step that no rank took leaves the ranks in step."""
    model, optimizer, loader = ranks_training.run_of(q=1.0)
    batch = next(iter(loader))
    last = distributed.get_world_size() - 1
    if distributed.get_rank() < last:
        optimizer.backward(ranks_training.losses_of(model, batch))
    error_of(optimizer.step)
    if distributed.get_rank() == last:
        optimizer.backward(ranks_training.losses_of(model, batch))
    optimizer.step()
    return optimizer.ledger.steps


def alone_after_training_together():
    """Leave the group after a step; what each rank charges then is its own."""
    model, optimizer, batches = _first_step(noise_multiplier=1.0)
    optimizer.step()
    with patch("dp._ranks.distributed.is_initialized", lambda: False):
        optimizer.backward(ranks_training.losses_of(model, next(batches)))
        optimizer.step()
        segment = optimizer.ledger.segment
        optimizer.backward(ranks_training.losses_of(model, next(batches)))
        optimizer.step()
    assert segment == optimizer.ledger.segment
    return optimizer.ledger.state_dict()


def replaced_after_a_step(what):
    """Load, replace or copy something; the ranks agree anew and go on."""
    model, optimizer, batches = _first_step(noise_multiplier=1.0)
    optimizer.step()
    segments = {optimizer.ledger.segment}
    if what == "state":
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.backward(ranks_training.losses_of(model, next(batches)))
    if what == "loader":
        loader = optimizer.plan.loader(ranks_training.dataset_of())
        optimizer.attach(loader)
        optimizer.backward(ranks_training.losses_of(model, next(iter(loader))))
    optimizer.step()
    segments.add(optimizer.ledger.segment)
    return optimizer.ledger.state_dict(), len(segments)


def dying(where):
    """The last rank ends in the middle of a step; return what the others see."""
    model, optimizer, batches = _first_step(noise_multiplier=1.0)
    optimizer.step()
    optimizer.backward(ranks_training.losses_of(model, next(batches)))
    last = distributed.get_rank() == distributed.get_world_size() - 1

    def ended(*_args):
        os._exit(1)

    if last and where == "before":
        ended()
    if last and where == "in the exchange":
        Exchange.__iter__ = ended
    if last and where == "before it publishes":
        Exchange.start_all_gather = ended
    name, message = error_of(optimizer.step)
    return name, message, optimizer.ledger.steps


def stalling(seconds):
    """The last rank does not come."""
    model, optimizer, batches = _first_step(noise_multiplier=1.0)
    optimizer.step()
    optimizer.backward(ranks_training.losses_of(model, next(batches)))
    if distributed.get_rank() == distributed.get_world_size() - 1:
        time.sleep(seconds)
        return None
    began = time.monotonic()
    name, message = error_of(optimizer.step)
    return name, message, optimizer.ledger.steps, time.monotonic() - began


def skipping_empty_batches():
    """As Opacus did: a rank whose batch is empty takes no step."""
    model, optimizer, loader = ranks_training.run_of(q=0.1, noise_multiplier=1.0)

    def train():
        for batch in loader:
            if len(batch[0]):
                optimizer.backward(ranks_training.losses_of(model, batch))
                optimizer.step()

    with warnings.catch_warnings():  # Now and then a batch is empty on every rank.
        warnings.filterwarnings("ignore", "a batch was drawn and left out")
        return error_of(train)


def spread_otherwise(how):
    """Wrap a model in something that is refused; return the error."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415
    from torch.distributed.tensor import (  # noqa: PLC0415
        Replicate,
        distribute_tensor,
    )
    from torch.distributed.tensor.parallel import (  # noqa: PLC0415
        ColwiseParallel,
        parallelize_module,
    )

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    if how == "on one rank":
        names = {"mesh_dim_names": ("replicas", "shards")}
        two = init_device_mesh("cpu", (distributed.get_world_size(), 1), **names)
        fully_shard(model, mesh=two["shards"])
    if how == "tensor parallel":
        parallelize_module(model, mesh, {"0": ColwiseParallel()})
    if how == "replicated":
        weight = distribute_tensor(model[0].weight.detach(), mesh, [Replicate()])
        model[0].weight = torch.nn.Parameter(weight)
    if how == "fsdp1":
        model[0].weight._fsdp_flattened = True
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = ranks_training.plan_of(sampling=dp.Unamplified())
    return error_of(dp.DPOptimizer, sgd, plan=plan)
