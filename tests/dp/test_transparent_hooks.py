"""Hooks, profiles and closures see one step, of the outermost optimizer."""

import functools

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.profiler import ProfilerActivity, profile

from dp.optimizer import _step_hooks
from dp.optimizer._transparent import TransparentOptimizer


class Layer(TransparentOptimizer):
    """A layer of another class, so that profiles can tell it from the rest."""


class Scaled(SGD):
    """An optimizer whose step takes more than a closure."""

    def step(self, closure=None, scale=1.0, *, offset=0.0):  # noqa: ARG002 -- torch's
        self.received = (scale, offset)
        return "stepped"


def sgd():
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    return SGD([weight], lr=0.5)


def stacked(inner, depth):
    outer = inner
    for _ in range(depth):
        outer = Layer(outer)
    return outer


@pytest.fixture
def global_hooks():
    """Record who a global pre and a global post hook were called with."""
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, *_: seen.append(("pre", o))),
        register_optimizer_step_post_hook(lambda o, *_: seen.append(("post", o))),
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("scheduled", ["nothing", "inner", "every layer"])
def test_global_hooks_fire_once_with_the_outer_object(global_hooks, depth, scheduled):
    """Also where schedulers have patched ``step`` of a layer below."""
    inner = sgd()
    if scheduled != "nothing":
        StepLR(inner, 1)
    outer = Layer(inner)
    for _ in range(depth - 1):
        if scheduled == "every layer":
            StepLR(outer, 1)
        outer = Layer(outer)

    outer.step()

    assert global_hooks == [("pre", outer), ("post", outer)]
    assert inner.param_groups[0]["params"][0].item() == -0.5


def test_a_scheduler_of_the_wrapped_optimizer_hears_of_its_step(recwarn):
    """Otherwise it would warn that it was stepped before the optimizer."""
    inner = sgd()
    scheduler = StepLR(inner, 1, gamma=0.5)
    Layer(inner).step()
    scheduler.step()

    assert inner.param_groups[0]["lr"] == 0.25
    assert not recwarn.list


def test_an_optimizer_of_another_library_fires_global_hooks_itself(global_hooks):
    """What hides torch's wrapper is run as it is."""
    inner = sgd()
    inner.step = functools.partial(inner.step)
    outer = Layer(inner)

    outer.step()

    assert [o for _, o in global_hooks] == [outer, inner, inner, outer]


@pytest.mark.parametrize("depth", [1, 2])
def test_hooks_of_the_wrapped_optimizer_fire_within(depth):
    """They were registered on it, and see it."""
    inner, seen = sgd(), []
    inner.register_step_pre_hook(lambda o, a, k: seen.append((o, a, k)))
    inner.register_step_post_hook(lambda o, a, k: seen.append((o, a, k)))

    stacked(inner, depth).step()

    assert seen == [(inner, (inner,), {})] * 2


@pytest.mark.parametrize("hooked", ["outer", "inner"])
def test_a_pre_hook_may_replace_the_arguments(hooked):
    """As torch lets it, with the optimizer as the first of them."""
    inner = Scaled([nn.Parameter(torch.zeros(1))])
    outer = Layer(inner)
    target = {"outer": outer, "inner": inner}[hooked]
    target.register_step_pre_hook(lambda o, _a, _k: ((o, None, 4.0), {"offset": 2.0}))

    outer.step()

    assert inner.received == (4.0, 2.0)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("returned", [False, [], (1,), [(), {}]], ids=str)
def test_a_pre_hook_returns_a_pair_or_none(depth, returned):
    """Whatever else it returns is an error, as without a layer."""
    inner = Scaled([nn.Parameter(torch.zeros(1))])
    outer = stacked(inner, depth)
    outer.register_step_pre_hook(lambda *_: returned)

    with pytest.raises(
        RuntimeError, match=r"None or a tuple of \(new_args, new_kwargs\)"
    ):
        outer.step()


def test_global_hooks_surround_those_of_the_outer_object(global_hooks):
    """In torch's order: the first before the step is the last after it."""
    outer = Layer(sgd())
    outer.register_step_pre_hook(lambda *_: global_hooks.append(("own pre", outer)))
    outer.register_step_post_hook(lambda *_: global_hooks.append(("own post", outer)))

    outer.step()

    assert [name for name, _ in global_hooks] == ["pre", "own pre", "own post", "post"]


