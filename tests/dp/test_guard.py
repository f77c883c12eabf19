"""No optimizer steps private parameters but through the private one, at little cost."""

import copy
import gc
import pickle
import weakref
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import nn

from dp import PrivacyError
from dp.optimizer._guard import private_owner_of
from dp.optimizer._registry import OptimizerRegistry


def weights(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- our own bytes


def other(*parameters):
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return torch.optim.SGD(parameters, lr=0.5)


def test_the_wrapped_optimizer_cannot_step_by_itself(make_run):
    """Going around the wrapper raises and moves nothing."""
    run = make_run()
    run.train(1)
    before = weights(run.model)

    with pytest.raises(PrivacyError, match=r"SGD\.step\(\) would update"):
        run.inner.step()

    assert torch.equal(weights(run.model), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_the_wrapped_optimizer_of_a_copy_cannot_step_by_itself(make_run, copied):
    """A copy protects its parameters before it has seen a batch."""
    run = make_run()
    twin = copied(run.optimizer)
    (group,) = twin.param_groups
    for parameter in group["params"]:
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.detach().clone() for parameter in group["params"]]

    with pytest.raises(PrivacyError, match=r"SGD\.step\(\) would update"):
        twin.original_optimizer.step()

    assert all(map(torch.equal, group["params"], before))


def test_another_optimizer_cannot_step_private_parameters(make_run):
    """As when a framework rebuilds the optimizer and forgets the wrapper."""
    run = make_run()
    rebuilt = torch.optim.AdamW(run.optimizer.param_groups)

    with pytest.raises(PrivacyError, match=r"AdamW\.step\(\) would update"):
        rebuilt.step()


def test_optimizers_of_other_parameters_step_freely(make_run):
    """The guard is about private parameters, not about optimizers."""
    run = make_run()
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)

    torch.optim.SGD([weight], lr=0.5).step()

    assert weight.item() == 0.5
    assert run.optimizer.ledger.steps == 0


class Around(torch.optim.Optimizer):
    """An optimizer that steps another one, as Lookahead does, and knows itself."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner
        self.myself = self

    def step(self, closure=None):
        return self.inner.step(closure)


def test_an_optimizer_around_the_private_one_may_step(make_run):
    """It reaches the parameters through the private step, and only through it."""
    run = make_run()
    around = Around(Around(run.optimizer))
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    around.step()

    assert run.optimizer.ledger.steps == 1
    with pytest.raises(PrivacyError, match=r"Around\.step\(\) would update"):
        Around(run.inner).step()


def test_without_private_optimizers_the_guard_looks_at_nothing(monkeypatch):
    """Importing dp changes no other training."""
    monkeypatch.setattr("dp.optimizer._guard._protected", OptimizerRegistry())
    monkeypatch.setattr("dp.optimizer._guard.parameters_of", None)
    weight = nn.Parameter(torch.ones(1))

    other(weight).step()

    assert weight.item() == 0.5


class Watched(list):
    """A list of parameters that counts who goes through it."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_another_optimizer_pays_for_its_own_parameters_only(make_run):
    """Private parameters are looked up, not gone through, however many there are."""
    runs, sgd = [make_run() for _ in range(3)], other(nn.Parameter(torch.ones(1)))
    watched = [Watched(run.optimizer.param_groups[0]["params"]) for run in runs]
    for run, parameters in zip(runs, watched, strict=True):
        run.optimizer.param_groups[0]["params"] = parameters
    sgd.step()
    after_one_step = [parameters.passes for parameters in watched]
    for _ in range(5):
        sgd.step()

    assert after_one_step == [1] * 3  # Another list had taken the place of one.
    assert [parameters.passes for parameters in watched] == after_one_step


@pytest.mark.parametrize("broken", [None, 3, [None], [{}], [{"params": 3}]], ids=repr)
def test_broken_groups_of_a_private_optimizer_fail_nobody_else(make_run, broken):
    """Its own step says what is wrong; its parameters stay protected."""
    run = make_run()
    run.optimizer.param_groups = broken
    weight = nn.Parameter(torch.ones(1))
    other(weight).step()

    assert weight.item() == 0.5
    with pytest.raises(PrivacyError, match=r"SGD\.step\(\) would update"):
        other(run.model.weight).step()


def test_an_optimizer_with_broken_groups_says_so_itself(make_run):
    """The guard leaves the error to its step, and reads the groups that are whole."""
    run = make_run()
    sgd = other(nn.Parameter(torch.ones(1)))
    del sgd.param_groups[0]["params"]

    with pytest.raises(KeyError, match="params"):
        sgd.step()
    sgd.param_groups.insert(0, {"params": [run.model.weight]})
    with pytest.raises(PrivacyError, match=r"SGD\.step\(\) would update"):
        sgd.step()


