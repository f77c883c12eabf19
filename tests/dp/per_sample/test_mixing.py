"""What cannot be told apart is refused, and what looks like it is not.

Shapes: ``B`` examples.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import dp
from dp.exceptions import SampleMixingError, UnsupportedOperationError
from dp.per_sample import Engine
from dp.per_sample._rules import table


B = 6


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def cross_entropy(logits, labels, **options):
    return F.cross_entropy(logits, labels, **options) * torch.ones(len(logits))


def labels():
    return torch.tensor([0, 1, 2, 0, 1, 2])


def batch_norm(m, x):
    return m(nn.BatchNorm1d(3, affine=False)(m(x))).sum(1)


def batch_mean(m, x):
    return (m(x) - m(x).mean(0)).square().sum(1)


def batch_softmax(m, x):
    return m(x).softmax(0)[:, 0]


def running_sum(m, x):
    return m(x).cumsum(0)[:, 0]


def mean_loss(m, x):
    return m(x).square().sum(1).mean().expand(B) * 1


def weighted_mean_loss(m, x):
    return cross_entropy(m(x), labels(), weight=torch.tensor([1.0, 2.0, 3.0]))


def mean_over_known_labels(m, x):
    known = labels().masked_fill(torch.arange(B) == 3, -100)
    return cross_entropy(m(x), known, ignore_index=-100)


def mean_over_tokens(m, x):
    losses_BT = m(x[:, None].expand(B, 4, 3)).square().sum(2)
    return losses_BT.sum(1) / losses_BT.sum()


def contrastive(m, x):
    z = F.normalize(m(x), dim=1)
    return F.cross_entropy(z @ z.T, torch.arange(B), reduction="none")


def hardest_negative(m, x):
    z = m(x)
    return torch.cdist(z, z).amax(1)


def with_capacity(m, x):
    gate = m(x)[:, 0]
    chosen = gate.topk(2).values.sum()
    return gate.square() + chosen


def neighbours(m, x):
    return (m(x) - m(x).roll(1, 0)).square().sum(1)


def attention_over_examples(m, x):
    z = m(x)[None]
    return F.scaled_dot_product_attention(z, z, z)[0].square().sum(1)


def spectral(m, x):
    return torch.linalg.svd(m(x), full_matrices=False).U.sum(1)


BAD = [
    batch_norm,
    batch_mean,
    batch_softmax,
    running_sum,
    mean_loss,
    weighted_mean_loss,
    mean_over_known_labels,
    mean_over_tokens,
    contrastive,
    hardest_negative,
    with_capacity,
    attention_over_examples,
    spectral,
]


@pytest.mark.parametrize("losses", BAD, ids=lambda f: f.__name__)
def test_losses_that_mix_examples_are_refused(losses):
    """The error names the operation, the parameters and the remedy."""
    model = nn.Linear(3, 3)
    losses_B = losses(model, torch.randn(B, 3))

    told = (
        r"units meet in (the losses|\w+): .*"
        r"mixed on the way .* to \w+Backward0 with parameters of shape \(3,"
    )
    with pytest.raises(SampleMixingError, match=told) as refused:
        Engine().gradients(losses_B, list(model.parameters()))
    assert "reduction='none'" in str(refused.value)


def test_neighbours_in_the_batch_are_refused():
    """Each row has one owner at each use, but the data is read for two examples."""
    model = nn.Linear(3, 3)
    losses_B = neighbours(model, torch.randn(B, 3))
    with pytest.raises(SampleMixingError, match="in another order than the losses"):
        Engine().gradients(losses_B, list(model.parameters()))

    losses_B = neighbours(model, torch.randn(B, 3))
    with pytest.raises(SampleMixingError, match="meet in the data"):
        Engine().gradients(losses_B, list(model.parameters()), units=torch.arange(B))


def scaled_by_a_count(m, x):
    known = torch.tensor([1.0, 1, 1, 0, 1, 1])
    return m(x).square().sum(1) * known / known.sum()


def scaled_by_the_sum_of_weights(m, x):
    weights = torch.tensor([1.0, 2.0, 3.0])[labels()]
    losses = F.cross_entropy(m(x), labels(), reduction="none")
    return losses * weights / weights.sum(0, keepdim=True)


@pytest.mark.parametrize(
    "losses",
    [scaled_by_a_count, scaled_by_the_sum_of_weights],
    ids=lambda f: f.__name__,
)
def test_losses_scaled_by_a_tensor_of_one_element_are_refused(losses):
    """It may be a count over the batch, and has no graph that would show it."""
    model = nn.Linear(3, 3)
    losses_B = losses(model, torch.randn(B, 3))

    with pytest.raises(SampleMixingError, match=r"DivBackward0 scales .* Python float"):
        Engine().gradients(losses_B, list(model.parameters()))


@pytest.mark.parametrize(
    "losses",
    [*BAD, neighbours, scaled_by_a_count, scaled_by_the_sum_of_weights],
    ids=lambda f: f.__name__,
)
def test_losses_that_mix_examples_are_refused_when_compiled(losses):
    """What is compiled between the parameters hides nothing of it."""
    torch.compiler.reset()
    model = nn.Linear(3, 3)
    backend = partial(dp.compile_backend, inner="aot_eager")
    losses_B = torch.compile(losses, backend=backend)(model, torch.randn(B, 3))

    with pytest.raises(SampleMixingError):
        Engine().gradients(losses_B, list(model.parameters()))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3)], ids=repr)
def test_batch_norm_of_data_is_refused(layer):
    """No parameter lies behind it, so that only its name shows it."""
    x = (
        torch.randn(B, 3, 2, 2)
        if isinstance(layer, nn.BatchNorm2d)
        else torch.randn(B, 3)
    )
    losses_B = layer.to(x.device)(x).flatten(1).square().sum(1)

    with pytest.raises(SampleMixingError, match=r"BatchNormBackward0 .* GroupNorm"):
        Engine().gradients(losses_B, list(layer.parameters()))


def of_rows(w):
    """What a model of one parameter computes of data that couple all rows."""
    return {
        "layer norm": lambda x: F.layer_norm(x, [B, 3], w.expand(B, 3)),
        "layer norm, transposed": lambda x: F.layer_norm(
            x.t(), [B], w.repeat(B // 3)
        ).t(),
        "group norm": lambda x: F.group_norm(x.view(1, B, 3), 1, w.repeat(B // 3))[0],
        "attention": lambda x: F.scaled_dot_product_attention(
            w.expand(1, 1, B, 3), x[None, None], x[None, None]
        )[0, 0],
    }


@pytest.mark.parametrize("name", of_rows(torch.ones(3)))
def test_operations_that_couple_rows_of_data_are_refused(name):
    """As of batch norm: nothing behind them has a gradient that would tell."""
    w = nn.Parameter(torch.randn(3))
    losses_B = of_rows(w)[name](torch.randn(B, 3)).square().sum(1)

    with pytest.raises(SampleMixingError, match=r"units meet in .*Backward0"):
        Engine().gradients(losses_B, [w])


@pytest.mark.filterwarnings("ignore:no rule serves")
@pytest.mark.parametrize(
    "losses",
    [
        lambda w, x: F.layer_norm(x, [4, 3], w.expand(4, 3)),
        lambda w, x: F.scaled_dot_product_attention(
            w.expand(len(x), 1, 2, 3), x[:, None], x[:, None]
        ),
        lambda w, x: F.group_norm(x, 2, w[:1].repeat(4)),
    ],
    ids=["layer norm", "attention", "group norm"],
)
def test_the_same_operations_within_an_example_are_not(losses):
    """Their gradients are those of a loop over the examples."""
    w, x = nn.Parameter(torch.randn(3)), torch.randn(B, 4, 3)
    gradients = Engine().gradients(losses(w, x).flatten(1).square().sum(1), [w])

    for norm, one in zip(gradients.squared_norms([0])[0], x, strict=True):
        alone = torch.autograd.grad(losses(w, one[None]).square().sum(), w)[0]
        torch.testing.assert_close(norm, alone.square().sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "normalized",
    [
        lambda m, h: m(h * h.detach().norm()),
        lambda m, h: m(h / h.detach().max()),
        lambda m, h: F.linear(h, m.weight * h.detach().mean(0)),
    ],
    ids=["product", "quotient", "of the weights"],
)
def test_what_all_examples_share_may_not_change(normalized):
    """Whatever it is, it is not public if it depends on the batch."""
    first, second, engine = nn.Linear(3, 3), nn.Linear(3, 3), Engine()
    parameters = [*first.parameters(), *second.parameters()]

    def losses():
        hidden = first(torch.randn(B, 3))
        return normalized(second, hidden).square().sum(1)

    engine.gradients(losses(), parameters)
    with pytest.raises(SampleMixingError, match="not the same in every batch"):
        engine.gradients(losses(), parameters)


def test_what_all_examples_share_may_be_public():
    """Twin: a constant, a mask of weights and a number that changes are none of it."""
    first, second, engine = nn.Linear(3, 3), nn.Linear(3, 3), Engine()
    parameters = [*first.parameters(), *second.parameters()]
    scale, mask = torch.tensor(3.0), torch.eye(3)
    for annealed in (0.1, 0.2, 0.3):
        hidden = first(torch.randn(B, 3)) / scale
        weight = second.weight * mask + 1.0
        losses_B = F.linear(hidden, weight, second.bias).square().sum(1) * annealed

        assert engine.gradients(losses_B, parameters).num_samples == B


def test_rows_looked_up_for_all_examples_may_not_change():
    """Positions are the same in every batch; a word of another example is not."""
    table, layer, engine = nn.Embedding(9, 3), nn.Linear(3, 3), Engine()
    parameters = [*table.parameters(), *layer.parameters()]

    def losses(row):
        return (layer(torch.randn(B, 3)) + table(torch.tensor([row]))).square().sum(1)

    engine.gradients(losses(4), parameters)
    engine.gradients(losses(4), parameters)
    with pytest.raises(SampleMixingError, match="EmbeddingBackward0 meets a tensor"):
        engine.gradients(losses(5), parameters)


def test_data_that_meets_parameters_only_where_it_is_mixed_is_refused():
    """Nothing between the parameters and the losses belongs to one example."""
    table = nn.Embedding(9, 3)
    hidden = table(torch.arange(B))
    losses_B = (hidden - hidden.mean(0)).square().sum(1)

    with pytest.raises(SampleMixingError, match="meet only where examples are mixed"):
        Engine().gradients(losses_B, list(table.parameters()))


def test_mixed_data_beside_other_data_is_refused():
    """Words whose batch mean was taken off are nobody's own, but have rows."""
    table, layer = nn.Embedding(9, 3), nn.Linear(3, 3)
    words = table(torch.arange(B))
    centred = words - words.mean(0)
    losses_B = (layer(torch.randn(B, 3)) + centred).square().sum(1)

    with pytest.raises(SampleMixingError, match=r"on the way to .* \(9, 3\)"):
        Engine().gradients(losses_B, [*table.parameters(), *layer.parameters()])


