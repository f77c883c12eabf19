"""Tokens of several units in one sequence, which a mask keeps apart in attention.

Weights between two units are zero, exactly, so that each unit's gradient is its own. What
is read at every step are these weights, or the mask of a fused kernel: one open entry
between two units is enough to refuse the batch.

Shapes: ``T`` tokens.
"""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import dp
from dp import SampleMixingError
from dp.per_sample import Engine


H, D, WORDS = 2, 4, 20


class Block(nn.Module):
    """A layer of attention over the tokens of one row, and a head."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        width = H * D
        self.words, self.norm = nn.Embedding(WORDS, width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, WORDS)

    def forward(self, x, mask):
        h = self.words(x)
        n = self.norm(h)
        q, k, v = (
            layer(n).unflatten(-1, (H, D)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        a = self.attend(q, k, v, mask)
        return self.head(h + self.o(a.transpose(1, 2).flatten(2)))


def fused(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def fused_with_a_scale(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)


def torchs_own_products(q, k, v, mask):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def by_hand(q, k, v, mask):
    scores = q @ k.mT / D**0.5
    scores = (
        scores.masked_fill(~mask, -math.inf)
        if mask.dtype == torch.bool
        else (scores + mask)
    )
    return scores.softmax(-1) @ v


def by_hand_with_dropout(q, k, v, mask):
    torch.manual_seed(3)
    scores = q @ k.mT + (0.0 if mask.dtype == torch.bool else mask)
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    return F.dropout(scores.softmax(-1), 1e-12) @ v


def by_einsum(q, k, v, mask):
    scores = torch.einsum("bhid,bhjd->bhij", q, k)
    scores = (
        torch.where(mask, scores, -math.inf)
        if mask.dtype == torch.bool
        else (scores + mask)
    )
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


ATTEND = [
    fused,
    fused_with_a_scale,
    torchs_own_products,
    by_hand,
    by_hand_with_dropout,
    by_einsum,
]


def of_booleans(is_open_TT):
    return is_open_TT


def of_infinities(is_open_TT):
    return torch.zeros(is_open_TT.shape).masked_fill(~is_open_TT, -math.inf)


def of_least_numbers(is_open_TT):
    least = torch.finfo(torch.float32).min
    return torch.zeros(is_open_TT.shape).masked_fill(~is_open_TT, least)


MASKS = [of_booleans, of_infinities, of_least_numbers]
CONTIGUOUS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
IN_TURN = torch.tensor([0, 1, 2, 0, 1, 2, 3, 0, 3, 1])


def blocks(unit_T, *, causal=True):
    is_own = unit_T[:, None] == unit_T[None]
    return (is_own.tril() if causal else is_own)[None, None]


def losses_of(model, x, y, mask):
    return F.cross_entropy(model(x, mask)[0], y[0], reduction="none")


def gradients_of(model, unit_T, mask):
    x, y = torch.randint(WORDS, (2, 1, len(unit_T)))
    losses = losses_of(model, x, y, mask)
    return Engine().gradients(losses, [*model.parameters()], units=unit_T), x, y


def by_loop(model, x, y, mask, unit_T):
    """Differentiate each unit's losses, of its tokens alone."""
    for unit in unit_T.unique():
        of = (unit_T == unit).nonzero()[:, 0]
        own = mask.expand(1, 1, len(unit_T), -1)[:, :, of][..., of]
        total = losses_of(model, x[:, of], y[:, of], own).sum()
        yield torch.autograd.grad(total, [*model.parameters()])


@pytest.mark.parametrize("unit_T", [CONTIGUOUS, IN_TURN], ids=["in runs", "in turn"])
@pytest.mark.parametrize("write", MASKS)
@pytest.mark.parametrize("attend", ATTEND)
def test_gradients_are_those_of_each_unit_alone(attend, write, unit_T):
    model = Block(attend).double()
    mask = write(blocks(unit_T))
    mask = mask if mask.dtype == torch.bool else mask.double()

    gradients, x, y = gradients_of(model, unit_T, mask)

    parameters = [*model.parameters()]
    factor_U = torch.rand(4, dtype=torch.float64)
    sums = [torch.zeros_like(p) for p in parameters]
    norms_U = gradients.squared_norms([0] * len(parameters))[0].sqrt()
    gradients.add_weighted_sum(factor_U[None], [0] * len(parameters), sums)
    alone = [*by_loop(model, x, y, mask, unit_T)]
    for unit, of_unit in enumerate(alone):
        norm = torch.cat([g.flatten() for g in of_unit]).norm()
        torch.testing.assert_close(norms_U[unit], norm, rtol=1e-9, atol=1e-12)
    for place, total in enumerate(sums):
        expected = sum(f * of[place] for f, of in zip(factor_U, alone, strict=True))
        torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


