"""Per-example gradients of another library, such as Opacus', on the parameters.

Shapes: ``B`` examples.
"""

import math

import pytest
import torch
from torch.func import functional_call, grad, vmap

from dp import SamplingMismatchError
from dp.per_sample import from_grad_samples


def leave_grad_samples(run, batch):
    """Do what Opacus' ``GradSampleModule`` does in a backward pass."""
    values = {n: p.detach() for n, p in run.model.named_parameters()}

    def loss(values, x, y):
        return (functional_call(run.model, values, (x[None],)).squeeze() - y).square()

    found = vmap(grad(loss), (None, 0, 0))(values, *batch)
    for name, parameter in run.model.named_parameters():
        parameter.grad_sample = found[name]


def stepped(run, batch, give):
    before = [p.detach().clone() for p in run.model.parameters()]
    give(batch)
    run.optimizer.step()
    pairs = zip(run.model.parameters(), before, strict=True)
    return [p.detach() - b for p, b in pairs]


def test_they_are_clipped_as_the_engines_own(make_run):
    """A step on them is the step on the same batch's losses."""
    run = make_run(noise_multiplier=1e-9)
    other = make_run(noise_multiplier=1e-9)
    other.model.load_state_dict(run.model.state_dict())
    batch = next(iter(run.loader))
    while len(batch[0]) < 2:
        batch = next(iter(run.loader))
    moved = stepped(run, batch, lambda batch: leave_grad_samples(run, batch))
    other.optimizer.attach(run.loader)
    groups = [0, 0]
    gradients = other.optimizer.mechanism.engine.gradients(
        other.losses(batch), list(other.model.parameters())
    )
    factors_GB = gradients.squared_norms(groups).rsqrt().clamp(max=1.0)
    sums = [torch.zeros_like(p) for p in other.model.parameters()]
    gradients.add_weighted_sum(factors_GB, groups, sums)

    for change, total in zip(moved, sums, strict=True):
        torch.testing.assert_close(change, -0.1 * total / 10, rtol=1e-4, atol=1e-6)
    assert all(p.grad_sample is None for p in run.model.parameters())


def test_they_must_be_of_the_whole_batch(make_run):
    """The ticket counts examples, whoever computed their gradients."""
    run = make_run()
    batch = next(iter(run.loader))
    leave_grad_samples(run, batch)
    for parameter in run.model.parameters():
        parameter.grad_sample = torch.cat(
            [parameter.grad_sample, parameter.grad_sample]
        )

    with pytest.raises(SamplingMismatchError, match="more losses than the loader drew"):
        run.optimizer.step()
    assert run.optimizer.ledger.steps == 0


def test_zero_grad_drops_them(make_run):
    """A batch that was broken off is not part of the next one."""
    run = make_run()
    leave_grad_samples(run, next(iter(run.loader)))
    run.optimizer.zero_grad()

    assert all(p.grad_sample is None for p in run.model.parameters())


def test_a_list_holds_the_rows_of_several_passes():
    """Opacus appends one tensor for each backward pass."""
    w, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    w.grad_sample = [torch.ones(2, 2), torch.full((1, 2), math.nan)]
    gradients = from_grad_samples([w, unused])

    norms_B = gradients.squared_norms([0, 0])[0]
    assert norms_B[:2].tolist() == pytest.approx([2.0, 2.0])
    assert norms_B[2].isnan()


@pytest.mark.parametrize("empty", [None, []])
def test_there_may_be_none(empty):
    """Then nothing was computed."""
    w = torch.nn.Parameter(torch.zeros(2))
    w.grad_sample = empty

    assert from_grad_samples([w]) is None


@pytest.mark.parametrize("shape", [(3, 1), (2, 3)])
def test_rows_that_do_not_fit_are_refused(shape):
    """Each example has one row, of the parameter's shape."""
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    a.grad_sample, b.grad_sample = torch.zeros(2, 2), torch.zeros(shape)

    with pytest.raises(ValueError, match="grad_sample"):
        from_grad_samples([a, b])
