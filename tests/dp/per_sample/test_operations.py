"""Every operation by which parameters are used, against a loop, in float64.

Shapes: ``B`` examples.
"""

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from dp import _tuning
from dp.per_sample import Engine
from dp.per_sample._graph.uses import Operand, Use
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.verification import Verification
from dp.per_sample._rules import recurrent
from dp.per_sample._rules.context import RuleContext
from dp.per_sample._rules.table import RULES


B = 5
pytestmark = pytest.mark.usefixtures("float64")


class Module(nn.Module):
    """A module of a function of itself and its input."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def of(forward, x, **parts):
    return lambda: (Module(forward, **{k: v() for k, v in parts.items()}), x())


def parameter(*shape):
    return lambda: nn.Parameter(torch.randn(shape))


def randn(*shape):
    return lambda: torch.randn(shape)


def tokens(*shape):
    return lambda: torch.randint(0, 7, shape)


def evaluated_batch_norm():
    norm = nn.BatchNorm2d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(1, 2)
    return norm.eval(), torch.randn(B, 3, 4, 4)


def bag(x, m):
    return m.bag(x.flatten(), torch.arange(0, x.numel(), x.shape[1]))


def weighted_bag(m, x):
    return F.embedding_bag(
        x, m.table, mode="sum", per_sample_weights=torch.rand(x.shape), padding_idx=0
    )


def frames(m, x):
    """Images of a video share the examples' axis, video by video."""
    return m.layer(x.flatten(0, 1)).unflatten(0, (len(x), -1))


def frames_time_major(m, x):
    """Images of a video share the examples' axis, moment by moment."""
    moments = m.layer(x.transpose(0, 1).flatten(0, 1))
    return moments.unflatten(0, (-1, len(x))).transpose(0, 1)


def class_token(m, x):
    token = m.token.expand(len(x), -1, -1)
    return torch.cat([token, m.layer(x)], dim=1)


def cross_attention(m, x):
    return m.attention(x[:, :2], x, x, need_weights=False)[0]


def three_inputs(m, x):
    return m.attention(x, x + 1, x - 1, need_weights=False)[0]


def learned_queries(m, x):
    queries = m.queries.expand(len(x), *m.queries.shape[-x.dim() + 1 :])
    return F.scaled_dot_product_attention(queries, x, x)


def learned_memory(m, x):
    """Keys and values of one head that all heads of the queries share."""
    queries, memory = x.unflatten(-1, (2, 4)).transpose(1, 2), m.memory
    keys, values = (part.expand(len(x), -1, -1, -1) for part in memory.unbind())
    return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)


def examples_as_heads(m, x):
    queries = m.queries.expand(1, len(x), -1, -1)
    return F.scaled_dot_product_attention(queries, x[None], x[None])[0]


def queries_of_examples(m, x):
    return F.scaled_dot_product_attention(m.queries, x, x, is_causal=True)


def tied_with_more_tokens(m, x):
    return m.table(x).tanh() @ m.table.weight.T + m.table.weight.sum(1)


def tied(m, x):
    return m.table(x).tanh() @ m.table.weight.T


def packed(m, x):
    first, second = m.w.split([2, 3])
    third, _ = m.w.chunk(2, dim=1)
    return x @ first.T @ m.w[0:2] + (x @ second.T) @ third[None, 2:5, :1].squeeze(0)


def positions(m, x):
    return m.table(x) + m.positions(torch.arange(x.shape[1]))


def two_kinds_of_rows(m, x):
    return (m.layer(x) * m.layer.weight[:, 0]) @ m.layer.weight[1]


