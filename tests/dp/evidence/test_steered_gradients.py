"""Gradients that follow other examples, though no loss does, end a run."""

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from dp import SampleMixingError
from dp.evidence import Watch
from dp.evidence._company import Company
from dp.evidence._gradients import verdict_of_gradients

from .losses import Net, cross_entropy


class Multiplied(torch.autograd.Function):
    """Returns its input, and multiplies the gradient."""

    @staticmethod
    def forward(ctx, h, factor):
        ctx.factor = factor
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class RoundedForBackward(torch.autograd.Function):
    """Keeps its input in few bits, by one scale for the whole batch."""

    @staticmethod
    def forward(ctx, h):
        scale = h.abs().max() / 3
        ctx.save_for_backward((h / scale).round() * scale)
        return torch.tanh(h)

    @staticmethod
    def backward(ctx, gradient):
        (h,) = ctx.saved_tensors
        return gradient * (1 - torch.tanh(h).square())


def outer(m, h, y):
    return cross_entropy(m.b(h), y)


def hook_with_a_mean(m, x, y):
    h = torch.tanh(m.a(x))
    factor = 1 / (1 + x.square().mean())
    h.register_hook(lambda gradient: gradient * factor)
    return outer(m, h, y)


def hook_with_ranks(m, x, y):
    h = torch.tanh(m.a(x))
    weights = functional.softmax(5 * x[:, :1], 0)
    h.register_hook(lambda gradient: gradient * weights)
    return outer(m, h, y)


def gradient_reversal_by_a_mean(m, x, y):
    strength = float(x.mean().sigmoid())
    h = torch.tanh(m.a(x))
    return outer(m, -strength * h + ((1 + strength) * h).detach(), y)


def weights_of_the_batch_in_a_detached_term(m, x, y):
    losses = cross_entropy(m(x), y)
    weights = functional.softmax(losses.detach(), 0)
    return losses.detach() + weights * (losses - losses.detach())


def own_function_with_a_mean(m, x, y):
    factor = float(x.square().mean())
    return outer(m, Multiplied.apply(torch.tanh(m.a(x)), factor), y)


def own_function_that_rounds_by_the_largest(m, x, y):
    return outer(m, RoundedForBackward.apply(m.a(x)), y)


def saved_by_one_scale(m, x, y):
    def pack(saved):
        scale = saved.detach().abs().max() / 3
        return (saved.detach() / scale).round(), scale

    h = m.a(x)
    with saved_tensors_hooks(pack, lambda packed: packed[0] * packed[1]):
        h = h * torch.tanh(h)
    return outer(m, h, y)


def module_hook_with_a_count(m, x, y):
    num_positive = int((x[:, 0] > 0).sum()) + 1

    def divided(_module, gradients, _gradients):
        return tuple(gradient / num_positive for gradient in gradients)

    handle = m.b.register_full_backward_hook(divided)
    losses = cross_entropy(m(x), y)
    handle.remove()
    return losses


FOLLOW_OTHERS = [
    hook_with_a_mean,
    hook_with_ranks,
    gradient_reversal_by_a_mean,
    weights_of_the_batch_in_a_detached_term,
    own_function_with_a_mean,
    own_function_that_rounds_by_the_largest,
    saved_by_one_scale,
    module_hook_with_a_count,
]


def hook_over_the_size(m, x, y):
    h = torch.tanh(m.a(x))
    h.register_hook(lambda gradient: gradient / len(x))
    return outer(m, h, y)


def step_size_over_the_root_of_the_number(m, x, y):
    """As of learned step sizes for quantisation, over all numbers of a batch."""
    h = torch.tanh(m.a(x))
    share = h.numel() ** -0.5
    return outer(m, h * share + (h * (1 - share)).detach(), y)


FOLLOW_THE_SIZE = [hook_over_the_size, step_size_over_the_root_of_the_number]


def hook_by_example(m, x, y):
    h = torch.tanh(m.a(x))
    factor = 1 / (1 + x.square().mean(1, keepdim=True))
    h.register_hook(lambda gradient: gradient * factor)
    return outer(m, h, y)


def clamped_by_a_hook(m, x, y):
    h = torch.tanh(m.a(x))
    h.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    return outer(m, h, y)


def straight_through(m, x, y):
    h = torch.tanh(m.a(x))
    return outer(m, h + (h.round() - h).detach(), y)


def reversal_of_public_strength(m, x, y):
    h = torch.tanh(m.a(x))
    return outer(m, -0.3 * h + (1.3 * h).detach(), y)


def saved_in_sixteen_bits(m, x, y):
    with saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.float()):
        h = torch.tanh(m.a(x))
    return outer(m, h, y)


def saved_on_the_host(m, x, y):
    with torch.autograd.graph.save_on_cpu():
        return cross_entropy(m(x), y)


def infinite_for_one(m, x, y):
    """The root of zero has an infinite slope, in the first example alone."""
    return cross_entropy(m(x), y) + (m.a(x)[:, 0] * (y > 0)).abs().sqrt()