def test_reentrant_checkpoints_are_refused():
    """They hide their parameters, whose gradients would be missing."""
    model = nn.Linear(3, 3)
    x = torch.randn(B, 3, requires_grad=True)
    losses_B = checkpoint(model, x, use_reentrant=True).square().sum(1)

    with pytest.raises(UnsupportedOperationError, match="use_reentrant=False"):
        Engine().gradients(losses_B, list(model.parameters()))


def test_a_torch_that_names_things_otherwise_is_refused(monkeypatch):
    """Nothing is read under a name that means something else."""
    rule = table.RULES["MmBackward0"]
    renamed = {
        "MmBackward0": replace(rule, reads=("self", "gone")),
        "NewBackward0": rule,
    }
    monkeypatch.setattr(table, "RULES", renamed)

    told = r"no MmBackward0\._saved_gone, NewBackward0, which"
    with pytest.raises(UnsupportedOperationError, match=told):
        table.check_torch()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_is_as_expected_whatever_its_defaults_are(dtype, device):
    """The package may be imported late: after a script set them, for example."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.inference_mode():
            table.check_torch()
    finally:
        torch.set_default_dtype(before)


def test_a_refusal_leaves_the_graph_as_it_was():
    """The user may look at what was refused: nothing was freed or written."""
    model = nn.Linear(3, 3)
    losses_B = batch_mean(model, torch.randn(B, 3))
    with pytest.raises(SampleMixingError):
        Engine().gradients(losses_B, list(model.parameters()))

    losses_B.sum().backward()
    assert model.weight.grad is not None


def one_loss_for_all(m, x):
    """Not mixing: the batch has one example."""
    return m(x).square().mean()[None]


def constant_of_the_batch(m, x):
    """Not mixing: the divisor is a number of the plan, not of the batch."""
    return m(x).square().sum(1) / 10


def detached_statistics_of_an_example(m, x):
    """Not mixing: each example is standardised by itself."""
    z = m(x)
    return ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)).square().sum(1)


def permuted_within_examples(m, x):
    """Not mixing: positions trade places, examples do not."""
    return m(x.view(B, 1, 3)).flip(2).roll(1, 2).square().sum((1, 2))


def sorted_within_examples(m, x):
    """Not mixing: every example sorts its own outputs."""
    return m(x).sort(1).values[:, 0]


def reversed_twice(m, x):
    """Not mixing: examples are reordered and come back."""
    return m(x.flip(0)).flip(0).square().sum(1)


@pytest.mark.parametrize(
    "losses",
    [
        constant_of_the_batch,
        detached_statistics_of_an_example,
        permuted_within_examples,
        sorted_within_examples,
    ],
    ids=lambda f: f.__name__,
)
def test_losses_of_one_example_each_are_no_mixing(losses):
    """Twin of the refusals: no false alarm."""
    model = nn.Linear(3, 3)
    parameters = list(model.parameters())
    losses_B = losses(model, torch.randn(B, 3))
    rows = [
        torch.autograd.grad(loss, model.weight, retain_graph=True) for loss in losses_B
    ]
    sums = [torch.zeros_like(p) for p in parameters]
    Engine().gradients(losses_B, parameters).add_weighted_sum(
        torch.ones(1, B), [0, 0], sums
    )

    torch.testing.assert_close(sums[0], sum(row for (row,) in rows))


def test_one_example_cannot_mix_with_itself():
    """A mean over a batch of one is that example's own."""
    model = nn.Linear(3, 3)
    loss = one_loss_for_all(model, torch.randn(1, 3))

    assert Engine().gradients(loss, list(model.parameters())).num_samples == 1


