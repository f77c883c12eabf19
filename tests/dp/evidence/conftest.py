"""A run whose losses are evaluated by the library."""

import threading
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from dp import DPOptimizer, Unamplified
from dp.evidence import _watch


@contextmanager
def every_step_is_due():
    """Look at every part of every step."""
    with (
        mock.patch.object(_watch, "is_due", return_value=True),
        mock.patch.object(_watch, "picks_call", return_value=True),
    ):
        yield


@contextmanager
def no_step_is_due():
    """Look at none, unless its losses surprise."""
    with mock.patch.object(_watch, "is_due", return_value=False):
        yield


@pytest.fixture
def always():
    with every_step_is_due():
        yield


@pytest.fixture
def never():
    with no_step_is_due():
        yield


@pytest.fixture
def make_optimizer(make_plan):
    """Make the parameters of modules private, with a plan of Unamplified batches."""

    def make(*modules, lr=0.1, **changes):
        numbers = {
            "sampling": Unamplified(),
            "steps": 10_000,
            "expected_batch_size": 64.0,
            **changes,
        }
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        return DPOptimizer(
            torch.optim.SGD(parameters, lr=lr), plan=make_plan(**numbers)
        )

    return make


def out_of_reach(**attributes):
    """Return an object with attributes that no look finds, as a file has."""
    there = threading.local()
    vars(there).update(attributes)
    return there


def evidence_of(optimizer):
    """What is known of the losses of this process."""
    (record,) = optimizer.mechanism.watch.records.values()
    return record
