"""Every optimizer of torch makes the same update of a private gradient as of any."""

import copy

import pytest
import torch
from torch import nn

from dp import DPOptimizer, Unamplified, UnsupportedOperationError


OPTIMIZERS = sorted(
    name
    for name in torch.optim.__all__
    if isinstance(getattr(torch.optim, name), type) and name != "Optimizer"
)
REFUSED = {"LBFGS", "SparseAdam"}
ONLY_MATRICES = {"Muon"}
# What changes the code that makes the update.
VARIANTS = {
    "plain": {},
    "foreach": {"foreach": True},
    "single tensor": {"foreach": False},
    "fused": {"fused": True},
    "maximize": {"maximize": True},
    "tensor rate": {"lr": torch.tensor(0.01)},
    "weight decay": {"weight_decay": 0.1},
}


def model_for(name):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    if name in ONLY_MATRICES:
        for layer in (model[0], model[2]):
            layer.bias = None
    return model


def built(name, parameters, variant):
    return getattr(torch.optim, name)(parameters, **VARIANTS[variant])


def exists(name, variant):
    """Whether torch has this variant of this optimizer at all."""
    try:
        built(name, [nn.Parameter(torch.zeros(2, 2))], variant)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


CASES = [
    pytest.param(name, variant, id=f"{name}, {variant}")
    for name in OPTIMIZERS
    for variant in VARIANTS
    if name not in REFUSED and exists(name, variant)
]


def test_no_optimizer_of_torch_is_left_out():
    """At least the plain variant of each is in the table below."""
    assert {case.values[0] for case in CASES} | REFUSED == set(OPTIMIZERS)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_update_is_the_wrapped_optimizers_own(make_plan, name, variant):
    """Given the released gradient, a bare optimizer takes the very same step."""
    model = model_for(name)
    twin = copy.deepcopy(model)
    inner = built(name, list(model.parameters()), variant)
    bare = built(name, list(twin.parameters()), variant)
    optimizer = DPOptimizer(inner, plan=make_plan(sampling=Unamplified()))
    for steps in range(1, 4):
        optimizer.backward(model(torch.randn(4, 3)).square().squeeze(1))
        optimizer.step()
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.grad = parameter.grad.clone()
        bare.step()
        assert optimizer.ledger.steps == steps

    assert any(parameter.grad.any() for parameter in model.parameters())
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_every_other_optimizer_of_torch_is_refused_by_name(make_plan, name):
    """Every optimizer of torch is in one of the two tables."""
    inner = getattr(torch.optim, name)([nn.Parameter(torch.zeros(1))])

    with pytest.raises(UnsupportedOperationError, match=name):
        DPOptimizer(inner, plan=make_plan(sampling=Unamplified()))


class ScheduleFree(torch.optim.SGD):
    """An optimizer with two modes, as the schedule-free ones have."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.mode = "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"

    def step(self, closure=None):
        assert self.mode == "train"
        return super().step(closure)


def test_modes_of_a_schedule_free_optimizer_are_reached(make_run):
    """Frameworks look for them by ``hasattr``, and drop them if they are not found."""
    run = make_run(ScheduleFree)
    run.optimizer.eval()
    assert run.inner.mode == "eval"

    run.optimizer.train()
    run.train(1)

    assert run.optimizer.ledger.steps == 1


DIFFERENTIABLE = [
    name
    for name in OPTIMIZERS
    if "differentiable" in getattr(torch.optim, name)([torch.zeros(1, 1)]).defaults
]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_an_update_that_autograd_records_is_refused(make_plan, name):
    """No leaf can be written to then, which torch says when the release is charged."""
    inner = getattr(torch.optim, name)([nn.Parameter(torch.zeros(1))])
    inner.param_groups[0]["differentiable"] = True

    with pytest.raises(UnsupportedOperationError, match=r"group 0 .*leave .* out"):
        DPOptimizer(inner, plan=make_plan(sampling=Unamplified()))


def test_an_update_that_autograd_records_later_is_not_charged(make_run):
    """Groups may be added, and options set, at any time; the batch is kept."""
    run = make_run()
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    run.optimizer.param_groups[0]["differentiable"] = True
    with pytest.raises(UnsupportedOperationError, match="differentiable=True"):
        run.optimizer.step()
    assert run.optimizer.ledger.steps == 0

    run.optimizer.param_groups[0]["differentiable"] = False
    run.optimizer.step()

    assert run.optimizer.ledger.steps == 1
