"""A private class is built where trainers build optimizers from classes."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import dp
from dp import DPOptimizer, Unamplified, UnsupportedOperationError


def private_class(run, kind=torch.optim.AdamW):
    """A class on the plan and the loader of *run*."""
    return dp.wrap_class(kind, plan=run.optimizer.plan, loader=run.loader)


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- our own bytes


def test_it_is_built_like_the_class_that_it_wraps(make_run):
    """With groups, defaults and a signature to inspect; the update is private."""
    run = make_run()
    kind = private_class(run)
    optimizer = kind(
        [{"params": [run.model.weight], "lr": 0.5}, {"params": [run.model.bias]}],
        weight_decay=0.25,
    )
    optimizer.backward(run.losses(next(iter(run.loader))))
    optimizer.step()

    assert kind.__name__ == "DPAdamW"
    assert issubclass(kind, DPOptimizer)
    assert inspect.signature(kind) == inspect.signature(torch.optim.AdamW)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.001]
    assert optimizer.defaults["weight_decay"] == 0.25
    assert isinstance(optimizer.original_optimizer, torch.optim.AdamW)
    assert optimizer.ledger.steps == 1


def test_a_class_is_built_once(make_run):
    """One optimizer for each parameter would have a ledger for each."""
    run = make_run()
    kind = private_class(run)
    kind([run.model.weight])

    with pytest.raises(UnsupportedOperationError, match=r"DPAdamW.*ledger of its own"):
        kind([run.model.bias])


def test_a_class_that_failed_to_build_may_be_built_again(make_run):
    """An error in the arguments spends nothing."""
    kind = private_class(make_run())
    with pytest.raises(ValueError, match="empty parameter list"):
        kind([])

    assert kind([nn.Parameter(torch.zeros(1))]).ledger.steps == 0


@pytest.mark.parametrize(
    ("public", "name"),
    [
        ((tensor for tensor in [torch.ones(3)]), "tensor 0"),
        ({"mask": torch.ones(3)}, "mask"),
    ],
    ids=["once", "by name"],
)
def test_a_class_states_what_was_declared_public(make_run, public, name):
    """Also if it is built a second time, of what can be iterated over once."""
    run = make_run()
    kind = dp.wrap_class(
        torch.optim.AdamW,
        plan=run.optimizer.plan,
        loader=run.loader,
        public=public,
    )
    with pytest.raises(ValueError, match="empty parameter list"):
        kind([])

    (declared,) = kind(run.model.parameters()).ledger.declared_public
    assert declared == f"{name}: float32 of shape (3,)"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_is_a_private_optimizer_without_the_class(make_run, duplicate):
    """Nobody could find a class by name that was made at run time."""
    run = make_run()
    optimizer = private_class(run)(run.model.parameters())
    optimizer.backward(run.losses(next(iter(run.loader))))
    optimizer.step()

    twin = duplicate(optimizer)

    assert type(twin) is DPOptimizer
    assert twin.ledger.steps == 1
    assert isinstance(twin.original_optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("wrong", [DPOptimizer, nn.Linear, "AdamW"])
def test_only_classes_of_optimizers_are_wrapped(make_plan, wrong):
    """And none that is private already."""
    with pytest.raises(TypeError, match="optimizer"):
        dp.wrap_class(wrong, plan=make_plan(sampling=Unamplified()))


def test_what_cannot_be_private_is_refused_when_it_is_built(make_plan):
    """With the reason, as by DPOptimizer."""
    kind = dp.wrap_class(torch.optim.LBFGS, plan=make_plan(sampling=Unamplified()))

    with pytest.raises(UnsupportedOperationError, match="LBFGS"):
        kind([nn.Parameter(torch.zeros(1))])