OPERATIONS = {
    "conv transposed 1d": lambda: (nn.ConvTranspose1d(3, 2, 3), torch.randn(B, 3, 5)),
    "conv transposed 2d, in groups, dilated": lambda: (
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2),
        torch.randn(B, 4, 4, 4),
    ),
    "conv transposed 3d": lambda: (
        nn.ConvTranspose3d(2, 2, 2),
        torch.randn(B, 2, 2, 3, 2),
    ),
    "conv 1d in groups": lambda: (
        nn.Conv1d(4, 4, 3, groups=4, padding="same"),
        torch.randn(B, 4, 6),
    ),
    "conv 3d, dilated, in groups": lambda: (
        nn.Conv3d(2, 4, 2, dilation=2, groups=2),
        torch.randn(B, 2, 4, 3, 4),
    ),
    "conv of one channel": lambda: (
        nn.Conv2d(1, 3, (3, 2), (2, 3), padding=(2, 1), dilation=(1, 2)),
        torch.randn(B, 1, 6, 9),
    ),
    "conv 1d of one channel": lambda: (nn.Conv1d(1, 2, 3, 4), torch.randn(B, 1, 9)),
    "conv 3d of one channel": lambda: (
        nn.Conv3d(1, 2, 2, padding=1),
        torch.randn(B, 1, 3, 2, 3),
    ),
    "conv of one channel, over frames": of(
        frames, randn(B, 3, 1, 4, 4), layer=lambda: nn.Conv2d(1, 3, 2, 3)
    ),
    "conv transposed, of one channel": lambda: (
        nn.ConvTranspose2d(3, 1, 2),
        torch.randn(B, 3, 3, 2),
    ),
    "large kernels, transposed": lambda: (
        nn.ConvTranspose2d(30, 20, 2),
        torch.randn(B, 30, 2, 2),
    ),
    "frames of a video": of(
        frames, randn(B, 3, 2, 4, 4), layer=lambda: nn.Conv2d(2, 3, 3)
    ),
    "frames, moment by moment": of(
        frames_time_major, randn(B, 3, 2, 4, 4), layer=lambda: nn.Conv2d(2, 3, 3)
    ),
    "group norm of frames": of(
        frames_time_major, randn(B, 3, 2, 4), layer=lambda: nn.GroupNorm(2, 2)
    ),
    "instance norm": lambda: (
        nn.InstanceNorm2d(3, affine=True),
        torch.randn(B, 3, 4, 4),
    ),
    "batch norm in evaluation": evaluated_batch_norm,
    "batch norm of vectors in evaluation": lambda: (
        nn.BatchNorm1d(3).eval(),
        torch.randn(B, 3),
    ),
    "layer norm, time first": of(
        lambda m, x: m.norm(x.transpose(0, 1)).transpose(0, 1),
        randn(B, 3, 4),
        norm=lambda: nn.LayerNorm(4),
    ),
    "rms norm": lambda: (nn.RMSNorm(4), torch.randn(B, 3, 4)),
    "gemma's rms norm": of(
        lambda m, x: F.rms_norm(x, (4,)) * (1.0 + m.w), randn(B, 3, 4), w=parameter(4)
    ),
    "embedding bag of sums": lambda: (
        nn.EmbeddingBag(7, 3, mode="sum", padding_idx=0),
        tokens(B, 6)(),
    ),
    "embedding bag of means": lambda: (nn.EmbeddingBag(7, 3), tokens(B, 6)()),
    "embedding bag with offsets": of(
        lambda m, x: bag(x, m), tokens(B, 6), bag=lambda: nn.EmbeddingBag(7, 3)
    ),
    "embedding bag with weights": of(weighted_bag, tokens(B, 6), table=parameter(7, 3)),
    "several bags of an example": of(
        lambda m, x: m.bag(x.flatten(0, 1)).unflatten(0, (len(x), -1)),
        tokens(B, 2, 6),
        bag=lambda: nn.EmbeddingBag(7, 3),
    ),
    "embedding, time first": of(
        lambda m, x: m.table(x.T).transpose(0, 1),
        tokens(B, 6),
        table=lambda: nn.Embedding(7, 3),
    ),
    "positions": of(
        positions,
        tokens(B, 6),
        table=lambda: nn.Embedding(7, 3),
        positions=lambda: nn.Embedding(9, 3),
    ),
    "rows by number": of(
        lambda m, x: m.table[x - 3], tokens(B, 6), table=parameter(7, 3)
    ),
    "rows by number, time first": of(
        lambda m, x: m.table[x.T.int()].transpose(0, 1),
        tokens(B, 6),
        table=parameter(7, 3),
    ),
    "a row of each example": of(
        lambda m, x: m.table.index_select(0, x), tokens(B), table=parameter(7, 3)
    ),
    "tied embedding": of(tied, tokens(B, 6), table=lambda: nn.Embedding(7, 3)),
    "tied embedding, time first": of(
        lambda m, x: tied(m, x.T).transpose(0, 1),
        tokens(B, 6),
        table=lambda: nn.Embedding(7, 3),
    ),
    "large tied embedding": of(
        lambda m, x: F.linear(m.table(x).tanh(), m.table.weight),
        lambda: torch.randint(0, 400, (B, 6)),
        table=lambda: nn.Embedding(400, 30),
    ),
    "tied embedding, used thrice": of(
        tied_with_more_tokens, tokens(B, 6), table=lambda: nn.Embedding(7, 3)
    ),
    "expert of each head": of(
        lambda m, x: torch.einsum("bhd,hde->bhe", x, m.w),
        randn(B, 2, 4),
        w=parameter(2, 4, 3),
    ),
    "expert of each head, over time": of(
        lambda m, x: torch.einsum("bthd,hde->bthe", x, m.w),
        randn(B, 6, 2, 4),
        w=parameter(2, 4, 3),
    ),
    "expert of each head, time first": of(
        lambda m, x: torch.einsum("tbhd,hde->bthe", x.transpose(0, 1), m.w),
        randn(B, 3, 2, 4),
        w=parameter(2, 4, 3),
    ),
    "large experts": of(
        lambda m, x: torch.einsum("bthd,hde->bthe", x, m.w),
        randn(B, 3, 2, 64),
        w=parameter(2, 64, 128),
    ),
    "expert of each head, both orders": of(
        lambda m, x: (
            torch.bmm(x.permute(2, 1, 0, 3).flatten(1, 2), m.w)
            .unflatten(1, (-1, len(x)))
            .permute(2, 1, 0, 3)
        ),
        randn(B, 3, 2, 4),
        w=parameter(2, 4, 3),
    ),
    "sum of products, of which only one term is trained": of(
        lambda m, x: (
            torch.baddbmm(m.b, x, x.mT)
            + torch.baddbmm(x @ x.mT, x, m.w.expand(len(x), -1, -1))
        ),
        randn(B, 2, 4),
        b=parameter(2, 2),
        w=parameter(4, 2),
    ),
    "expert from the left": of(
        lambda m, x: torch.bmm(m.w, x.permute(1, 2, 0)).permute(2, 0, 1),
        randn(B, 2, 4),
        w=parameter(2, 3, 4),
    ),
    "product of every example's own": of(
        lambda m, x: torch.baddbmm(m.b, x, m.w.expand(len(x), -1, -1), beta=2, alpha=3),
        randn(B, 2, 4),
        b=parameter(2, 3),
        w=parameter(4, 3),
    ),
    "product from the left of every example's own": of(
        lambda m, x: torch.bmm(m.w.expand(len(x), -1, -1), x),
        randn(B, 4, 2),
        w=parameter(3, 4),
    ),
    "matrix times vector": of(lambda m, x: x @ m.w, randn(B, 2, 4), w=parameter(4)),
    "matrix times vector, time first": of(
        lambda m, x: (x.transpose(0, 1) @ m.w).T, randn(B, 2, 4), w=parameter(4)
    ),
    "from the left": of(lambda m, x: (m.w @ x.T).T, randn(B, 4), w=parameter(3, 4)),
    "from the left, over time": of(
        lambda m, x: (m.w @ x.flatten(0, 1).T).T.unflatten(0, (len(x), -1)),
        randn(B, 2, 4),
        w=parameter(3, 4),
    ),
    "quotients": of(
        lambda m, x: m.a / (x.square() + 1) + x / (m.b.square() + 1) / m.c / 2.0,
        randn(B, 2, 3),
        a=parameter(3),
        b=parameter(2, 1),
        c=parameter(),
    ),
    "class token": of(
        class_token,
        randn(B, 2, 4),
        token=parameter(1, 1, 4),
        layer=lambda: nn.Linear(4, 4),
    ),
    "chosen": of(
        lambda m, x: torch.where(x > 0, m.a, m.b),
        randn(B, 3),
        a=parameter(3),
        b=parameter(3),
    ),
    "prelu": lambda: (nn.PReLU(3), torch.randn(B, 3, 4)),
    "cross attention": of(
        cross_attention,
        randn(B, 3, 8),
        attention=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "attention of three inputs": of(
        three_inputs,
        randn(B, 3, 8),
        attention=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "learned queries": of(learned_queries, randn(B, 3, 8), queries=parameter(1, 2, 8)),
    "learned queries of two heads": of(
        learned_queries, randn(B, 2, 3, 8), queries=parameter(2, 4, 8)
    ),
    "learned queries of keys from a layer": of(
        lambda m, x: m.layer(learned_queries(m, m.layer(x))),
        randn(B, 2, 3, 8),
        queries=parameter(2, 4, 8),
        layer=lambda: nn.Linear(8, 8),
    ),
    "learned keys and values, shared by heads": of(
        learned_memory, randn(B, 3, 8), memory=parameter(2, 1, 1, 6, 4)
    ),
    "learned queries, examples as heads": of(
        examples_as_heads, randn(B, 3, 8), queries=parameter(2, 8)
    ),
    "queries for every example": of(
        queries_of_examples, randn(B, 2, 3, 8), queries=parameter(B, 2, 3, 8)
    ),
    "spectrogram": of(
        lambda m, x: torch.stft(
            m.layer(x), 8, window=torch.hann_window(8), return_complex=True
        ).abs(),
        randn(B, 12),
        layer=lambda: nn.Linear(12, 32),
    ),
    "slices of one parameter": of(packed, randn(B, 4), w=parameter(5, 4)),
    "one parameter in three shapes": of(
        two_kinds_of_rows, randn(B, 2, 4), layer=lambda: nn.Linear(4, 4)
    ),
    "scaled by a number": of(
        lambda m, x: x @ (m.w * 3 / 2), randn(B, 4), w=parameter(4, 3)
    ),
    "product of two, as in LoRA": of(
        lambda m, x: x @ (m.a @ m.b * 0.5),
        randn(B, 6, 30),
        a=parameter(30, 2),
        b=parameter(2, 30),
    ),
    "frozen plus trained": of(
        lambda m, x: x @ (m.frozen + m.a @ m.b),
        randn(B, 4),
        frozen=randn(4, 4),
        a=parameter(4, 2),
        b=parameter(2, 4),
    ),
    "weight norm": lambda: (
        parametrizations.weight_norm(nn.Linear(4, 3)),
        torch.randn(B, 6, 4),
    ),
    "pruned": lambda: (
        prune.random_unstructured(nn.Linear(4, 3), "weight", 0.3),
        torch.randn(B, 4),
    ),
    "rows for every example, time first": of(
        lambda m, x: (x.transpose(0, 1).flatten(0, 1) + m.rows).square(),
        randn(B, 2, 3),
        rows=parameter(2 * B, 3),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_exact(name, assert_exact, per_example):
    """A rule serves it without a warning, and equals the loop."""
    model, x = OPERATIONS[name]()
    outputs = model(x)
    if name.startswith("rows for every example"):
        outputs = outputs.unflatten(0, (-1, B)).transpose(0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_exact(per_example(outputs), list(model.parameters()))


@pytest.mark.parametrize("name", sorted(n for n in OPERATIONS if "conv" in n))
def test_convolutions_are_exact_as_an_accelerator_does_them(
    name, monkeypatch, assert_exact, per_example
):
    """As products of windows, whatever the groups are."""
    monkeypatch.setattr(_tuning, "MANY_CHANNEL_PAIRS", {})
    model, x = OPERATIONS[name]()

    assert_exact(per_example(model(x)), list(model.parameters()))


@pytest.mark.parametrize(
    "name", sorted({*OPERATIONS} - {"rows for every example, time first"})
)
@pytest.mark.filterwarnings("ignore:no rule serves")
def test_every_operation_is_exact_for_one_example(name, assert_exact, per_example):
    """With a batch of one there is nothing to tell apart."""
    model, x = OPERATIONS[name]()

    assert_exact(per_example(model(x[:1])), list(model.parameters()))


def test_a_fused_rms_norm_is_exact():
    """Only accelerators have its node; a layer norm's stands for it here."""
    x, weight = torch.randn(B, 2, 3), nn.Parameter(torch.randn(3))
    node = F.layer_norm(x, [3], weight).grad_fn
    operand = Operand(node.next_functions[1], [weight], [])
    use = Use(node, lambda: {1: operand}, outputs=[0], is_last=True)
    rstd = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    held = {"input": x, "result1": rstd, "normalized_shape": (3,)}
    site = RuleContext(use, {0: Layout(-3)}, B, held=held)
    grad = torch.randn(B, 2, 3)

    part = RULES["FusedRmsNormBackward0"].apply(site, [grad])[1]

    torch.testing.assert_close(part.grads_BP, (x * rstd * grad).sum(1))


class Cubed(torch.autograd.Function):
    """A function of one's own, with a parameter."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x**3 * w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * 3 * x**2 * w, (grad * x**3).sum(0)


class Unlearned(torch.autograd.Function):
    """A function that has no gradient of its parameter."""

    @staticmethod
    def forward(_ctx, x, w):
        return x * w

    @staticmethod
    def backward(_ctx, grad):
        return grad, None


WITHOUT_RULE = {
    "columns by number": of(
        lambda m, x: m.table.index_select(1, x).T, tokens(B), table=parameter(3, 7)
    ),
    "entries by number": of(
        lambda m, x: m.table[x, x % 3], tokens(B, 4), table=parameter(7, 3)
    ),
    "keys that the heads of all examples share": of(
        lambda m, x: F.scaled_dot_product_attention(
            x[None], m.memory[:1], m.memory[1:], enable_gqa=True
        )[0],
        randn(B, 3, 8),
        memory=parameter(2, 1, 6, 8),
    ),
    "without a gradient": of(
        lambda m, x: Unlearned.apply(x, m.w) * m.w, randn(B, 3), w=parameter(3)
    ),
    "data plus a product of parameters": of(
        lambda m, x: torch.baddbmm(x, m.a, m.b),
        randn(B, 2, 3),
        a=parameter(B, 2, 2),
        b=parameter(B, 2, 3),
    ),
    "above other layers": of(
        lambda m, x: Cubed.apply(torch.lerp(m.layer(x), m.w, 0.3), m.w),
        randn(B, 3),
        w=parameter(3),
        layer=lambda: nn.Linear(3, 3),
    ),
    "both factors": of(
        lambda m, x: m.a(x) @ m.b.expand(len(x), 4, 3),
        randn(B, 2, 4),
        a=lambda: nn.Linear(4, 4),
        b=parameter(4, 3),
    ),
    "interpolation": of(
        lambda m, x: torch.lerp(x, m.w, 0.3), randn(B, 3), w=parameter(3)
    ),
    "a large embedding bag's maximum": lambda: (
        nn.EmbeddingBag(7, 3, mode="max"),
        tokens(B, 6)(),
    ),
    "stacked": of(
        lambda m, x: torch.stack([x, m.w.expand_as(x)], 1), randn(B, 3), w=parameter(3)
    ),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
@pytest.mark.filterwarnings("ignore:no rule serves")
def test_operations_without_a_rule_are_exact(name, assert_exact, per_example):
    """A backward pass of the operation alone, for each example."""
    model, x = WITHOUT_RULE[name]()

    assert_exact(per_example(model(x)), list(model.parameters()))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_in_single_precision(kind, bidirectional, assert_close):
    """In float32, torch runs a whole layer of an LSTM as one operation."""
    model = kind(3, 4, 2, batch_first=True, bidirectional=bidirectional).float()
    outputs, state = model(torch.randn(B, 3, 3, dtype=torch.float32))
    last = state[0] if isinstance(state, tuple) else state

    losses_B = outputs.square().sum((1, 2)) + last.sum((0, 2))
    assert_close(losses_B, list(model.parameters()))


@pytest.mark.parametrize("read", ["outputs", "hidden", "cells"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_samples", [1, B])
def test_fused_lstm(read, bias, num_samples, assert_close):
    """Whatever the losses read, and with first states that are learned."""
    model = nn.LSTM(3, 4, 2, bias=bias, bidirectional=True).float()
    first = [nn.Parameter(torch.randn(4, 1, 4).float()) for _ in range(2)]
    x = torch.randn(5, num_samples, 3, dtype=torch.float32)
    states = tuple(p.repeat(1, num_samples, 1) for p in first)
    outputs, (hidden, cells) = model(x, states)
    chosen = {"outputs": outputs, "hidden": hidden, "cells": cells}[read]

    losses_B = chosen.sin().sum((0, 2)).square()
    assert_close(losses_B, [*model.parameters(), *first])


class Tagger(nn.Module):
    """Words to tags by an LSTM."""

    def __init__(self, *, is_residual=False, **more):
        super().__init__()
        self.is_residual = is_residual
        self.words = nn.Embedding(7, 4)
        self.layer = nn.LSTM(4, 4, **more)
        self.tags = nn.Linear(8 if more.get("bidirectional") else 4, 3)

    def forward(self, tokens_BT):
        x = self.words(tokens_BT.T)
        outputs, _ = self.layer(x)
        return self.tags(outputs + x if self.is_residual else outputs)


@pytest.mark.parametrize("trained", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_fused_lstm_of_which_a_part_is_trained(trained, assert_close):
    """The rest may be frozen, or another optimizer's."""
    model = nn.LSTM(3, 4).float()
    outputs, _ = model(torch.randn(5, B, 3, dtype=torch.float32))

    assert_close(outputs.square().sum((0, 2)), [getattr(model, trained)])


def test_fused_lstm_over_several_sequences_of_an_example(assert_close):
    """They may share an axis with the examples, in either order."""
    model = nn.LSTM(3, 4).float()
    x = torch.randn(5, 2 * B, 3, dtype=torch.float32)
    parameters = list(model.parameters())

    outputs = model(x)[0].square().sum((0, 2))
    assert_close(outputs.view(B, 2).prod(1), parameters)
    outputs = model(x)[0].square().sum((0, 2))
    assert_close(outputs.view(2, B).prod(0), parameters)


@pytest.mark.filterwarnings("ignore:no rule serves")
def test_fused_lstm_of_learned_inputs_takes_the_slow_path(assert_close):
    """Where a parameter is the input itself, that is, of examples' states."""
    model = nn.LSTM(3, 4).float()
    queries = nn.Parameter(torch.randn(5, 1, 3, dtype=torch.float32))
    start = nn.Linear(3, 4).float()(torch.randn(1, B, 3, dtype=torch.float32))
    outputs, _ = model(queries.expand(-1, B, -1), (start, start))

    losses_B = outputs.square().sum((0, 2))
    assert_close(losses_B, [queries, *model.parameters()])


@pytest.mark.parametrize(
    ("is_kept", "bias"), [(True, True), (False, True), (False, False)]
)
def test_fused_lstm_in_the_middle_of_a_model(is_kept, bias, monkeypatch, assert_close):
    """The rule hands the gradient of the inputs on, by gates that are kept or not."""
    if not is_kept:
        monkeypatch.setattr(recurrent, "_TOLERANCE", -1.0)
    model = Tagger(bidirectional=True, num_layers=2, bias=bias).float()

    losses_B = model(torch.randint(7, (B, 6))).sin().sum((0, 2))
    assert_close(losses_B, [*model.parameters()])


def test_fused_lstm_whose_inputs_are_read_elsewhere_too(assert_close):
    """Torch would add the gradients up before the rule's is there."""
    model = Tagger(is_residual=True).float()

    losses_B = model(torch.randint(7, (B, 6))).sin().sum((0, 2))
    assert_close(losses_B, [*model.parameters()])


def test_fused_lstm_whose_first_state_is_an_examples(assert_close):
    """There is more than one gradient to hand on."""
    words, layer = nn.Embedding(7, 4).float(), nn.LSTM(4, 4).float()
    x = words(torch.randint(7, (5, B)))
    outputs, _ = layer(x, (x.mean(0)[None], x[:1] * 2))

    assert_close(outputs.sin().sum((0, 2)), [words.weight, *layer.parameters()])


def test_gates_are_read_where_onednn_keeps_them():
    """Whether its workspace has the expected form; if not, they are computed again."""
    for steps, num_samples, inputs, hidden in (
        (6, 5, 4, 8),
        (3, 2, 10, 33),
        (2, 3, 8, 128),
    ):
        layer = nn.LSTM(inputs, hidden).float()
        outputs, _ = layer(torch.randn(steps, num_samples, inputs).float())
        node = outputs.grad_fn
        use = Use(node, dict, outputs=[0], is_last=True)
        context = RuleContext(use, {0: Layout(-2)}, num_samples)

        assert recurrent._States.kept(context, outputs.detach()) is not None
        assert recurrent._States.kept(context, outputs.detach() * 1.01) is None
        assert recurrent._States.kept(context, outputs.detach().double()) is None


def test_what_hooks_of_the_inputs_do_is_done():
    """They see the gradient that the rule hands on."""
    model, seen = Tagger().float(), []
    x = model.words(torch.randint(7, (6, B)))
    x.register_hook(lambda grad: seen.append(grad.clone()))
    losses_B = model.tags(model.layer(x)[0]).sin().sum((0, 2))
    parameters = [*model.parameters()]
    (expected,) = torch.autograd.grad(losses_B.sum(), x, retain_graph=True)

    seen.clear()
    Engine(verification=Verification(first=0, every=1 << 62)).gradients(
        losses_B, parameters
    )

    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-6)


def test_without_onednn_there_is_no_rule_for_it(monkeypatch):
    """Torch then runs an LSTM by operations that have rules."""

    def cannot(*_args, **_options):
        raise RuntimeError

    monkeypatch.setattr(torch, "mkldnn_rnn_layer", cannot)

    assert recurrent._table() == {}


@pytest.fixture
def assert_close(by_loop):
    """Every parameter's norms and sums are those of the loop, in single precision."""
    return functools.partial(_assert_close, by_loop)


def _assert_close(by_loop, losses_B, parameters):
    expected = by_loop(losses_B, parameters)
    gradients = Engine().gradients(losses_B, parameters)
    sums = [torch.zeros_like(p) for p in parameters]
    each = list(range(len(sums)))
    ones_GB = torch.ones(len(sums), len(losses_B))
    gradients.add_weighted_sum(ones_GB, each, sums)

    true_GB = torch.stack([rows.flatten(1).square().sum(1) for rows in expected])
    norms_GB = gradients.squared_norms(each)
    torch.testing.assert_close(norms_GB, true_GB, rtol=1e-4, atol=1e-6)
    for total, rows in zip(sums, expected, strict=True):
        torch.testing.assert_close(total, rows.sum(0), rtol=1e-4, atol=1e-5)


def checkpointed(m, x):
    h = m.first(x)
    for layer in m.layers:
        h = checkpoint(layer, h, use_reentrant=False)
    return h


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_models_are_exact(frozen, assert_exact, per_example):
    """Activations that are computed again serve the rules as well."""
    block = [nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4)]
    layers = nn.ModuleList(nn.Sequential(*block, nn.Linear(4, 4)) for _ in range(2))
    model = Module(checkpointed, first=nn.Linear(4, 4), layers=layers)
    model.first.requires_grad_(requires_grad=not frozen)
    parameters = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(B, 3, 4)
    assert_exact(per_example(model(x)), parameters)


@pytest.mark.parametrize("num_samples", [1, B])
def test_a_loss_scale_is_divided_out(num_samples, assert_exact, per_example):
    """The backward pass is scaled, its result is not."""
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 2))
    x = torch.randn(num_samples, 2, 4)

    assert_exact(per_example(model(x)), list(model.parameters()), loss_scale=1024.0)


@pytest.mark.filterwarnings("ignore:no rule serves")
def test_a_loss_scale_reaches_slow_paths(assert_exact):
    """Also where the whole graph is run for every example."""
    w = nn.Parameter(torch.randn(2))
    hidden = torch.randn(2, 2, 2) * w
    kept = torch.where(torch.eye(2, dtype=torch.bool)[..., None], hidden, 0.0)

    assert_exact(kept.sum((1, 2)), [w], loss_scale=8.0)


@pytest.mark.filterwarnings("ignore:no rule serves")
def test_a_slow_path_takes_over_all_uses_of_a_parameter(assert_exact):
    """A use that is known is not counted beside the whole gradient."""
    w = nn.Parameter(torch.randn(2))
    hidden = torch.randn(2, 2, 2) * w
    kept = torch.where(torch.eye(2, dtype=torch.bool)[..., None], hidden, 0.0)

    assert_exact(kept.sum((1, 2)) + (torch.randn(2, 2) * w).sum(1).sin(), [w])
