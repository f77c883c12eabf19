"""Classes that are made from ours: by hand, by trainers, and by those refused."""

import abc
import copy
import pickle
import weakref
from typing import Generic, Protocol, TypeVar, runtime_checkable

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful

from dp import DPOptimizer, Unamplified, UnsupportedOperationError


T = TypeVar("T")


@runtime_checkable
class Optimizable(Protocol):
    """What Lightning looks for, statically from Python 3.12 on."""

    param_groups: list
    defaults: dict
    state: dict

    def state_dict(self): ...
    def load_state_dict(self, state_dict): ...


class Lightnings:
    """A stand-in for LightningOptimizer: no ``__init__`` of ours is ever run."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self._strategy = None
        name = "Lightning" + type(optimizer).__name__
        self.__class__ = type(name, (type(self), type(optimizer)), {})

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def step(self, closure=None):
        self._strategy = "stepped"
        return self._optimizer.step(closure)


def copied_dict(optimizer):
    """The older way: an instance of a subclass with a copy of ``__dict__``."""
    kind = type("Lightning" + type(optimizer).__name__, (type(optimizer),), {})
    twin = kind.__new__(kind)
    vars(twin).update(vars(optimizer))
    return twin


@pytest.mark.parametrize("proxied", [Lightnings, copied_dict])
def test_an_instance_whose_init_never_ran_is_the_optimizer(make_run, proxied):
    """Everything read or written through it acts on the optimizer that steps."""
    run = make_run(noise_multiplier=0.0)
    proxy = proxied(run.optimizer)
    proxy.param_groups = [{**g, "lr": 0.25} for g in proxy.param_groups]
    proxy.max_grad_norm = 0.5
    batch = next(iter(run.loader))
    before = run.model.weight.detach().clone()

    proxy.private_loss(run.losses(batch)).backward()
    proxy.step()

    moved = before - run.model.weight
    torch.testing.assert_close(moved, 0.25 * run.model.weight.grad)
    assert proxy.ledger is run.optimizer.ledger
    assert run.optimizer.ledger.charges()[0].max_grad_norm == 0.5
    assert run.optimizer.ledger.steps == 1
    assert isinstance(proxy, DPOptimizer)


def test_a_proxy_keeps_its_own_methods_and_marks(make_run):
    """Ours are not generated anew in a class with an empty body."""
    run = make_run()
    proxy = Lightnings(run.optimizer)
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    proxy.step()

    assert proxy._strategy == "stepped"
    assert "_strategy" not in vars(run.optimizer)


def test_what_protocols_look_for_is_found(make_run):
    """Data descriptors on the class are found without asking the instance."""
    assert isinstance(make_run().optimizer, Optimizable)
    assert isinstance(make_run().optimizer, Stateful)


class Checkpointed(DPOptimizer, Stateful):
    """The pattern of torchtitan's optimizers."""


class Abstract(DPOptimizer, abc.ABC):
    @abc.abstractmethod
    def named(self): ...


class Concrete(Abstract):
    def named(self):
        return "concrete"


class Parametrised(DPOptimizer, Generic[T]):
    """A class with a parameter."""


class FromModel(DPOptimizer):
    """A constructor of its own."""

    def __init__(self, model, *, plan, loader):
        super().__init__(
            torch.optim.SGD(model.parameters(), lr=0.1), plan=plan, loader=loader
        )


@pytest.mark.parametrize("kind", [Checkpointed, Concrete, Parametrised[int], FromModel])
def test_it_composes_with_other_bases(make_run, kind):
    """No metaclass stays behind to conflict, and the subclass trains."""
    run = make_run()
    wrapped = run.model if kind is FromModel else run.inner
    optimizer = kind(wrapped, plan=run.optimizer.plan, loader=run.loader)
    optimizer.backward(run.losses(next(iter(run.loader))))
    optimizer.step()

    assert optimizer.ledger.steps == 1
    assert copy.deepcopy(optimizer).ledger.steps == 1
    assert pickle.loads(pickle.dumps(optimizer)).ledger.steps == 1  # noqa: S301 -- our own bytes


def test_an_abstract_subclass_stays_abstract(make_run):
    """The base does not lose what it came with."""
    run = make_run()

    with pytest.raises(TypeError, match="abstract"):
        Abstract(run.inner, plan=run.optimizer.plan, loader=run.loader)


def test_it_can_be_weakly_referenced_and_is_equal_to_itself_only(make_run):
    """Schedulers hold it weakly; Lightning and SequentialLR compare by identity."""
    run, other = make_run(), make_run()

    assert weakref.ref(run.optimizer)() is run.optimizer
    assert run.optimizer == run.optimizer
    assert run.optimizer != other.optimizer
    assert len({run.optimizer, other.optimizer}) == 2


class _Distributed(torch.optim.Optimizer):
    """Horovod's pattern: a body that is put into a class of the optimizer's name."""

    def __init__(self, params):
        super(self.__class__, self).__init__(params)


def test_a_class_that_rebuilds_it_from_groups_is_refused_by_name(make_run):
    """It would average raw gradients; the message says what to do instead."""
    optimizer = make_run().optimizer

    with pytest.raises(TypeError, match=r"rebuilt by _Distributed.*torch\.distributed"):
        type(type(optimizer).__name__, (type(optimizer),), dict(vars(_Distributed)))


class NeedsClosure(torch.optim.SGD):
    """As LBFGS, from another library."""

    def step(self, closure):
        return closure()


def test_a_step_that_requires_a_closure_is_refused(make_plan):
    """It would evaluate the loss after the release, as often as it likes."""
    inner = NeedsClosure([nn.Parameter(torch.zeros(1))])

    with pytest.raises(UnsupportedOperationError, match=r"NeedsClosure.*closure"):
        DPOptimizer(inner, plan=make_plan(sampling=Unamplified()))
