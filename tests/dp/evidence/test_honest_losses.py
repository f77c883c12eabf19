"""Honest loss functions raise no alarm, and no trace of a look is left."""

import random
import types
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dp
from dp import DPOptimizer, EvidenceWarning, GaussianNoise
from dp.evidence import Watch

from .conftest import every_step_is_due, out_of_reach
from .losses import cross_entropy


B = 12
# An encoder in eval() makes a nested tensor where its masks permit it.
NESTED = "ignore:The PyTorch API of nested tensors"


def points(width=16):
    return torch.randn(B, width), torch.randint(0, 5, (B,))


def images():
    return torch.randn(B, 3, 12, 12), torch.randint(0, 5, (B,))


def tokens():
    return torch.randint(1, 50, (B, 10)), torch.randint(0, 5, (B,))


def plain(*layers):
    model = nn.Sequential(*layers)
    return lambda b: cross_entropy(model(b[0]), b[1])


def dropout():
    return plain(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5))


def group_norm():
    return plain(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.Dropout2d(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def batch_norm_in_eval():
    return plain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(800, 5))


def stochastic_depth():
    blocks, head = nn.ModuleList(nn.Linear(16, 16) for _ in range(4)), nn.Linear(16, 5)

    def losses(b):
        x = b[0]
        for block in blocks:
            if random.random() > 0.3:
                x = x + torch.bernoulli(torch.full((len(x), 1), 0.7)) * block(x)
        return cross_entropy(head(x), b[1])

    return losses


def noise_of_numpy():
    model = nn.Linear(16, 5)

    def losses(b):
        noise = torch.as_tensor(np.random.randn(*b[0].shape), dtype=torch.float32)
        return cross_entropy(model(b[0] + noise), b[1])

    return losses


def own_generators():
    model = nn.Linear(16, 5)
    of_torch, of_numpy = torch.Generator(), np.random.default_rng(3)
    legacy, of_python = np.random.RandomState(2), random.Random(1)

    def losses(b):
        x = b[0] + torch.randn(b[0].shape, generator=of_torch)
        x = x * (of_python.random() + of_numpy.random() + legacy.rand())
        return cross_entropy(model(x), b[1])

    return losses


def attention():
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.1, batch_first=True)
    embedding, encoder = nn.Embedding(50, 16), nn.TransformerEncoder(layer, 2)
    head = nn.Linear(16, 5)

    def losses(b):
        padding = b[0] > 45
        h = encoder(embedding(b[0]), src_key_padding_mask=padding)
        return cross_entropy(head(h.mean(1)), b[1])

    return losses


def attention_in_eval():
    """Under no_grad it takes a fused path."""
    losses = attention()
    for cell in losses.__closure__:
        cell.cell_contents.eval()
    return losses


def recurrent():
    embedding, gru, head = (
        nn.Embedding(50, 8),
        nn.LSTM(8, 8, batch_first=True),
        nn.Linear(8, 5),
    )

    def losses(b):
        lengths = (b[0] > 5).sum(1).clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(
            embedding(b[0]), lengths, batch_first=True, enforce_sorted=False
        )
        _, (last, _) = gru(packed)
        return cross_entropy(head(last[0]), b[1])

    return losses


def mixture_of_experts():
    router, head = nn.Linear(16, 4), nn.Linear(16, 5)
    experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def losses(b):
        gates = router(b[0]).softmax(1)
        out, chosen = torch.zeros_like(b[0]), gates.argmax(1)
        for number, expert in enumerate(experts):
            rows = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(b[0][rows]) * gates[rows, number, None])
        return cross_entropy(head(out), b[1])

    return losses


def checkpointed():
    first, second = nn.Linear(16, 16), nn.Linear(16, 5)

    def losses(b):
        hidden = checkpoint(first, b[0], use_reentrant=False)
        return cross_entropy(second(functional.dropout(hidden)), b[1])

    return losses


def bfloat16_autocast():
    losses = dropout()

    def autocast(b):
        with torch.autocast("cpu", torch.bfloat16):
            return losses(b)

    return autocast


def float16():
    model = nn.Linear(16, 5).half()
    return lambda b: cross_entropy(model(b[0].half()), b[1])


def double():
    model = nn.Linear(16, 5).double()
    return lambda b: cross_entropy(model(b[0].double()), b[1])


def writes_to_its_batch():
    model = nn.Linear(16, 5)

    def losses(b):
        b[0].mul_(2.0)
        return cross_entropy(model(b[0]), b[1])

    return losses


