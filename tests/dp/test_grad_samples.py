"""Per-example gradients of another library, such as Opacus', on the parameters.

Shapes: ``B`` examples.
"""

import math
import warnings

import pytest
import torch
from torch.func import functional_call, grad, vmap

from dp import DPOptimizer, SamplingMismatchError, Unamplified
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


def test_grad_samples_are_clipped_like_the_engines_own(make_run):
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


def test_grad_samples_must_be_of_the_whole_batch(make_run):
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


def test_zero_grad_drops_grad_samples(make_run):
    """A batch that was broken off is not part of the next one."""
    run = make_run()
    leave_grad_samples(run, next(iter(run.loader)))
    run.optimizer.zero_grad()

    assert all(p.grad_sample is None for p in run.model.parameters())


def unchanged(run, before):
    pairs = zip(run.model.parameters(), before, strict=True)
    return run.optimizer.ledger.steps == 0 and all(torch.equal(p, b) for p, b in pairs)


def test_losses_for_a_batch_that_has_them_are_refused(make_run):
    """An example would count by two gradients, or one of them for nothing."""
    run = make_run()
    before = [p.detach().clone() for p in run.model.parameters()]
    batch = next(batch for batch in run.loader if len(batch[0]))
    leave_grad_samples(run, batch)
    rows = run.model.weight.grad_sample

    with pytest.raises(
        SamplingMismatchError,
        match=r"at 0 of group 0, of shape \(1, 3\), has a grad_sample while losses",
    ):
        run.optimizer.backward(run.losses(batch))

    assert run.optimizer.mechanism.pending is None
    assert run.model.weight.grad_sample is rows
    run.optimizer.step()  # Which takes them.
    assert run.optimizer.ledger.steps == 1
    assert not unchanged(run, before)


@pytest.mark.parametrize("give", ["backward", "private_loss"])
def test_grad_samples_beside_losses_are_refused(make_run, give):
    """As when a GradSampleModule is still around the model; the remedy serves."""
    run = make_run()
    before = [p.detach().clone() for p in run.model.parameters()]
    batch = next(batch for batch in run.loader if len(batch[0]))
    if give == "backward":
        run.optimizer.backward(run.losses(batch))
    else:
        run.optimizer.private_loss(run.losses(batch)).backward()
    leave_grad_samples(run, batch)

    with pytest.raises(SamplingMismatchError, match=r"call zero_grad\(\)"):
        run.optimizer.step()
    assert unchanged(run, before)

    run.optimizer.zero_grad()
    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()
    assert run.optimizer.ledger.steps == 1


def test_stale_grad_samples_are_named_when_the_optimizer_is_wrapped(make_plan):
    """They would be taken for the gradients of the first batch."""
    model = torch.nn.Linear(3, 1)
    model.bias.grad_sample = torch.zeros(8, 1)
    inner = torch.optim.SGD(model.named_parameters(), lr=0.1)
    plan = make_plan(sampling=Unamplified())

    with pytest.raises(SamplingMismatchError, match=r"'bias' at 1 of group 0.*already"):
        DPOptimizer(inner, plan=plan)
    model.bias.grad_sample = None

    assert DPOptimizer(inner, plan=plan).ledger.steps == 0


def test_a_model_that_is_still_opacus_own_is_refused(make_plan):
    """Its hooks would run in the private backward pass; the remedy is in the message."""
    opacus = pytest.importorskip("opacus")
    model = opacus.GradSampleModule(torch.nn.Linear(3, 1))
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        plan=make_plan(sampling=Unamplified()),
    )

    with pytest.raises(
        SamplingMismatchError, match=r"will get a grad_sample.*to_standard_module"
    ):
        optimizer.backward(model(torch.randn(4, 3)).square().squeeze(1))
    assert all(p.grad_sample is None for p in model.parameters())

    plain = model.to_standard_module()
    optimizer.backward(plain(torch.randn(4, 3)).square().squeeze(1))
    optimizer.step()
    assert optimizer.ledger.steps == 1


def test_opacus_gradients_are_privatised_as_ever(make_run):
    """Its own module and its own backward pass; the step takes what they left."""
    opacus = pytest.importorskip("opacus")
    run = make_run(noise_multiplier=0.0)
    twin = make_run(noise_multiplier=0.0)
    twin.model.load_state_dict(run.model.state_dict())
    module = opacus.GradSampleModule(run.model, loss_reduction="sum")
    batch = next(batch for batch in run.loader if len(batch[0]))
    before = run.model.weight.detach().clone()
    with warnings.catch_warnings(action="ignore"):  # About hooks without inputs.
        (module(batch[0]).squeeze(1) - batch[1]).square().sum().backward()
    run.optimizer.step()
    leave_grad_samples(twin, batch)
    rows = twin.model.weight.grad_sample

    assert not torch.equal(run.model.weight, before)
    assert run.optimizer.ledger.steps == 1
    norms = torch.cat([rows.flatten(1), twin.model.bias.grad_sample], 1).norm(dim=1)
    sums = (rows / norms.clamp(min=1.0)[:, None, None]).sum(0)
    torch.testing.assert_close(run.model.weight, before - 0.1 * sums / 10)


def test_a_list_holds_the_rows_of_several_passes():
    """Opacus appends one tensor for each backward pass."""
    w, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    w.grad_sample = [torch.ones(2, 2), torch.full((1, 2), math.nan)]
    gradients = from_grad_samples([w, unused])

    norms_B = gradients.squared_norms([0, 0])[0]
    assert norms_B[:2].tolist() == pytest.approx([2.0, 2.0])
    assert norms_B[2].isnan()


@pytest.mark.parametrize("empty", [None, []])
def test_missing_grad_samples_give_no_gradients(empty):
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
