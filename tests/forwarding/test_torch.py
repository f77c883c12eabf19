"""Forwarding under PyTorch: optimizers, modules, schedulers, the compiler."""

import copy
import pickle
from abc import ABC
from typing import Generic, TypeVar
from unittest import mock

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingABCMeta,
    ForwardingMeta,
    chain,
    forwarded,
    forwarded_attributes,
    owner_of,
    preserved,
    target,
    unwrap,
    verify,
)


torch = pytest.importorskip("torch", reason="torch is not installed")
Stateful = pytest.importorskip("torch.distributed.checkpoint.stateful").Stateful
Optimizer = torch.optim.Optimizer
T = TypeVar("T")


class Outer(Optimizer, metaclass=ForwardingMeta):
    """An optimizer around another, of any depth."""

    original_optimizer = target(Optimizer)
    param_groups = forwarded(original_optimizer.param_groups)
    state = forwarded(original_optimizer.state)
    defaults = forwarded(original_optimizer.defaults)
    zero_grad = forwarded(original_optimizer.zero_grad)

    def __init__(self, optimizer):
        self.original_optimizer = optimizer
        with preserved(self):
            Optimizer.__init__(self, optimizer.param_groups, optimizer.defaults)
        self.steps = 0

    def __getstate__(self):
        return vars(self)

    def __setstate__(self, state):
        vars(self).update(state)

    def step(self, closure=None):
        self.steps += 1
        return self.original_optimizer.step(closure)


class Guarded(Optimizer, metaclass=ForwardingABCMeta):
    """The same with the metaclass that stays."""

    original_optimizer = target(Optimizer)
    param_groups = forwarded(original_optimizer.param_groups)
    state = forwarded(original_optimizer.state)
    defaults = forwarded(original_optimizer.defaults)
    __init__ = Outer.__init__
    step = Outer.step


NAMES = ("param_groups", "state", "defaults")
each_depth = pytest.mark.parametrize("depth", [1, 2, 3])


def sgd():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter], lr=0.5, momentum=0.9)


def stack(inner, depth, kind=Outer):
    top = inner
    for _ in range(depth):
        top = kind(top)
    return top


@each_depth
@pytest.mark.parametrize("kind", [Outer, Guarded])
def test_building_a_wrapper_leaves_the_optimizer_as_it_was(depth, kind):
    """``Optimizer.__init__`` writes all three names; the inner keeps its own."""
    inner = sgd()
    inner.step()
    before = {name: getattr(inner, name) for name in NAMES}
    groups, state = list(inner.param_groups), dict(inner.state)
    top = stack(inner, depth, kind)

    assert all(getattr(inner, name) is before[name] for name in NAMES)
    assert all(getattr(top, name) is before[name] for name in NAMES)
    assert (inner.param_groups, dict(inner.state)) == (groups, state)
    assert not any(set(NAMES) & set(vars(layer)) for layer in chain(top)[:-1])
    verify(top)


@each_depth
def test_a_wrapper_is_seen_through(depth):
    """The innermost optimizer is the owner, at any depth."""
    inner = sgd()
    top = stack(inner, depth)

    assert unwrap(top) is inner
    assert owner_of(top, "param_groups") == (inner, "param_groups")
    assert len(chain(top)) == depth + 1


@each_depth
def test_reassigned_groups_and_learning_rates_reach_the_optimizer(depth):
    """What accelerate and schedulers do takes effect."""
    inner = sgd()
    top = stack(inner, depth)
    top.param_groups = [dict(group, lr=0.25) for group in top.param_groups]
    top.step()

    parameter = inner.param_groups[0]["params"][0]
    assert torch.equal(parameter, torch.full((2,), 0.75))


ARGUMENTS = {
    "StepLR": {"step_size": 1},
    "ExponentialLR": {"gamma": 0.5},
    "CosineAnnealingLR": {"T_max": 3},
    "LinearLR": {},
    "OneCycleLR": {"max_lr": 1.0, "total_steps": 5},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0},
}


def schedulers():
    return [
        pytest.param(getattr(torch.optim.lr_scheduler, name), arguments, id=name)
        for name, arguments in ARGUMENTS.items()
    ]


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(("cls", "arguments"), schedulers())
@each_depth
def test_a_scheduler_keeps_the_outer_step_and_changes_the_inner_rate(
    cls, arguments, depth
):
    """Schedulers rebind ``step.__func__``: the layer's own step must still run."""
    inner = sgd()
    top = stack(inner, depth)
    scheduler = cls(top, **arguments)
    for _ in range(3):
        top.step()
        scheduler.step()

    assert top.steps == 3
    assert inner.param_groups[0]["lr"] == scheduler.get_last_lr()[0]