def test_parameters_that_take_the_place_of_others_are_protected(make_run):
    """As when a model is sharded after its optimizer was built."""
    run = make_run()
    (group,) = run.optimizer.param_groups
    new = [nn.Parameter(torch.ones_like(p)) for p in group["params"]]
    old, group["params"] = group["params"], new

    with pytest.raises(PrivacyError, match=r"SGD\.step\(\) would update"):
        other(new[1]).step()
    other(*old).step()  # Nobody's now.

    assert private_owner_of(new[0]) is run.optimizer
    assert private_owner_of(old[0]) is None


def test_a_parameter_that_is_exchanged_in_place_is_protected_from_the_next_batch(
    make_run,
):
    """No list and no group was replaced; the private pass looks at each parameter."""
    run = make_run()
    run.optimizer.add_param_group(
        {"params": [nn.Parameter(torch.ones(1)) for _ in "abc"]}
    )
    middle = nn.Parameter(torch.ones(1))
    parameters = run.optimizer.param_groups[1]["params"]
    assert private_owner_of(parameters[1]) is run.optimizer
    taken_out, parameters[1] = parameters[1], middle
    other(taken_out).step()  # Nobody's now.
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    run.optimizer.step()

    with pytest.raises(PrivacyError, match=r"SGD\.step\(\) would update"):
        other(middle).step()


@pytest.mark.slow
def test_a_private_optimizer_that_is_gone_protects_nothing(make_run):
    """The model may be trained on by anyone; what was released is public."""
    run = make_run()
    model = run.model
    del run
    gc.collect()
    other(*model.parameters()).step()

    assert private_owner_of(model.weight) is None


class Held(torch.optim.SGD):
    """An optimizer in a cycle, so that only the collector ends it."""

    def __init__(self, *parameters):
        super().__init__(parameters, lr=0.5)
        self.myself = self


def containers_of(registry):
    """Every container that a look-up reads: those of the registry, and in them."""
    found, rest = [], list(vars(registry).values())
    while rest:
        value = rest.pop()
        if isinstance(value, Mapping | Sequence):
            found.append(value)
            rest += value.values() if isinstance(value, Mapping) else value
    return found


@pytest.mark.slow
def test_the_collector_changes_nothing_that_a_look_up_goes_through():
    """As torch.compile does while it traces a step; what went, a later call forgets."""
    registry, weights = (
        OptimizerRegistry(),
        [nn.Parameter(torch.ones(1)) for _ in "abc"],
    )
    stays, *ends = (Held(weight) for weight in weights)
    for owner in (stays, *ends):
        registry.add(owner)
    assert registry.owners_of(weights) == [stays, *ends]
    ended = [weakref.ref(owner) for owner in ends]
    containers = containers_of(registry)
    halfway = [iter(container) for container in containers]
    sizes = [len(container) for container in containers]
    for iterator in halfway:
        next(iterator, None)
    del owner, ends
    gc.collect()
    rests = [len(list(iterator)) for iterator in halfway]

    assert [reference() for reference in ended] == [None, None]
    assert max(sizes) == 3
    assert rests == [max(size - 1, 0) for size in sizes]
    assert registry.owners_of(weights) == [stays]
    registry.add(stays)
    assert len(registry._seen) == 1


def test_what_was_never_registered_refreshes_every_owner():
    """As Lightning's proxy of a private optimizer, which has its groups."""
    registry = OptimizerRegistry()
    first, before, last, after = (nn.Parameter(torch.ones(1)) for _ in range(4))
    owner, proxy = Held(first), Held(first)
    owner.param_groups[0]["params"] += [before, last]
    registry.add(owner)
    owner.param_groups[0]["params"][1] = after  # Between the ends, which are watched.
    assert registry.owners_of([after]) == []

    registry.refresh(proxy)

    assert registry.owners_of([after]) == [owner]


def test_an_owner_that_joins_while_another_is_read_is_protected():
    """Reading groups runs foreign code, which may make an optimizer; so may a thread."""
    registry, weights = OptimizerRegistry(), [nn.Parameter(torch.ones(1)) for _ in "ab"]

    class Joining(Held):
        """One in whose groups another is made."""

        @property
        def param_groups(self):
            if not hasattr(self, "other"):
                self.other = Held(weights[1])
                registry.add(self.other)
            return self.groups

        @param_groups.setter
        def param_groups(self, groups):
            self.groups, self.other = groups, None

    first = Joining(weights[0])
    del first.other
    registry.add(first)

    assert first.other is not None
    assert registry.owners_of(weights) == [first, first.other]