def without_blocks(unit_T):
    return torch.ones(len(unit_T), len(unit_T), dtype=torch.bool).tril()[None, None]


def with_one_open_entry(unit_T):
    mask = blocks(unit_T)
    mask[..., 4, 1] = True
    return mask


def with_a_large_number(unit_T):
    return torch.zeros(1).masked_fill(~blocks(unit_T), -30.0)


def that_is_not_a_number(unit_T):
    mask = of_infinities(blocks(unit_T))
    mask[..., 4, 1] = math.nan
    return mask


def closed_for_a_whole_row(unit_T):
    """By the least number, which leaves equal weights for everything."""
    mask = of_least_numbers(blocks(unit_T))
    mask[..., 4, :] = torch.finfo(torch.float32).min
    return mask


@pytest.mark.parametrize("attend", [fused, by_hand])
@pytest.mark.parametrize(
    "make",
    [
        without_blocks,
        with_one_open_entry,
        with_a_large_number,
        that_is_not_a_number,
        closed_for_a_whole_row,
    ],
)
def test_units_that_read_each_other_are_refused(attend, make):
    with pytest.raises(SampleMixingError, match=r"units meet|not finite"):
        gradients_of(Block(attend), CONTIGUOUS, make(CONTIGUOUS))


def test_attention_without_a_mask_is_refused():
    def attend(q, k, v, _mask):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with pytest.raises(SampleMixingError, match="units meet"):
        gradients_of(Block(attend), CONTIGUOUS, None)


def test_heads_that_share_keys_are_refused_where_they_are_packed():
    def attend(q, k, v, mask):
        shared = k[:, :1], v[:, :1]
        return F.scaled_dot_product_attention(q, *shared, mask, enable_gqa=True)

    with pytest.raises(SampleMixingError, match="units meet"):
        gradients_of(Block(attend), CONTIGUOUS, of_infinities(blocks(CONTIGUOUS)))


def test_a_bias_of_scores_may_be_learned():
    """By each head: torch then multiplies by itself."""

    class Biased(Block):
        def __init__(self):
            super().__init__(self.attended)
            self.bias = nn.Parameter(torch.randn(1, H, 1, 1))

        def attended(self, q, k, v, mask):
            return fused(q, k, v, mask + self.bias * torch.arange(k.shape[-2]))

    model, mask = Biased().double(), of_infinities(blocks(CONTIGUOUS)).double()
    gradients, x, y = gradients_of(model, CONTIGUOUS, mask)
    norms_U = gradients.squared_norms([0] * len([*model.parameters()]))[0].sqrt()
    for norm, of_unit in zip(
        norms_U, by_loop(model, x, y, mask, CONTIGUOUS), strict=True
    ):
        own = torch.cat([g.flatten() for g in of_unit]).norm()
        torch.testing.assert_close(norm, own)


def test_scores_that_outweigh_a_mask_are_refused():
    """Where 1e39 is added to a score, the least number does not close it."""
    model = Block(fused).double()
    with torch.no_grad():
        model.q.weight.mul_(1e20)
        model.k.weight.mul_(1e20)

    with pytest.raises(SampleMixingError, match="units meet"):
        gradients_of(model, CONTIGUOUS, of_least_numbers(blocks(CONTIGUOUS)).double())


def by_weights_alone(q, k, v, mask):
    return (q @ k.mT + mask).softmax(-1).detach() @ v


def by_scores_alone(q, k, v, mask):
    return (q @ k.mT + mask).softmax(-1) @ v.detach()


@pytest.mark.parametrize("attend", [by_weights_alone, by_scores_alone])
def test_a_weight_between_units_may_be_small(attend):
    """Of 1e-13, with a gradient of what it weighs or of its score."""
    gradients_of(Block(attend), CONTIGUOUS, of_infinities(blocks(CONTIGUOUS)))
    with pytest.raises(SampleMixingError, match="units meet"):
        gradients_of(Block(attend), CONTIGUOUS, with_a_large_number(CONTIGUOUS))


