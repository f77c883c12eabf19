"""A learning rate that changes is named, and one that follows a metric is warned of."""

import warnings
from unittest import mock

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

import dp
from dp import DPOptimizer
from dp._mechanism.changed_options import (
    ChangedOptions,
    warn_of_metric_schedulers,
)


SAID = "options of the optimizer that changed between steps"


@pytest.fixture
def loop(make_plan):
    """Train four steps, with *between* called after each; return the optimizer."""

    def loop(between, inner=torch.optim.SGD, **more):
        model = nn.Linear(4, 1)
        optimizer = DPOptimizer(
            inner(model.parameters(), lr=0.1, **more),
            plan=make_plan(sampling=dp.Unamplified(), expected_batch_size=40.0),
        )
        after = between(optimizer)
        for number in range(4):
            losses = model(torch.randn(8, 4)).squeeze(1).square()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dp.EvidenceWarning)
                optimizer.backward(losses)
            optimizer.step()
            after(number, losses)
        return optimizer

    return loop


def assumptions(optimizer):
    return " ".join(optimizer.certificate().assumptions)


def plateau(optimizer):
    scheduler = ReduceLROnPlateau(optimizer, patience=0, mode="max", threshold=1e9)
    return lambda _, losses: scheduler.step(float(losses.detach().mean()))


def plateau_on_inner(optimizer):
    return plateau(optimizer.original_optimizer)


class Follower:
    """A scheduler of one's own, which has neither a hash nor a base class."""

    __hash__ = None

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, metric):
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + metric)

    def get_last_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]


def of_ones_own(optimizer):
    scheduler = Follower(optimizer)
    return lambda number, _: scheduler.step(float(number))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("between", "name"),
    [
        (plateau, "ReduceLROnPlateau"),
        (plateau_on_inner, "ReduceLROnPlateau"),
        (of_ones_own, "Follower"),
    ],
)
def test_a_rate_that_follows_a_loss_is_warned_of(loop, between, name):
    """At the first step with another rate: the metric may be private."""
    with pytest.warns(UserWarning, match=f"{name} sets the learning rate by") as told:
        optimizer = loop(between)

    assert len(told) == 1
    assert SAID in assumptions(optimizer)  # Told once: another warning would raise.


def by_hand(optimizer):
    def assign(number, losses):
        optimizer.param_groups[0]["lr"] = 0.1 * float(losses.detach().mean()) + number

    return assign


def schedule(optimizer):
    scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
    return lambda _number, _losses: scheduler.step()


def momentum(optimizer):
    def assign(number, _):
        optimizer.param_groups[0]["momentum"] = 0.1 * number

    return assign


def tensor(optimizer):
    rate = optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    return lambda _number, _losses: rate.mul_(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("between", [by_hand, schedule, momentum, tensor])
def test_every_option_that_changed_is_named_in_the_certificate(loop, between):
    """Whether it follows from private numbers cannot be told from its value."""
    assert SAID in assumptions(loop(between))


def test_options_that_stay_are_not(loop):
    """A scheduler on another optimizer is nobody's business."""
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    def between(_):
        return lambda *_: other.param_groups[0].update(lr=0.2)

    keep = ReduceLROnPlateau(other)

    assert SAID not in assumptions(loop(between, torch.optim.Adam))
    assert keep.optimizer is other


class ByEpoch(Follower):
    """A schedule of steps that counts for itself."""

    def step(self, epoch):
        super().step(epoch)


class Trains:
    """What trains on a batch, and is no scheduler."""

    def step(self, batch):
        raise NotImplementedError


def test_other_schedulers_are_passed_over():
    """As a framework lists all of them; none would warn."""
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    others = [LambdaLR(sgd, lambda _: 1.0), ByEpoch(sgd), Trains(), object()]

    warn_of_metric_schedulers(others)


def test_a_change_is_told_once():
    """Searching for a scheduler takes a while."""
    options, seen = ChangedOptions(), []
    with mock.patch("dp._mechanism.changed_options.warn_of_metrics_on") as search:
        for rate in (1.0, 1.0, 0.5, 0.2):
            options.note([{"params": [], "lr": rate}])
            seen.append(search.call_count)

    assert seen == [0, 0, 1, 1]
    assert options.have_changed
