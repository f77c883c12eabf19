"""Adam's second moments without the noise that was added (DP-AdamBC)."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp.exceptions import UnsupportedOperationError
from dp.noise import BandedNoise
from dp.sampling import CyclicPoisson


CYCLIC = CyclicPoisson(sampling_probability=0.25, bands=4)
FOUR = BandedNoise((1.0, 0.5, 0.375, 0.3125))


def make_run(
    make_plan, *, inner=torch.optim.Adam, correction=None, clipping=None, **changes
):
    plan = make_plan(**changes)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
    data = TensorDataset(torch.randn(20, 3), torch.randn(20))
    loader = plan.loader(data)
    optimizer = dp.DPOptimizer(
        inner(model.parameters()),
        plan=plan,
        loader=loader,
        clipping=clipping,
        bias_correction=dp.AdamBiasCorrection() if correction is None else correction,
    )
    return model, loader, optimizer


def weights(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


@pytest.mark.parametrize("inner", [torch.optim.Adam, torch.optim.AdamW])
def test_without_noise_it_is_adam_to_the_bit(make_plan, inner):
    """Whatever the floor is."""
    model, loader, optimizer = make_run(
        make_plan,
        inner=inner,
        noise_multiplier=0.0,
        correction=dp.AdamBiasCorrection(floor=1.0),
    )
    twin = copy.deepcopy(model)
    plain = inner(twin.parameters())

    for (x, y), _ in zip(loader, range(5), strict=False):
        optimizer.backward((model(x) - y).square())
        optimizer.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.grad = ours.grad.clone()
        plain.step()

    assert torch.equal(weights(model), weights(twin))


@pytest.mark.parametrize(
    "inner",
    [
        torch.optim.Adam,
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95)),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), maximize=True),
        lambda p: torch.optim.Adam(p, weight_decay=0.1, foreach=True),
    ],
    ids=["Adam", "AdamW", "maximize", "foreach"],
)
def test_updates_are_those_of_the_algorithm(make_plan, inner):
    """Algorithm 1 of Tang et al., by hand from the gradients that were released."""
    floor = 1e-3
    noises = dp.Schedule(((3, 0.5), (17, 1.0)))
    model, loader, optimizer = make_run(
        make_plan,
        inner=inner,
        correction=dp.AdamBiasCorrection(floor=floor),
        noise_multiplier=noises,
    )
    (group,) = optimizer.param_groups
    beta1, beta2 = group["betas"]
    lr, decay = float(group["lr"]), group["weight_decay"]
    decoupled = isinstance(optimizer.original_optimizer, torch.optim.AdamW)
    theta = weights(model).double()
    m = v = torch.zeros_like(theta)
    phi = 0.0
    floored = 0
    for t, (x, y) in enumerate(loader, start=1):
        optimizer.backward((model(x) - y).square())
        optimizer.step()
        g = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
        g = -g if group["maximize"] else g
        if decoupled:
            theta = theta * (1 - lr * decay)
        else:
            g = g + decay * theta
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g.square()
        phi = beta2 * phi + (1 - beta2) * (noises(t - 1) / 10.0) ** 2
        v_hat, phi_hat = v / (1 - beta2**t), phi / (1 - beta2**t)
        below = v_hat - phi_hat < floor
        floored += int(below.sum())
        root = torch.where(below, v_hat.clamp(max=floor), v_hat - phi_hat).sqrt()
        theta = theta - lr * m / (1 - beta1**t) / (root + group["eps"])

        torch.testing.assert_close(weights(model).double(), theta, rtol=1e-4, atol=1e-5)
        theta = weights(model).double()  # Rounding does not add up.
    assert 0 < floored < 20 * theta.numel()  # Both branches were taken.


def test_a_corrected_step_differs_from_adams(make_plan):
    """The twin of the test without noise."""
    model, loader, optimizer = make_run(make_plan)
    twin = copy.deepcopy(model)
    plain = torch.optim.Adam(twin.parameters())
    for (x, y), _ in zip(loader, range(3), strict=False):
        optimizer.backward((model(x) - y).square())
        optimizer.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.grad = ours.grad.clone()
        plain.step()

    assert (weights(model) - weights(twin)).abs().max() > 1e-4


def test_the_average_of_the_noise_is_in_the_state(make_plan):
    """A run that is resumed goes on as it would have."""
    model, loader, optimizer = make_run(make_plan)
    for (x, y), _ in zip(loader, range(4), strict=False):
        optimizer.backward((model(x) - y).square())
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)

    _, _, resumed = make_run(make_plan)
    resumed.load_state_dict(torch.load(file))

    expected = (1 - 0.999**4) * 0.1**2
    for state in resumed.state.values():
        assert state["exp_noise_sq"] == pytest.approx(expected, rel=1e-9)


def test_the_noise_is_that_beside_a_count(make_plan):
    """With quantile clipping: larger than the plan's, at the norm that was found."""
    clipping = dp.QuantileClipping(max_grad_norm=1.0, count_stddev=0.6)
    model, loader, optimizer = make_run(make_plan, clipping=clipping)
    x, y = next(iter(loader))
    optimizer.backward((model(x) - y).square())
    optimizer.step()

    (charge,) = optimizer.ledger.charges()
    stddev = charge.noise_beside_count.gradients * charge.max_grad_norm / 10.0
    for state in optimizer.state.values():
        assert state["exp_noise_sq"] == pytest.approx(0.001 * stddev**2, rel=1e-9)


