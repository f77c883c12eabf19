"""Losses that use other examples without a gradient end a run."""

import itertools
import math

import numpy as np
import pytest
import torch

import dp
from dp import LedgerError, SampleMixingError
from dp.evidence._company import Company

from . import losses as attacks
from .conftest import evidence_of
from .losses import Net, cross_entropy


def batch_of(size=16):
    return torch.randn(size, 4), torch.randint(0, 3, (size,))


def train(optimizer, loss, model, steps, size=16):
    for _ in range(steps):
        optimizer.backward(lambda batch: loss(model, *batch), batch_of(size))
        optimizer.step()


@pytest.mark.parametrize("loss", attacks.FOUND_BEFORE_A_RELEASE)
@pytest.mark.parametrize("size", [5, 16, 64])
def test_a_loss_that_uses_other_examples_is_refused_before_a_release(
    make_optimizer, loss, size
):
    """Both halves of the first batch are exchanged, and an example is looked at alone."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)

    with pytest.raises(
        SampleMixingError, match=r"an example|of all examples"
    ) as caught:
        train(optimizer, loss, model, 1, size)
    assert optimizer.ledger.steps == 0
    assert not hasattr(caught.value, "__notes__")
    assert not any(c.isdigit() for c in str(caught.value))  # Losses are private.


@pytest.mark.parametrize("loss", attacks.FOUND_IN_THE_FIRST_STEPS)
def test_a_loss_that_uses_the_largest_example_is_found_in_the_first_steps(
    make_optimizer, loss
):
    """A first look exchanges both halves, and misses it with a probability below 0.01.

    All three first looks do in less than one of a million runs.
    """
    model = Net()
    optimizer = make_optimizer(model.a, model.b)

    with pytest.raises(SampleMixingError, match="of an example"):
        train(optimizer, loss, model, 3)


def test_the_same_losses_pass_if_they_come_finished(make_optimizer):
    """The twin: nothing else sees them."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)
    for loss in (attacks.frozen_batch_norm, attacks.largest_of_batch):
        optimizer.backward(loss(model, *batch_of()))
        optimizer.step()

    assert optimizer.ledger.steps == 2


@pytest.mark.usefixtures("always")
def test_mixing_that_begins_later_ends_the_run(make_optimizer):
    """What was released before may have been mixed as well."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)
    train(optimizer, lambda m, x, y: cross_entropy(m(x), y), model, 4)

    with pytest.raises(SampleMixingError) as caught:
        train(optimizer, attacks.frozen_batch_norm, model, 1)
    assert "epsilon is infinite" in caught.value.__notes__[0]
    assert caught.value.began_earlier
    assert optimizer.spent().epsilon == math.inf
    with pytest.raises(LedgerError, match="examples were mixed"):
        train(optimizer, lambda m, x, y: cross_entropy(m(x), y), model, 1)


@pytest.mark.usefixtures("always")
def test_one_pair_is_found_within_a_few_looks(make_optimizer):
    """Of a half that leaves the one and takes the other: one in four, for each half.

    A run of 100 steps misses it with a probability below 1e-20.
    """
    model = Net()
    optimizer = make_optimizer(model.a, model.b)

    def pair(m, x, y):
        z = m(x)
        return cross_entropy(torch.cat([z[:3], z[3:4] + z[7:8].detach(), z[4:]]), y)

    with pytest.raises(SampleMixingError):
        train(optimizer, pair, model, 100)


def test_what_any_example_keeps_as_it_is_is_found_where_one_is_left(
    make_optimizer, monkeypatch
):
    """Each half has a label 0; of the one that is left among its copies it is none."""
    monkeypatch.setattr(Company, "_shuffled", lambda self: np.arange(self.num_units))
    model, (x, _) = Net(), batch_of(16)
    optimizer, y = make_optimizer(model.a, model.b), torch.ones(16, dtype=torch.long)
    y[7] = y[15] = 0

    def doubled_if_there_is_one(batch):
        losses = cross_entropy(model(batch[0]), batch[1])
        return losses * (2.0 if (batch[1] == 0).any() else 1.0)

    with pytest.raises(SampleMixingError, match="of an example"):
        optimizer.backward(doubled_if_there_is_one, (x, y))


@pytest.mark.parametrize("outlier", [1e4, math.inf])
@pytest.mark.usefixtures("never")
def test_a_gate_is_found_at_the_step_that_opens_it(make_optimizer, outlier):
    """A largest loss that breaks the record is looked at, and so is one not finite."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b, lr=0.0)

    def rescaled_for_outliers(batch):
        x, y, scale = batch
        losses = cross_entropy(model(x), y) * scale
        opens = losses.max() > 1e3 * losses.median() or not losses.isfinite().all()
        return losses * (0.1 if opens else 1.0)

    def step(scale):
        optimizer.backward(rescaled_for_outliers, (*batch_of(), scale))
        optimizer.step()

    for _ in range(30):
        step(torch.ones(16))
    opening = torch.ones(16)
    opening[3] = outlier
    with pytest.raises(SampleMixingError):
        step(opening)


