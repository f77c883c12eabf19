"""Every example's gradient by one backward pass an example, to compare with.

Shapes: ``B`` examples, ``P`` elements of a parameter.
"""

import pytest
import torch

from dp.per_sample import Engine


@pytest.fixture
def float64():
    """Compute in double precision, where exact means 1e-11."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def by_loop():
    """One backward pass an example: [B, P] for each parameter."""
    return _by_loop


def _by_loop(losses_B, parameters):
    rows = [
        torch.autograd.grad(
            loss,
            parameters,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for loss in losses_B
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.fixture
def assert_exact():
    """Norms by group and weighted sums are those of the loop, to 1e-11."""
    return _assert_exact


def _assert_exact(
    losses_B, parameters, *, engine=None, rtol=1e-11, loss_scale=1.0, units=None
):
    expected = _by_loop(losses_B, parameters)
    group_of = [i % 2 for i in range(len(parameters))]
    factors_GB = torch.rand(2, len(losses_B))
    factors_GB[:, 1:2] = 0
    sums = [torch.ones_like(p) for p in parameters]
    fresh = [torch.full_like(p, torch.nan) for p in parameters]
    gradients = (engine or Engine()).gradients(
        losses_B, parameters, loss_scale=loss_scale, units=units
    )
    norms_GB = gradients.squared_norms(group_of)
    gradients.add_weighted_sum(factors_GB, group_of, sums)
    gradients.add_weighted_sum(factors_GB, group_of, fresh, beta=0)

    assert gradients.num_samples == len(losses_B)
    for g in range(max(group_of) + 1):
        of_group = [r for r, i in zip(expected, group_of, strict=True) if i == g]
        true_B = sum(r.reshape(len(r), -1).square().sum(1) for r in of_group)
        torch.testing.assert_close(norms_GB[g], true_B, rtol=rtol, atol=rtol / 100)
    for total, new, rows, group in zip(sums, fresh, expected, group_of, strict=True):
        true = torch.einsum("b...,b->...", rows, factors_GB[group])
        torch.testing.assert_close(total, 1 + true, rtol=rtol, atol=rtol / 10)
        torch.testing.assert_close(new, true, rtol=rtol, atol=rtol / 10)
    assert all(p.grad is None for p in parameters)


@pytest.fixture
def per_example():
    """A loss an example that weighs every output differently."""
    return _per_example


def _per_example(outputs):
    weights = torch.linspace(-1, 1, outputs[0].numel()).view(outputs.shape[1:])
    waves_B = (outputs * weights).flatten(1).sum(1).sin()
    return waves_B + outputs.flatten(1).square().sum(1)