HONEST = [
    hook_by_example,
    clamped_by_a_hook,
    straight_through,
    reversal_of_public_strength,
    saved_in_sixteen_bits,
    saved_on_the_host,
    infinite_for_one,
]


def look_thrice(watch, model, loss, size):
    """Evaluate the first batches of a run, and release nothing."""
    for _ in range(3):
        batch = torch.randn(size, 4), torch.randint(0, 3, (size,))
        watch.losses(lambda b: loss(model, *b), batch, segment="a")
        watch.released("a")


def train(optimizer, loss, model, steps, size=16):
    for _ in range(steps):
        batch = torch.randn(size, 4), torch.randint(0, 3, (size,))
        optimizer.backward(lambda b: loss(model, *b), batch)
        optimizer.step()


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("loss", FOLLOW_OTHERS)
def test_gradients_that_follow_other_examples_are_refused(make_optimizer, loss, size):
    """Their losses stay, and they are linear, so that nothing else shows it."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)

    which = (
        "the gradients? of (an example|examples changed)"  # What is left out decides.
    )
    with pytest.raises(SampleMixingError, match=which) as caught:
        train(optimizer, loss, model, 3, size)
    assert not any(c.isdigit() for c in str(caught.value))


@pytest.mark.parametrize("loss", FOLLOW_THE_SIZE)
def test_gradients_that_follow_the_size_of_the_batch_are_refused(make_optimizer, loss):
    """One example less would change those of all others."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)

    with pytest.raises(SampleMixingError, match="there were fewer of them"):
        train(optimizer, loss, model, 1)
    assert optimizer.ledger.steps == 0


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("error::dp.EvidenceWarning")
@pytest.mark.parametrize("loss", HONEST)
def test_gradients_of_one_example_each_are_no_alarm(make_optimizer, loss):
    """Whatever a hook, a detached term or a packed tensor makes of them."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)

    train(optimizer, loss, model, 20)

    assert optimizer.ledger.steps == 20


@pytest.mark.parametrize("loss", FOLLOW_OTHERS)
def test_ranks_see_gradients_that_follow_other_examples(loss, monkeypatch):
    """With as many backward passes on each, whatever it sees."""
    monkeypatch.setattr("dp.evidence._watch.rank_and_size", lambda: (0, 2))
    model, watch = Net(), Watch()

    with pytest.raises(SampleMixingError, match="the gradient of an example"):
        look_thrice(watch, model, loss, 16)


@pytest.mark.filterwarnings("error::dp.EvidenceWarning")
@pytest.mark.parametrize("size", [0, 1, 2, 9])
@pytest.mark.parametrize("loss", HONEST)
def test_ranks_with_any_number_of_examples_raise_no_alarm(loss, size, monkeypatch):
    """The twin."""
    monkeypatch.setattr("dp.evidence._watch.rank_and_size", lambda: (0, 2))
    watch = Watch()

    look_thrice(watch, Net(), loss, size)

    assert watch.records["a"].looks == 3


@pytest.mark.usefixtures("always")
def test_gradients_that_begin_to_follow_others_end_the_run(make_optimizer):
    """One look in eight asks for them after the first steps: 200 miss once in 4e11 runs."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)
    train(optimizer, hook_by_example, model, 4)

    with pytest.raises(SampleMixingError):
        train(optimizer, hook_with_a_mean, model, 200)
    assert optimizer.ledger.failure.startswith("examples were mixed")


def test_gradients_that_are_others_at_every_evaluation_are_told(make_optimizer):
    """They say nothing of the examples."""
    model = Net()
    optimizer = make_optimizer(model.a, model.b)
    calls = iter(range(1, 1000))

    def loss(m, x, y):
        h = torch.tanh(m.a(x))
        factor = float(next(calls))
        h.register_hook(lambda gradient: gradient * factor)
        return outer(m, h, y)

    with pytest.warns(Warning, match="could not be seen"):
        train(optimizer, loss, model, 1)


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("ignore:a hook is registered on a parameter")
def test_hooks_on_parameters_see_no_gradient_of_a_look(make_optimizer):
    """What logs gradients would log private ones."""
    model, seen = Net(), []
    optimizer = make_optimizer(model.a, model.b)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.register_hook(seen.append)

    train(optimizer, lambda m, x, y: cross_entropy(m(x), y), model, 4)

    assert not seen


@pytest.mark.parametrize("of_losses", ["alone", "unclear", "mixed"])
def test_losses_without_parameters_say_what_losses_say(of_losses):
    """There is no gradient to compare. Here losses are others at every evaluation."""
    each = np.arange(4)
    company = Company(
        num_units=4, unit_of_row=each, unit_of_loss=each, ways=[lambda order: order]
    )

    verdict = verdict_of_gradients(
        lambda order, _way=None: torch.rand(len(order)),
        lambda _order, _stays_B: of_losses,
        company,
        num_exchanges=1,
        in_step=False,
        asks_size=True,
    )

    assert verdict == of_losses