def counts_its_steps():
    model = nn.Linear(16, 5)
    model.num_calls = 0
    temperature = types.SimpleNamespace(value=2.0)
    calls = []

    def losses(b):
        model.num_calls += 1
        temperature.value *= 0.99
        calls.append(model.num_calls)
        return cross_entropy(model(b[0]) / temperature.value, b[1]) * len(calls)

    return losses


def spectral_norm():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 5))
    return lambda b: cross_entropy(model(b[0]), b[1])


def keeps_what_it_saw():
    """As models do that show their attention; no later loss reads it."""

    class Showing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 5)

        def forward(self, x):
            self.shown = x.detach().mean(0)
            return self.layer(x)

    model = Showing()
    return lambda b: cross_entropy(model(b[0]), b[1])


def teacher_that_follows():
    """Whose weights are averages of the student's, and get no gradient."""
    student, teacher = nn.Linear(16, 5), nn.Linear(16, 5)
    teacher.requires_grad_(requires_grad=False)
    moved = np.zeros(1)

    def losses(b):
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.1)
        moved[0] += 1
        target = teacher(b[0]).softmax(1)
        return functional.cross_entropy(student(b[0]), target, reduction="none")

    return losses


def gradient_penalty():
    """A function that differentiates by itself cannot be evaluated without autograd."""
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))

    def losses(b):
        x = b[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square()

    return losses


def tells_what_fails():
    """An example that is NaN, one that is infinite."""
    model = nn.Linear(16, 5)

    def losses(b):
        x = b[0].clone()
        x[:, 0] = torch.where(x[:, 1] > 1, torch.nan, x[:, 0])
        return cross_entropy(model(x), b[1])

    return losses


HONEST = {
    make.__name__: (make, batch)
    for batch, makes in (
        (images, (group_norm, batch_norm_in_eval)),
        (tokens, (attention, attention_in_eval, recurrent)),
        (
            points,
            (
                *(dropout, stochastic_depth, noise_of_numpy, own_generators),
                *(mixture_of_experts, checkpointed, bfloat16_autocast, float16),
                *(double, writes_to_its_batch, counts_its_steps, spectral_norm),
                *(keeps_what_it_saw, tells_what_fails, teacher_that_follows),
                gradient_penalty,
            ),
        ),
    )
    for make in makes
}


@pytest.mark.filterwarnings(NESTED)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_function_raises_no_alarm(name):
    """It is compared at each of 40 steps, and no look is in doubt."""
    make, batch = HONEST[name]
    losses, watch = make(), Watch()
    if name == "batch_norm_in_eval":
        losses.__closure__[0].cell_contents.eval()
    with every_step_is_due(), warnings.catch_warnings():
        warnings.simplefilter("error", EvidenceWarning)
        for _ in range(40):
            watch.losses(losses, batch(), segment="a").sum().backward()
            watch.released("a")

    record = watch.records["a"]
    assert (record.steps, record.evaluated, record.looks) == (40, 40, 40)
    assert not record.inconclusive


@pytest.mark.filterwarnings(NESTED)
def test_what_mixes_without_autograd_only_is_no_alarm():
    """Masks that are all at the end let an encoder in eval() take a path of its own."""
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1
    )
    encoder.eval()
    x, padding = torch.randn(2, 4, 8), torch.zeros(2, 4, dtype=torch.bool)
    padding[0, 3], padding[1, 0] = True, True  # Of both, one is at the end.

    def losses(batch):
        h = encoder(batch[0], src_key_padding_mask=batch[1])
        return (1 + h[:, :, 0].mean(1)).square()

    watch = Watch()
    with every_step_is_due(), warnings.catch_warnings():
        warnings.simplefilter("error", EvidenceWarning)
        for _ in range(12):  # Each exchanges one for the other.
            watch.losses(losses, (x, padding), segment="a")
            watch.released("a")
    with torch.no_grad():
        alone = losses((x[[0, 0]], padding[[0, 0]]))[0]
        assert not torch.isclose(alone, losses((x, padding))[0], rtol=1e-3)


def test_draws_that_depend_on_the_data_are_told_and_not_taken_for_mixing():
    """Rejection sampling draws as many numbers as it needs."""
    model, watch = nn.Linear(16, 5), Watch()

    def losses(b):
        concentrations = functional.softplus(model(b[0])) + 0.05
        drawn = torch.distributions.Dirichlet(concentrations).rsample()
        return -drawn.clamp(1e-6).log().gather(1, b[1][:, None])[:, 0]

    def train():
        for _ in range(60):
            watch.losses(losses, points(), segment="a")
            watch.released("a")

    with (
        every_step_is_due(),
        pytest.warns(EvidenceWarning, match="draws random") as told,
    ):
        train()
    assert len(told) == 1
    assert watch.records["a"].inconclusive