class AlsoStateful(Outer, Stateful):
    pass


class AlsoAbstract(Outer, ABC):
    pass


class AlsoGeneric(Outer, Generic[T]):
    pass


class DeclaredStateful(Optimizer, Stateful, metaclass=ForwardingMeta):
    original_optimizer = target(Optimizer)
    param_groups = forwarded(original_optimizer.param_groups)
    state = forwarded(original_optimizer.state)
    defaults = forwarded(original_optimizer.defaults)
    __init__ = Outer.__init__


class GuardedAbstract(Guarded, ABC):
    pass


@pytest.mark.parametrize(
    "cls", [AlsoStateful, AlsoAbstract, AlsoGeneric, DeclaredStateful, GuardedAbstract]
)
def test_subclasses_with_other_bases_forward(cls):
    """Torchtitan combines an optimizer with Stateful."""
    inner = sgd()

    assert cls(inner).param_groups is inner.param_groups
    assert forwarded_attributes(cls).keys() >= set(NAMES)


def test_the_leaving_metaclass_costs_no_metaclass():
    """An instance check is as for any optimizer."""
    assert type(Outer) is type
    assert isinstance(stack(sgd(), 1), Optimizer)


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


@each_depth
@pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled])
def test_copies_and_pickles_step_on_their_own(depth, twin_of):
    """The class is not touched, and the copy has an owner of its own."""
    inner = sgd()
    top = stack(inner, depth)
    twin = twin_of(top)
    for parameter in twin.param_groups[0]["params"]:
        parameter.grad = torch.ones(2)
    twin.step()

    assert type(twin) is Outer
    assert unwrap(twin).state
    assert not inner.state
    assert twin.param_groups is unwrap(twin).param_groups


@each_depth
def test_patching_groups_and_back_restores_the_list(depth):
    """The wrapper of accelerate leaves the patch in the optimizer; ours does not."""
    inner = sgd()
    groups = inner.param_groups
    with mock.patch.object(stack(inner, depth), "param_groups", []):
        assert inner.param_groups == []

    assert inner.param_groups is groups


class InModule(Forwarding, torch.nn.Module, to="mod", forward="training"):
    scale = Forwarded(to="mod")

    def __init__(self, mod):
        object.__setattr__(self, "mod", mod)
        with preserved(self):
            super().__init__()
        self.mod = mod

    def forward(self, x):
        return self.mod(x) * self.scale


class Scaled(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.scale = torch.nn.Parameter(torch.ones(()))


def test_a_module_wrapper_leaves_the_mode_and_registers_the_module():
    """``nn.Module.__init__`` sets ``training``; buffers and parameters forward."""
    inner = Scaled().eval()
    outer = InModule(InModule(inner))

    assert inner.training is outer.training is False
    assert sorted(dict(outer.named_parameters())) == [
        "mod.mod.bias",
        "mod.mod.scale",
        "mod.mod.weight",
    ]
    assert inner.scale is outer.scale
    outer.train()
    assert inner.training
    verify(outer)


@each_depth
def test_a_parameter_set_under_a_forwarded_name_replaces_the_inner_one(depth):
    """``nn.Module.__setattr__`` would register it on the wrapper, or refuse."""
    inner = Scaled()
    outer = stack(inner, depth, InModule)
    other = torch.nn.Parameter(torch.zeros(()))
    for value in (other, None, other):
        outer.scale = value

        assert inner.scale is outer.scale is value
    del outer.scale

    assert not hasattr(inner, "scale")
    assert "scale" not in inner.state_dict()


class Box:
    def __init__(self, factor):
        self.factor = factor

    def times(self, x, *, twice=False):
        return x * self.factor * (2 if twice else 1)


class BoxLayer(metaclass=ForwardingMeta):
    inner = target(Box)
    factor = forwarded(inner.factor)
    times = forwarded(inner.times)

    def __init__(self, inner):
        self.inner = inner


@each_depth
def test_the_compiler_traces_get_set_and_call(depth):
    """One graph, without a break."""
    box = Box(2.0)
    layer = stack(box, depth, BoxLayer)

    def use(x):
        layer.factor = layer.factor + 1.0
        return layer.times(x, twice=True) + layer.factor

    compiled = torch.compile(use, fullgraph=True, backend="eager")
    result = compiled(torch.ones(2))

    assert torch.equal(result, torch.full((2,), 9.0))
    assert box.factor == 3.0


def test_the_compiler_does_not_trace_everything():
    """The test above can fail: a graph break under fullgraph raises."""

    def use(x):
        torch._dynamo.graph_break()
        return x

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(use, fullgraph=True, backend="eager")(torch.ones(2))