def test_a_hook_may_remove_itself():
    """As one does that waits for the first step; the others are called all the same."""
    outer, seen = Layer(sgd()), []

    def once(*_):
        seen.append("once")
        handle.remove()

    handle = outer.register_step_pre_hook(once)
    outer.register_step_pre_hook(lambda *_: seen.append("always"))
    outer.step()
    outer.step()

    assert seen == ["once", "always", "always"]


def test_no_record_is_opened_while_no_profiler_is_on(monkeypatch):
    """It takes longer than the hooks of a step."""
    opened = []
    monkeypatch.setattr(_step_hooks, "record_function", opened.append)

    Layer(sgd()).step()

    assert not opened


@pytest.mark.parametrize("depth", [1, 3])
def test_further_arguments_reach_the_wrapped_step(depth):
    """By position after the closure, and by name; the result comes back."""
    inner = Scaled([nn.Parameter(torch.zeros(1))])
    outer = stacked(inner, depth)

    assert outer.step(None, 2.0, offset=1.0) == "stepped"
    assert inner.received == (2.0, 1.0)


def test_a_closure_of_the_wrapped_optimizer_is_evaluated_once():
    """And its value is what the outermost step returns."""
    inner, calls = sgd(), []

    def closure():
        calls.append(1)
        return 7.0

    assert stacked(inner, 3).step(closure) == 7.0
    assert calls == [1]


def names_in_profile(action):
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        action()
    return {event.key for event in recorded.key_averages()}


def test_profiles_name_the_layer_and_what_it_wraps(make_run):
    """So that the time of clipping and noise is told from that of the update."""
    run = make_run()
    batch = next(iter(run.loader))
    run.optimizer.backward(run.losses(batch))

    names = names_in_profile(run.optimizer.step)
    names |= names_in_profile(run.optimizer.zero_grad)

    assert names >= {
        "Optimizer.step#DPOptimizer.step",
        "Optimizer.step#SGD.step",
        "Optimizer.zero_grad#DPOptimizer.zero_grad",
        "Optimizer.zero_grad#SGD.zero_grad",
    }


def test_hooks_around_a_private_step_see_what_was_released(make_run, global_hooks):
    """Before it there is no gradient to see, or zeros; after it, the noisy one."""
    run, seen = make_run(), []

    def grads(*_):
        gradients = [p.grad for p in run.model.parameters()]
        seen.append([grad is not None and bool(grad.any()) for grad in gradients])

    run.optimizer.register_step_pre_hook(grads)
    run.optimizer.register_step_post_hook(grads)
    run.train(1)

    assert seen == [[False, False], [True, True]]
    assert [o for _, o in global_hooks] == [run.optimizer] * 2


def test_torch_never_rewrites_step_on_the_class(make_run):
    """Unbound calls of torch's own methods find what they look for, too."""
    run = make_run()
    step = type(run.optimizer).step
    torch.optim.Optimizer.zero_grad(run.optimizer)
    run.optimizer._patch_step_function()
    state = torch.optim.Optimizer.state_dict(run.optimizer)

    assert type(run.optimizer).step is step
    assert state["param_groups"][0]["lr"] == 0.1


def test_a_step_argument_that_is_not_callable_is_refused(make_run):
    """Before anything is charged: a gradient handed over would not be private."""
    run = make_run()
    run.optimizer.backward(run.losses(next(iter(run.loader))))

    with pytest.raises(TypeError, match="is a closure, or None, got a float"):
        run.optimizer.step(3.0)

    assert run.optimizer.ledger.steps == 0


def test_a_private_step_takes_the_arguments_of_the_wrapped_one(make_run):
    """With and without a closure in front."""
    run = make_run(Scaled)
    run.optimizer.backward(run.losses(next(iter(run.loader))))

    assert run.optimizer.step(None, 2.0, offset=1.0) == "stepped"
    assert run.inner.received == (2.0, 1.0)
    assert run.optimizer.ledger.steps == 1