def test_examples_in_another_order_are_refused():
    """Their rows are not where their losses are; nothing is guessed about it."""
    model = nn.Linear(3, 3)
    losses_B = reversed_twice(model, torch.randn(B, 3))

    with pytest.raises(SampleMixingError, match="in another order"):
        Engine().gradients(losses_B, list(model.parameters()))


def packed(model, x, lengths, *, is_sorted):
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=is_sorted)
    outputs, _ = nn.utils.rnn.pad_packed_sequence(model(packed)[0])
    return outputs.square().sum((0, 2))


@pytest.mark.filterwarnings("ignore:no rule serves")
@pytest.mark.usefixtures("float64")
def test_packed_sequences_need_units_where_torch_sorts_them(assert_exact):
    """Labels would be in the order of the losses, and rows in another."""
    model, x = nn.GRU(3, 4), torch.randn(3, B, 3)
    unsorted = torch.tensor([2, 3, 2, 1, 3, 1], device="cpu")
    losses_B = packed(model, x, unsorted, is_sorted=False)
    with pytest.raises(SampleMixingError, match=r"packs .* units=torch.arange"):
        Engine().gradients(losses_B, [*model.parameters()])

    losses_B = packed(model, x, unsorted, is_sorted=False)
    assert_exact(losses_B, [*model.parameters()], units=torch.arange(B))
    ordered = unsorted.sort(descending=True).values
    assert_exact(packed(model, x, ordered, is_sorted=True), [*model.parameters()])