def test_a_function_that_does_not_repeat_itself_is_told():
    """Its counter is where a look does not see it."""
    counter = out_of_reach(calls=0)

    def losses(b):
        counter.calls += 1
        return b[0].sum(1) * counter.calls

    watch = Watch()
    with pytest.warns(EvidenceWarning, match="returns other losses"):
        watch.losses(losses, points(), segment="a")
    assert watch.records["a"].inconclusive


def test_a_counter_that_moves_between_two_evaluations_is_told():
    """The exchange differs, but does not repeat itself."""
    counter = out_of_reach(calls=0)

    def losses(b):
        counter.calls += 1
        return b[0].sum(1) * (1.0 if counter.calls < 2 else 2.0 + (counter.calls == 2))

    watch = Watch()
    with pytest.warns(EvidenceWarning, match="returns other losses"):
        watch.losses(losses, points(), segment="a")


def test_a_function_that_refuses_other_batches_is_told():
    """Whatever it raises; the losses of the real batch are used."""
    model, watch = nn.Linear(16, 5), Watch()

    def losses(b):
        if len(b[0].unique(dim=0)) < B:
            raise RuntimeError("an example occurs twice")
        return cross_entropy(model(b[0]), b[1])

    with pytest.warns(EvidenceWarning, match="or fails"):
        vector = watch.losses(losses, points(), segment="a")
    assert vector.requires_grad


@pytest.mark.parametrize("name", ["dropout", "counts_its_steps", "noise_of_numpy"])
def test_looks_change_nothing_of_a_run(make_plan, name):
    """Weights after training are those of a run that was never looked at."""
    make, batch = HONEST[name]

    def trained(*, looks):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        losses = make()
        models = [c.cell_contents for c in losses.__closure__]
        (model,) = [m for m in models if isinstance(m, nn.Module)]
        plan = make_plan(
            sampling=dp.Unamplified(), noise_multiplier=0.0, expected_batch_size=B
        )
        optimizer = DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.5),
            plan=plan,
            noise=GaussianNoise(),
        )
        for _ in range(8):
            if looks:
                optimizer.backward(losses, batch())
            else:
                optimizer.backward(losses(batch()))
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    with every_step_is_due():
        assert torch.equal(trained(looks=True), trained(looks=False))


@pytest.mark.slow
def test_a_compiled_model_is_compared(make_optimizer):
    """By its own backend; it is not compiled for other sizes."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))
    backend = partial(dp.compile_backend, inner="aot_eager")
    compiled = torch.compile(model, backend=backend)
    optimizer = make_optimizer(model)
    with every_step_is_due():
        for _ in range(4):
            optimizer.backward(lambda b: cross_entropy(compiled(b[0]), b[1]), points())
            optimizer.step()

    (record,) = optimizer.mechanism.watch.records.values()
    assert (record.looks, record.inconclusive) == (4, False)
    assert not record.other_sizes


def test_an_axis_that_was_guessed_wrong_is_no_alarm():
    """Time before examples, and as many times as examples: the next guess is right."""
    model, watch = nn.Linear(2, 1), Watch()

    def losses(batch):
        steps, y = batch  # [T, B, 2], where T is B.
        return model(steps.cumsum(0))[-1, :, 0] - y

    with every_step_is_due(), warnings.catch_warnings():
        warnings.simplefilter("error", EvidenceWarning)
        for _ in range(4):
            watch.losses(losses, (torch.randn(4, 4, 2), torch.randn(4)), segment="a")
            watch.released("a")


def test_a_function_that_takes_no_smaller_batch_is_not_compared_in_size():
    """It is compared with other examples all the same."""
    model, watch = nn.Linear(16, 5), Watch()

    def losses(b):
        if len(b[0]) != B:
            raise RuntimeError("another size")
        return cross_entropy(model(b[0]), b[1])

    watch.losses(losses, points(), segment="a")
    watch.released("a")

    assert not watch.records["a"].inconclusive
    assert not watch.records["a"].other_sizes


@pytest.mark.parametrize("ends_alike", [0, 1, 2])
def test_draws_that_end_alike_by_chance_are_asked_for_again(ends_alike):
    """Rejection may use as many numbers for two batches, and others for a third."""
    counter = out_of_reach(calls=0)

    def losses(b):
        counter.calls += 1
        if counter.calls > 6 + ends_alike:
            torch.rand(1)
        return b[0].sum(1) + b[0].mean()

    watch = Watch()
    with pytest.warns(EvidenceWarning, match="draws random"):
        watch.losses(losses, points(), segment="a")