class Weighing(nn.Module):
    """Tokens that are added to others by weights that begin as zeros."""

    def __init__(self, weigh):
        super().__init__()
        self.weigh, self.values = weigh, nn.Linear(D, D)
        self.gate = nn.Parameter(torch.zeros(()))
        self.matrix = nn.Parameter(torch.eye(len(CONTIGUOUS)))
        self.queries, self.rows = nn.Linear(D, D), nn.Linear(D, len(CONTIGUOUS))
        for layer in (self.queries, self.rows):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        v = self.values(x)
        return (v + torch.bmm(self.weigh(self, x, v), v))[0].square().sum(-1)


def a_matrix(model, _x, _v):
    return model.matrix[None]


def a_matrix_of_each_token(model, x, _v):
    return model.rows(x)


def queries_of_zero(model, x, v):
    return model.queries(x) @ v.mT


def a_gate(model, x, _v):
    return model.gate.tanh() * (x @ x.mT).softmax(-1)


@pytest.mark.parametrize(
    "weigh", [a_matrix, a_matrix_of_each_token, queries_of_zero, a_gate]
)
def test_weights_of_zero_that_learn_of_other_units_are_refused(weigh):
    """Without a softmax, what is zero has a gradient of what it would weigh."""
    model, x = Weighing(weigh), torch.randn(1, len(CONTIGUOUS), D)

    with pytest.raises(SampleMixingError, match="units meet"):
        Engine().gradients(model(x), [*model.parameters()], units=CONTIGUOUS)


def test_values_in_other_places_are_no_rows_own():
    """Each row reads its own value at the other's place, and may learn of its own place's."""
    values, rows = nn.Linear(D, D), nn.Linear(D, 2)
    nn.init.zeros_(rows.weight)
    nn.init.zeros_(rows.bias)
    x, swap = torch.randn(1, 2, D), torch.eye(2).flip(0)
    losses = ((swap + rows(x)) @ values(x).flip(1))[0].square().sum(-1)
    parameters = [*values.parameters(), *rows.parameters()]

    with pytest.raises(SampleMixingError, match="units meet"):
        Engine().gradients(losses, parameters, units=torch.arange(2))


@pytest.mark.parametrize("dropped", [(5, 5), (slice(3, 5), 4), (slice(6, 10), 8)])
def test_tokens_that_nothing_reads_for_once_are_served(dropped):
    """As where dropout leaves a unit's only token out."""
    keep_TT = torch.ones(len(CONTIGUOUS), len(CONTIGUOUS), dtype=torch.float64)
    keep_TT[dropped] = 0.0

    def attend(q, k, v, mask):
        return (q @ k.mT + mask).softmax(-1) * keep_TT @ v

    model, mask = Block(attend).double(), of_infinities(blocks(CONTIGUOUS)).double()
    gradients, x, y = gradients_of(model, CONTIGUOUS, mask)

    norms_U = gradients.squared_norms([0] * len([*model.parameters()]))[0].sqrt()
    losses = losses_of(model, x, y, mask)
    for unit, norm in enumerate(norms_U):
        total = losses[unit == CONTIGUOUS].sum()
        own = torch.autograd.grad(total, [*model.parameters()], retain_graph=True)
        torch.testing.assert_close(norm, torch.cat([g.flatten() for g in own]).norm())


@pytest.mark.parametrize("attend", [fused, by_hand])
def test_what_is_not_finite_is_refused(attend):
    """Zero times infinity is no zero: one unit's would be in all."""
    model = Block(attend)
    unit_T = CONTIGUOUS
    x, y = torch.randint(1, WORDS, (2, 1, len(unit_T)))
    x[0, 5] = 0  # The only token of unit 2.
    with torch.no_grad():
        model.words.weight[0] = math.inf

    losses = losses_of(model, x, y, of_infinities(blocks(unit_T)))
    with pytest.raises(SampleMixingError):
        Engine().gradients(losses, [*model.parameters()], units=unit_T)


@pytest.mark.parametrize("attend", [fused, by_hand])
def test_a_gradient_that_is_not_finite_is_refused(attend):
    """Of a unit whose loss is finite: the slope of a root at zero."""
    model, unit_T = Block(attend), CONTIGUOUS
    x = torch.randint(WORDS, (1, len(unit_T)))
    outputs = model(x, of_infinities(blocks(unit_T)))[0]
    losses = (outputs[:, 0] * (unit_T == 2)).sub(1).mul(unit_T != 2).abs().sqrt()

    with pytest.raises(SampleMixingError, match="not finite"):
        Engine().gradients(losses, [*model.parameters()], units=unit_T)


