"""What takes the place of a gradient before a release, and whom it tells."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from dp._mechanism.stand_in import StandIn, WatchedZeros


TOLD = "read or edited between backward and step"


def backward(run):
    run.optimizer.backward(run.losses(next(iter(run.loader))))


def gradients(run):
    return [p.grad for p in run.model.parameters() if p.grad is not None]


EDITS = {
    "clip_norm": lambda p, _: nn.utils.clip_grad_norm_(p, 1.0),
    "clip_norm_foreach": lambda p, _: nn.utils.clip_grad_norm_(p, 1.0, foreach=True),
    "clip_value": lambda p, _: nn.utils.clip_grad_value_(p, 1.0),
    "clip_value_foreach": lambda p, _: nn.utils.clip_grad_value_(p, 1.0, foreach=True),
    "total_norm": lambda _, g: nn.utils.get_total_norm(g),
    "mul": lambda _, g: g[0].mul_(0.5),
    "add": lambda _, g: g[0].add_(1e-4),
    "norm": lambda _, g: torch.norm(g[0]),
    "squares": lambda _, g: g[0].pow(2).sum().sqrt(),
    "sign": lambda _, g: g[0].sign_(),
    "copy": lambda _, g: g[0].copy_(torch.zeros_like(g[0])),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_clips_scales_or_measures_is_told_once(make_run, edit):
    """It finds zeros; the private step is as without it, and another one is silent."""
    run = make_run()
    batches = iter(run.loader)
    run.optimizer.backward(run.losses(next(batches)))
    with pytest.warns(UserWarning, match=TOLD) as told:
        edit(list(run.model.parameters()), gradients(run))
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of gradients that were added.
        run.optimizer.step()
    run.optimizer.backward(run.losses(next(batches)))
    edit(list(run.model.parameters()), gradients(run))
    assert run.optimizer.ledger.steps == 1


USES = {
    "none": lambda run: run.model.zero_grad(),
    "zero": lambda run: run.optimizer.zero_grad(set_to_none=False),
    "zero_of_model": lambda run: run.model.zero_grad(set_to_none=False),
    "copy": lambda run: copy.deepcopy(run.model),
    "repr": lambda run: repr(gradients(run)),
    "move": lambda run: [g.to("cpu").clone() for g in gradients(run)],
    "ask": lambda run: [(g.shape, g.dtype, g.is_sparse) for g in gradients(run)],
    "scaler": lambda run: GradScaler("cpu", enabled=False).unscale_(run.optimizer),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_clears_copies_or_prints_is_not(make_run, use):
    """Any warning would raise here."""
    run = make_run()
    backward(run)

    use(run)


def test_the_batch_is_released_whatever_became_of_the_stand_in(make_run):
    """In a loop without a trainer, clearing the model's gradients drops nothing."""
    run = make_run(num_features=8)
    batches = iter(run.loader)
    for clear in (run.model.zero_grad, lambda: None):
        run.optimizer.backward(run.losses(next(batches)))
        clear()
        run.optimizer.step()

    assert run.optimizer.ledger.steps == 2
    assert run.model.weight.grad.abs().max() > 0
    assert all(type(p.grad) is torch.Tensor for p in run.model.parameters())


def test_a_gradient_that_replaces_the_stand_in_is_told_of(make_run):
    """It is another loss's, as on every other parameter."""
    run = make_run()
    backward(run)
    run.model.bias.grad = torch.ones(1)

    with pytest.warns(UserWarning, match="gradients of another loss"):
        run.optimizer.step()


def test_a_gradient_that_joins_the_stand_in_is_told_of(make_run):
    """As by a backward pass of another loss, which adds to what it finds."""
    run = make_run()
    backward(run)
    assert not run.optimizer.mechanism.step.has_foreign_grads([run.model.bias])
    (3 * run.model.bias).sum().backward()

    assert run.optimizer.mechanism.step.has_foreign_grads([run.model.bias])
    with pytest.warns(UserWarning, match="gradients of another loss"):
        run.optimizer.step()


PENALTIES = {
    "added": lambda loss, penalty: (loss + penalty).backward(),
    "first": lambda loss, penalty: (penalty.backward(), loss.backward()),
    "last": lambda loss, penalty: (loss.backward(), penalty.backward()),
}


@pytest.mark.parametrize("backward", PENALTIES.values(), ids=PENALTIES)
def test_a_penalty_that_is_not_in_the_losses_is_told_of(make_run, backward):
    """In whatever order autograd meets the two: it would have no effect."""
    run = make_run()
    batches = iter(run.loader)

    def step():
        run.optimizer.zero_grad()
        loss = run.optimizer.private_loss(run.losses(next(batches)))
        backward(loss, 0.1 * run.model.weight.square().sum())
        run.optimizer.step()

    for _ in range(2):
        with pytest.warns(UserWarning, match="Add every other term") as told:
            step()
        assert told[0].filename == __file__
    assert run.optimizer.ledger.steps == 2


@pytest.mark.parametrize("clears", ["nothing", "model", "zeros", "optimizer"])
def test_what_a_step_released_is_no_other_loss(make_run, clears):
    """However gradients are cleared, or not; any warning would raise here."""
    run = make_run(num_features=8)
    for batch in run.loader:
        run.optimizer.private_loss(run.losses(batch)).backward()
        run.optimizer.step()
        if clears == "model":
            run.model.zero_grad()
        elif clears != "nothing":
            run.optimizer.zero_grad(set_to_none=clears == "optimizer")
        run.model.bias.requires_grad_(not run.model.bias.requires_grad)

    assert run.optimizer.ledger.steps > 2


def test_one_tensor_serves_all_batches():
    """Unless somebody wrote to it, or another parameter is the smallest."""
    stand_in, weight, other = StandIn(), nn.Parameter(torch.ones(2)), torch.ones(3)
    seen = []
    for parameter in (weight, weight, other, other):
        stand_in.put(parameter, 0.0)
        seen.append(parameter.grad)
    with torch.no_grad(), pytest.warns(UserWarning, match=TOLD):
        other.grad += 1
    stand_in.put(other, 0.0)

    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    assert not other.grad.any()
    assert other.grad is not seen[3]
    nn.utils.get_total_norm([other.grad])  # Told once a run: this is silent.
    gc.collect()


@pytest.mark.parametrize("kind", ["not watched", "infinite", "a class of its own"])
def test_others_are_plain_tensors(kind):
    """Where nobody is told, or a gradient has to be of its parameter's kind."""

    class Shard(nn.Parameter):
        pass

    stand_in = StandIn()
    stand_in.is_watched = kind != "not watched"
    weight = Shard(torch.ones(2)) if "class" in kind else nn.Parameter(torch.ones(2))
    stand_in.put(weight, float("inf") if kind == "infinite" else 0.0)

    assert not isinstance(weight.grad, WatchedZeros)
    assert stand_in.parameter is weight
    stand_in.take()
    assert stand_in.parameter is None


def test_a_parameter_of_another_kind_has_no_stand_in_in_plain_loops(make_run):
    """Its gradient is None there, as before."""

    class Shard(nn.Parameter):
        pass

    run = make_run()
    run.optimizer.mechanism.step.hide_gradients([Shard(torch.ones(2))], scale=None)
    assert run.optimizer.mechanism.step.stand_in.parameter is None
    run.optimizer.mechanism.step.hide_gradients([], scale=1.0)
    assert run.optimizer.mechanism.step.stand_in.parameter is None