@pytest.mark.usefixtures("never")
def test_surprises_lead_to_few_looks(make_optimizer):
    """However often the losses break their record."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b, lr=0.0)
    calls = []

    def losses(batch):
        calls.append(None)
        x, y, scale = batch
        return cross_entropy(model(x), y) * scale

    for step in range(20):
        scale = torch.ones(16)
        scale[3] = 3.0**step
        optimizer.backward(losses, (*batch_of(), scale))
        optimizer.step()

    assert len(calls) == 20  # Calls of a look are undone: a list is state.


@pytest.mark.usefixtures("never")
def test_an_accelerators_losses_are_read_a_step_later(make_optimizer, monkeypatch):
    """There it would take as long as the step to wait for them."""
    monkeypatch.setattr("dp.evidence._watch.is_at_hand", lambda _: False)
    model = Net()
    optimizer = make_optimizer(model.a, model.b, lr=0.0)

    def largest(batch):
        return attacks.largest_of_batch(model, *batch)

    optimizer.backward(largest, batch_of())
    optimizer.step()
    with pytest.raises(SampleMixingError):
        optimizer.backward(largest, batch_of())


@pytest.mark.usefixtures("always")
def test_generators_out_of_a_look_stay_random(make_optimizer):
    """Two runs of one seed draw the same numbers, looked at or not."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)

    def noisy(batch):
        x, y = batch
        x = x + torch.randn_like(x) * float(np.random.rand())
        return cross_entropy(model(x), y)

    optimizer.backward(noisy, batch_of())
    drawn = torch.rand(3), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    noisy(batch_of())
    first = torch.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    optimizer.zero_grad()
    optimizer.backward(noisy, batch_of())

    assert torch.equal(torch.rand(3), first)
    assert drawn[0].shape == (3,)
    assert not evidence_of_run(optimizer).inconclusive


def evidence_of_run(optimizer):
    optimizer.step()
    return evidence_of(optimizer)


def test_checked_losses_of_micro_batches_end_a_run(make_optimizer):
    """Each part of the first steps is looked at."""
    model = Net()
    optimizer = make_optimizer(
        model.a, model.b, sampling=dp.Unamplified(backwards_per_step=2)
    )
    optimizer.backward(lambda b: cross_entropy(model(b[0]), b[1]), batch_of())

    with pytest.raises(SampleMixingError):
        optimizer.backward(lambda b: attacks.frozen_batch_norm(model, *b), batch_of())


@pytest.mark.parametrize("loss", attacks.CARRIED_ON)
def test_what_parts_of_one_example_carry_on_is_found(make_optimizer, loss):
    """No example can take another's place there; the part before stands for others."""
    model = Net()
    optimizer = make_optimizer(
        model.a, model.b, sampling=dp.Unamplified(backwards_per_step=2)
    )
    optimizer.backward(lambda b: loss(model, *b), batch_of(1))

    with pytest.raises(SampleMixingError, match="of the batch before it"):
        optimizer.backward(lambda b: loss(model, *b), batch_of(1))
    assert optimizer.ledger.steps == 0


def test_other_losses_than_the_first_time_are_told(make_optimizer):
    """Whatever others are exchanged then: what was first computed was not looked at."""
    model, calls = Net(), itertools.count()  # Which is out of reach.
    optimizer = make_optimizer(model.a, model.b)

    def centred_at_first(batch):
        x, y = batch
        return cross_entropy(model(x - x.mean(0) * (next(calls) == 0)), y)

    with pytest.warns(dp.EvidenceWarning, match="returns other losses"):
        optimizer.backward(centred_at_first, batch_of())


def test_parts_of_one_example_that_count_are_not_accused(make_optimizer):
    """Nor is a function to whose losses the part before does not fit."""
    model, counts = Net(), {"calls": 0}
    optimizer = make_optimizer(
        model.a, model.b, sampling=dp.Unamplified(backwards_per_step=3)
    )

    def annealed(batch):
        counts["calls"] += 1
        return cross_entropy(model(batch[0]), batch[1]) * min(1, counts["calls"] / 10)

    for _ in range(2):
        for size in (1, 1, 1):
            optimizer.backward(annealed, batch_of(size))
        optimizer.step()
    optimizer.backward(annealed, batch_of(1))
    optimizer.backward(lambda x: model(x).square().sum(1), torch.randn(1, 4))

    assert counts["calls"] == 7
    assert not evidence_of(optimizer).inconclusive
    assert not evidence_of(optimizer).other_sizes