def test_a_mask_is_read_at_every_step():
    """A known graph, of equal shapes, whose mask opens or whose units are others."""
    model, engine = Block(fused), Engine()
    parameters = [*model.parameters()]

    def step(unit_T, mask):
        x, y = torch.randint(WORDS, (2, 1, len(unit_T)))
        losses = losses_of(model, x, y, mask)
        norms = engine.gradients(losses, parameters, units=unit_T).squared_norms(
            [0] * len(parameters)
        )
        alone = [*by_loop(model, x, y, mask, unit_T)]
        expected = [torch.cat([g.flatten() for g in of]).norm() for of in alone]
        torch.testing.assert_close(norms[0].sqrt(), torch.stack(expected))

    for _ in range(5):
        step(CONTIGUOUS, blocks(CONTIGUOUS))
    step(IN_TURN, blocks(IN_TURN))
    step(CONTIGUOUS, blocks(CONTIGUOUS))
    with pytest.raises(SampleMixingError):
        step(CONTIGUOUS, blocks(IN_TURN))
    with pytest.raises(SampleMixingError):
        step(CONTIGUOUS, with_one_open_entry(CONTIGUOUS))


@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=9),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.02]),
    st.sampled_from([fused, by_hand]),
)
def test_random_masks_are_exact_or_refused(units, seed, opened, attend):
    generator = torch.Generator().manual_seed(seed)
    unit_T = torch.tensor(units).unique(return_inverse=True)[1]
    is_own = blocks(unit_T, causal=False)
    kept = torch.rand(is_own.shape, generator=generator) < 0.7
    extra = torch.rand(is_own.shape, generator=generator) < opened
    mask = (is_own & kept) | torch.eye(len(unit_T), dtype=torch.bool) | extra
    is_honest = not bool((mask & ~is_own).any())
    model = Block(attend).double()

    try:
        gradients, x, y = gradients_of(model, unit_T, mask)
    except SampleMixingError:
        assert not is_honest
        return
    norms_U = gradients.squared_norms([0] * len([*model.parameters()]))[0].sqrt()
    assert is_honest
    for norm, of_unit in zip(norms_U, by_loop(model, x, y, mask, unit_T), strict=True):
        own = torch.cat([g.flatten() for g in of_unit]).norm()
        torch.testing.assert_close(norm, own, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("attend", [fused, by_hand])
def test_packed_attention_may_be_checkpointed(attend):
    """What it kept is computed again when it is read, and can be read once."""
    block = Block(attend)
    mask, unit_T = of_infinities(blocks(CONTIGUOUS)), CONTIGUOUS
    x, y = torch.randint(WORDS, (2, 1, len(unit_T)))
    parameters = [*block.parameters()]
    norms = []
    for model in (block, lambda *a: checkpoint(block, *a, use_reentrant=False)):
        losses = losses_of(model, x, y, mask)
        gradients = Engine().gradients(losses, parameters, units=unit_T)
        norms.append(gradients.squared_norms([0] * len(parameters)))

    torch.testing.assert_close(*norms)


def test_whole_rows_of_tokens_are_not_asked_again():
    """Examples that lie along an axis, as nearly always, follow from shapes alone."""
    model, engine = Block(fused), Engine()
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    x = torch.randint(WORDS, (5, 6))
    for _ in range(2):
        losses = model(x, mask).square().mean((1, 2))
        engine.gradients(losses, [*model.parameters()])

    (known,) = engine._graphs._known
    (of_sizes,) = known.by_sizes.values()
    assert not of_sizes.moved


def test_packed_texts_train_privately(make_plan):
    """From the loader to the certificate, whatever lengths are drawn."""
    lengths = torch.randint(2, 6, (40,))
    texts = [torch.randint(WORDS, (int(n),)) for n in lengths]
    plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=0.2))
    model = Block(fused)

    def packed(rows):
        unit_T = torch.repeat_interleave(
            torch.arange(len(rows)), torch.tensor([len(row) for row in rows])
        )
        return torch.cat(rows), unit_T

    loader = plan.loader(texts, collate_fn=packed)
    optimizer = dp.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), plan=plan, loader=loader
    )
    for x, unit_T in loader:
        losses = losses_of(model, x[None], x.roll(-1)[None], blocks(unit_T))
        optimizer.backward(losses, units=unit_T)
        optimizer.step()
        if optimizer.ledger.steps == 3:
            break

    assert optimizer.ledger.steps == 3
