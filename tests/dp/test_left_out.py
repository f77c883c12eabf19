"""Batches that are left out while a run goes on: told once, and named."""

import contextlib
import itertools
import warnings

import pytest
import torch
from torch import nn

import dp
from dp import DPOptimizer


SAID = "Batches that were drawn and not released were left out for public reasons"
TOLD = "a batch was drawn and left out"
POISONED = 3  # The batch of which a loss is not finite.


def loader_of(kind, plan, data):
    if kind == "unamplified":
        return dp.UnamplifiedLoader(data, batch_size=4)
    return plan.loader(data)


SAMPLING = {
    "poisson": dp.PoissonSampling(sampling_probability=0.5),
    "allocation": dp.RandomAllocation(steps_per_pass=10),
    "disjoint": dp.DisjointBatches(steps_per_pass=10),
    "cyclic": dp.CyclicPoisson(sampling_probability=0.25, bands=2),
    "unamplified": dp.Unamplified(),
}


class Run:
    """A linear model, and its optimizers in turn."""

    def __init__(self, make_plan, kind="poisson", num_optimizers=1):
        self.plan = make_plan(sampling=SAMPLING[kind], noise_multiplier=3.0)
        self.loader = loader_of(kind, self.plan, torch.randn(40, 3))
        self.models = [nn.Linear(3, 1) for _ in range(num_optimizers)]
        self.optimizers = []
        for model in self.models:
            optimizer = DPOptimizer(
                torch.optim.SGD(model.parameters(), lr=0.1),
                plan=self.plan,
                loader=self.loader,
                continue_from=self.optimizers[0] if self.optimizers else None,
            )
            self.optimizers.append(optimizer)

    def step(self, batch, which=0):
        self.backward(batch, which)
        self.optimizers[which].step()

    def backward(self, batch, which=0):
        model = self.models[which]
        self.optimizers[which].backward(lambda x: model(x).square().sum(1), batch)


def skips(run, batch):
    """Take no step where a loss is not finite, before anything is computed of it."""


def drops(run, batch):
    run.backward(batch)
    run.optimizers[0].zero_grad()


def fails(run, batch):
    """Go on after an error, as where memory ran out."""
    with contextlib.suppress(RuntimeError):
        run.backward(batch[:, :2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLING)
@pytest.mark.parametrize("leave_out", [skips, drops, fails])
def test_a_batch_that_is_left_out_is_told_and_named(make_plan, kind, leave_out):
    """What is in it may have decided that, so who sees the steps learns of it."""
    run = Run(make_plan, kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, batch in zip(range(7), run.loader, strict=False):
            if number in {POISONED, POISONED + 2}:
                leave_out(run, batch)
            else:
                run.step(batch)
    certificate = run.optimizers[0].certificate()

    assert sum(TOLD in str(w.message) for w in caught) == 1
    assert any(line.startswith(SAID) for line in certificate.assumptions)
    assert dp.verify(certificate, quick=True).ok


def test_a_step_for_every_batch_is_told_nothing_of(make_plan):
    """Nor is a first batch that was looked at, a broken iteration, or the end of one."""
    run = Run(make_plan)
    next(iter(run.loader))
    for num_steps in (2, 3):
        for batch in itertools.islice(run.loader, num_steps):
            run.step(batch)
        next(iter(run.loader))
    certificate = run.optimizers[0].certificate()

    assert not any(line.startswith(SAID) for line in certificate.assumptions)


def test_two_optimizers_may_take_turns(make_plan):
    """A batch that another optimizer released was not left out."""
    run = Run(make_plan, num_optimizers=2)
    for number, batch in enumerate(run.loader):
        run.step(batch, which=number % 2)

    for optimizer in run.optimizers:
        assumptions = optimizer.certificate().assumptions
        assert not any(line.startswith(SAID) for line in assumptions)