@pytest.mark.filterwarnings("ignore:no rule serves")
@pytest.mark.parametrize(
    "parametrized",
    [
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
        lambda layer: parametrizations.orthogonal(layer, orthogonal_map="matrix_exp"),
    ],
    ids=["spectral_norm", "householder", "cayley", "matrix_exp"],
)
@pytest.mark.usefixtures("float64")
def test_parametrizations_with_buffers_need_these_to_be_public(
    parametrized, assert_exact
):
    """A buffer cannot be told from data, unless somebody says that it is none."""
    model = parametrized(nn.Linear(5, 5))
    parameters, x = list(model.parameters()), torch.randn(B, 5)
    with pytest.raises(SampleMixingError, match=r"of shape \(.*public=\[tensor\]"):
        Engine().gradients(model(x).square().sum(1), parameters)

    engine = Engine(public=model.buffers())
    assert_exact(model(x).square().sum(1), parameters, engine=engine)


@pytest.mark.filterwarnings("ignore:no rule serves")
@pytest.mark.usefixtures("float64")
def test_two_passes_need_one_weight_between_them(assert_exact):
    """Each pass of a spectral norm changes its buffers, which are public as they are."""
    model = parametrizations.spectral_norm(nn.Linear(5, 5))
    parameters, x = list(model.parameters()), torch.randn(B, 5)
    engine = Engine(public=model.buffers())
    with pytest.raises(SampleMixingError, match=r"public=\[tensor\]"):
        engine.gradients((model(x) - model(-x)).square().sum(1), parameters)

    for _ in range(3):
        with parametrize.cached():
            losses_B = (model(x) - model(-x)).square().sum(1)
        assert_exact(losses_B, parameters, engine=engine)


