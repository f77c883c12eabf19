"""What was computed between the loader and the loss function is told."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import TensorDataset

import dp
from dp import EvidenceWarning, MicroBatches
from dp.evidence._origin import is_computed
from dp.sampling._yielded import YieldedTensors

from .conftest import evidence_of


class Yielding:
    """A loader that yielded six rows of a table, and their labels."""

    part = None

    def __init__(self, num_rows=6):
        self.batch = torch.randn(num_rows, 2, 3), torch.randn(num_rows)
        self.yielded = YieldedTensors()
        empty = torch.empty(0, 2, 3), torch.empty(0)
        self.yielded.replace(self.batch, empty_batch=empty, num_rows=num_rows)


SAME = {
    "itself": lambda x, y: (x, y),
    "a view": lambda x, y: (x.flatten(1), y[:, None]),
    "one part": lambda x, _: {"x": [x]},
    "another type": lambda x, y: (x.double(), y.half()),
    "images channels last": lambda x, y: (x.transpose(1, 2).contiguous(), y),
    "a part that was copied": lambda x, y: (x[2:4].clone(), y[2:4].clone()),
    "two views of each": lambda x, y: (x.repeat_interleave(2, dim=0), y.repeat(2)),
    "another order": lambda x, y: (x[torch.randperm(6)], y),
    "a constant beside": lambda x, y: (x, y, torch.randn(5), torch.randn(4, 7)),
    "whole numbers": lambda x, y: (x, (y > 0).long()),
    "packed": lambda x, _: pack_sequence(list(x * 2)),
    "nothing": lambda x, _: (x[:0] * 2, torch.tensor(1.0), None, "text"),
}
OTHER = {
    "standardised": lambda x, y: ((x - x.mean(0)) / x.std(0), y),
    "mixed up": lambda x, y: (0.5 * x + 0.5 * x.roll(1, 0), y),
    "labels over their largest": lambda x, y: (x, y / y.max()),
    "drawn again": lambda x, y: (x[[0, 0, 2, 3, 4, 5]], y),
    "two views of other rows": lambda x, y: (x.repeat(2, 1, 1) + 1, y.repeat(2)),
    "a part that was scaled": lambda x, y: (x[:4] * 2, y[:4]),
    "inside of a dictionary": lambda x, _: {"x": x, "more": [x.softmax(0)]},
    "wider": lambda x, y: (torch.cat([x, x.mean(0).expand_as(x)], 1), y),
}


@pytest.mark.parametrize("name", SAME)
def test_a_batch_that_was_moved_or_repeated_is_the_loaders(name):
    loader = Yielding()

    assert not is_computed(SAME[name](*loader.batch), loader)


@pytest.mark.parametrize("name", OTHER)
def test_a_batch_that_was_computed_is_another(name):
    loader = Yielding()

    assert is_computed(OTHER[name](*loader.batch), loader)


def test_a_batch_that_was_written_to_is_another():
    loader = Yielding()
    assert not is_computed(loader.batch, loader)

    loader.batch[0].sub_(loader.batch[0].mean(0))

    assert is_computed(loader.batch, loader)


def test_without_a_loader_or_of_one_row_nothing_can_be_told():
    """One row has a multiple of any length."""
    alone, nobody = Yielding(num_rows=1), Yielding(num_rows=0)

    assert not is_computed(torch.randn(4), None)
    assert not is_computed(alone.batch[0] * 2, alone)
    assert not is_computed(torch.randn(4), nobody)


def make_run(make_plan, steps=2):
    dataset = TensorDataset(torch.randn(20, 3), torch.randn(20))
    plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=0.9), steps=steps)
    loader, model = plan.loader(dataset), nn.Linear(3, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)

    def loss_fn(batch):
        return (model(batch[0]).squeeze(1) - batch[1]).square()

    return loader, optimizer, loss_fn


def test_a_run_tells_of_it_once_and_in_its_evidence(make_plan):
    """The look itself sees nothing: no number of the batch changes with another row."""
    loader, optimizer, loss_fn = make_run(make_plan)

    def train():
        for x, y in loader:
            optimizer.backward(loss_fn, ((x - x.mean(0)) / x.std(0), y))
            optimizer.step()

    with pytest.warns(EvidenceWarning, match="not the one that the loader") as told:
        train()
    assert len(told) == 1
    assert evidence_of(optimizer).inconclusive


@pytest.mark.parametrize("writes", [False, True])
def test_parts_of_the_loaders_batch_are_its_own(make_plan, writes):
    """Also after the function wrote to one, and so to the storage of all."""
    loader, optimizer, loss_fn = make_run(make_plan)

    def shifted(batch):
        if writes:
            batch[0].add_(1.0)
        return loss_fn(batch)

    with warnings.catch_warnings():
        warnings.simplefilter("error", EvidenceWarning)
        for number, (x, y) in enumerate(MicroBatches(loader, per_step=2)):
            optimizer.backward(shifted, (x if writes else x.clone(), y))
            if number % 2:
                optimizer.step()