def test_frozen_parameters_are_left_alone(make_plan):
    """They have neither a gradient nor a state."""
    model, loader, optimizer = make_run(make_plan)
    model[0].requires_grad_(requires_grad=False)
    before = model[0].weight.clone()
    x, y = next(iter(loader))
    optimizer.backward((model(x) - y).square())
    optimizer.step()

    assert torch.equal(model[0].weight, before)
    assert len(optimizer.state) == 2


def test_a_step_that_only_makes_state_is_not_corrected(make_plan):
    """As torch.distributed.checkpoint takes it: nothing was released."""
    model, _, optimizer = make_run(make_plan)
    before = weights(model)
    (group,) = optimizer.param_groups
    rate, group["lr"] = group["lr"], 0.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    group["lr"] = rate

    assert torch.equal(weights(model), before)
    assert not any("exp_noise_sq" in state for state in optimizer.state.values())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"inner": torch.optim.NAdam}, "not of NAdam"),
        ({"inner": torch.optim.SGD}, "not of SGD"),
        ({"inner": lambda p: torch.optim.Adam(p, amsgrad=True)}, "amsgrad=True"),
        ({"clipping": dp.ScaledClipping(max_grad_norm=1.0)}, "ScaledClipping"),
        ({"sampling": CYCLIC, "correlation": FOUR}, "correlation="),
    ],
)
def test_what_it_does_not_know_is_refused(make_plan, options, reason):
    """By name, before anything is wrapped."""
    with pytest.raises(UnsupportedOperationError, match=reason):
        make_run(make_plan, **options)


@pytest.mark.parametrize("floor", [0.0, -1.0, math.inf, math.nan])
def test_a_floor_out_of_range_is_refused(floor):
    """By name."""
    with pytest.raises(ValueError, match="floor"):
        dp.AdamBiasCorrection(floor=floor)


def test_wrapped_classes_take_it(make_plan):
    """For trainers that build the optimizer themselves."""
    plan = make_plan(sampling=dp.Unamplified())
    correction = dp.AdamBiasCorrection()
    private = dp.wrap_class(torch.optim.Adam, plan=plan, bias_correction=correction)

    optimizer = private([nn.Parameter(torch.zeros(3))])

    assert optimizer.bias_correction is correction
    assert copy.deepcopy(optimizer).bias_correction == correction