class Stopped(torch.autograd.Function):
    """The identity, whose backward says that there is no gradient."""

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, _grad):
        return None


class Scaled(torch.autograd.Function):
    """A product whose backward looks at numbers, which torch.vmap cannot batch."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        if math.isnan(grad.sum().item()):
            return grad * w, (grad * x).sum(0)
        return grad * w, (grad * x).sum(0)


def test_a_path_without_gradient_adds_nothing():
    """Custom functions may answer None."""
    model = nn.Linear(3, 3)
    parameters = list(model.parameters())
    losses_B = Stopped.apply(model(torch.randn(B, 3))).sum(1)

    gradients = Engine().gradients(losses_B, parameters)
    assert not gradients.squared_norms([0, 0]).any()


def test_what_cannot_be_batched_is_computed_one_by_one():
    """The slowest path is right as well."""
    w = nn.Parameter(torch.randn(3))
    x = torch.randn(B, 3)
    total = torch.zeros(3)
    with pytest.warns(UserWarning, match="no rule serves ScaledBackward"):
        gradients = Engine().gradients(Scaled.apply(x, w).sum(1), [w])
    gradients.add_weighted_sum(torch.ones(1, B), [0], [total])

    torch.testing.assert_close(total, x.sum(0))


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 2), nn.Conv1d(3, 2, 1), nn.LayerNorm(3)], ids=repr
)
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter_alone_is_served(layer, name, device):
    """The other one may be frozen, or another optimizer's."""
    parameter = getattr(layer.to(device), name)
    x = torch.randn(B, 3, 1) if isinstance(layer, nn.Conv1d) else torch.randn(B, 3)
    losses_B = layer(x).flatten(1).square().sum(1)
    (expected,) = torch.autograd.grad(losses_B.sum(), parameter, retain_graph=True)
    total = torch.zeros_like(parameter)
    Engine().gradients(losses_B, [parameter]).add_weighted_sum(
        torch.ones(1, B), [0], [total]
    )

    torch.testing.assert_close(total, expected)


@pytest.mark.filterwarnings("ignore:no rule serves")
def test_losses_may_be_made_of_parameters_alone():
    """Each example then has an entry of its own."""
    a, b = (nn.Parameter(torch.randn(B)) for _ in range(2))
    gradients = Engine().gradients(a + b, [a, b])

    assert gradients.squared_norms([0, 1]).tolist() == [[1.0] * B] * 2


@pytest.mark.parametrize("num_samples", [1, B])
def test_a_transposed_parameter_is_served_by_any_operation(num_samples):
    """Sums and products see a parameter through its transpose, too."""
    w = nn.Parameter(torch.randn(3, 2))
    x = torch.randn(num_samples, 2, 3)
    losses_B = ((x + w.T) * w.T).square().sum((1, 2))
    (expected,) = torch.autograd.grad(losses_B.sum(), w, retain_graph=True)
    total = torch.zeros(3, 2)
    Engine().gradients(losses_B, [w]).add_weighted_sum(
        torch.ones(1, num_samples), [0], [total]
    )

    torch.testing.assert_close(total, expected)


def test_parameters_that_no_loss_depends_on_have_no_gradient():
    """The graph is somebody else's."""
    w = nn.Parameter(torch.randn(3))
    losses_B = nn.Linear(3, 1)(torch.randn(B, 3)).squeeze(1)

    assert not Engine().gradients(losses_B, [w]).squared_norms([0]).any()


@pytest.mark.filterwarnings("ignore:no rule serves")
@pytest.mark.parametrize("product", [torch.mul, Scaled.apply])
def test_owners_follow_from_the_graph_whatever_the_numbers_are(product):
    """By numbers alone, either axis could be that of the examples."""
    w = nn.Parameter(torch.randn(2))
    x = torch.randn(2, 2, 2)
    hidden = product(x, w)
    losses_B = torch.where(torch.eye(2, dtype=torch.bool)[..., None], hidden, 0.0)
    losses_B = losses_B.sum((1, 2))  # Row i of example i: either axis could be it.
    expected = torch.stack([x[0, 0], x[1, 1]])
    gradients = Engine().gradients(losses_B, [w])

    torch.testing.assert_close(
        gradients.squared_norms([0])[0], expected.square().sum(1)
    )
