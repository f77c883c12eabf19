"""Every example's gradient, against one backward pass an example, in float64.

Shapes: ``B`` examples, ``P`` elements of a parameter.
"""

import math
import warnings

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp import _tuning
from dp.clipping import FlatClipping
from dp.exceptions import SampleMixingError, UnsupportedOperationError
from dp.per_sample import Engine, _known_graphs
from dp.per_sample._parts.part import squared_norms

from .ragged_models import assert_as_by_loop


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


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def tokens():
    return torch.randint(0, 7, (B, 6))


class Square(torch.autograd.Function):
    """A function of one's own, of which nobody has a rule."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.square() * w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * 2 * x * w, (grad * x.square()).sum(0)


def attention(m, x):
    return m.attention(x, x, x, need_weights=False)[0]


def lora(m, x):
    return x @ m.w + (x @ m.a) @ m.b


def tied(m, x):
    return m.table(x) @ m.table.weight.T


def shared(m, x):
    return m.layer(m.layer(x).tanh())


def graph_conv(m, x):
    adjacency = (x @ x.mT).softmax(-1)
    return m.layer(adjacency @ x).relu()


def in_place(m, x):
    return F.relu_(m.first(x).mul_(2)) @ m.w


def u_net(m, x):
    down = m.down(x).tanh()
    return m.out(torch.cat([x, F.interpolate(down, scale_factor=2)], 1))


def transformer(*, batch_first=True):
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)


GOOD = {
    "linear": lambda: (nn.Linear(4, 3), torch.randn(B, 4)),
    "linear, no bias": lambda: (nn.Linear(4, 3, bias=False), torch.randn(B, 4)),
    "linear over positions": lambda: (nn.Linear(4, 3), torch.randn(B, 6, 4)),
    "linear over few positions": lambda: (nn.Linear(20, 20), torch.randn(B, 3, 20)),
    "mlp": lambda: (
        nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 2)),
        torch.randn(B, 4),
    ),
    "x @ w": lambda: (
        Module(lambda m, x: x @ m.w, w=parameter(4, 3)),
        torch.randn(B, 4),
    ),
    "x @ w.T.T": lambda: (
        Module(lambda m, x: x @ m.w.T.permute(1, 0), w=parameter(4, 3)),
        torch.randn(B, 4),
    ),
    "x @ w, transposed twice": lambda: (
        Module(lambda m, x: x @ m.w.transpose(0, 1).transpose(0, 0), w=parameter(3, 4)),
        torch.randn(B, 4),
    ),
    "conv1d": lambda: (nn.Conv1d(3, 4, 3, padding=1), torch.randn(B, 3, 8)),
    "conv2d, strided, dilated": lambda: (
        nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2),
        torch.randn(B, 3, 9, 9),
    ),
    "conv2d in groups": lambda: (nn.Conv2d(4, 6, 3, groups=2), torch.randn(B, 4, 6, 6)),
    "conv2d, large kernel": lambda: (nn.Conv2d(40, 30, 2), torch.randn(B, 40, 3, 3)),
    "conv2d, many channels": lambda: (nn.Conv2d(64, 64, 2), torch.randn(B, 64, 2, 3)),
    "conv2d, many channels and positions": lambda: (
        nn.Conv2d(64, 64, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2)),
        torch.randn(B, 64, 10, 12),
    ),
    "conv1d, images of one example": lambda: (
        Module(
            lambda m, x: m.conv(x.flatten(0, 1)).unflatten(0, (len(x), -1)),
            conv=nn.Conv1d(64, 64, 2),
        ),
        torch.randn(B, 3, 64, 5),
    ),
    "transposed convolution, many channels": lambda: (
        nn.ConvTranspose2d(64, 64, 3, stride=2, padding=1, output_padding=1),
        torch.randn(B, 64, 3, 3),
    ),
    "conv2d of single pixels": lambda: (
        nn.Conv2d(6, 4, 1, stride=2),
        torch.randn(B, 6, 5, 5),
    ),
    "conv3d": lambda: (nn.Conv3d(2, 3, 2, bias=False), torch.randn(B, 2, 3, 4, 3)),
    "resnet block": lambda: (
        Module(
            lambda m, x: x + m.second(F.relu(m.norm(m.first(x)))),
            first=nn.Conv2d(4, 4, 3, padding=1),
            norm=nn.GroupNorm(2, 4),
            second=nn.Conv2d(4, 4, 3, padding=1),
        ),
        torch.randn(B, 4, 5, 5),
    ),
    "u-net": lambda: (
        Module(u_net, down=nn.Conv2d(2, 3, 2, stride=2), out=nn.Conv2d(5, 2, 1)),
        torch.randn(B, 2, 6, 6),
    ),
    "embedding": lambda: (nn.Embedding(7, 3, padding_idx=0), tokens()),
    "tied embedding": lambda: (Module(tied, table=nn.Embedding(7, 3)), tokens()),
    "layer norm": lambda: (nn.LayerNorm((3, 4)), torch.randn(B, 2, 3, 4)),
    "layer norm, no bias": lambda: (nn.LayerNorm(4, bias=False), torch.randn(B, 4)),
    "group norm": lambda: (nn.GroupNorm(2, 6), torch.randn(B, 6, 4)),
    "rms norm": lambda: (nn.RMSNorm(4), torch.randn(B, 3, 4)),
    "attention": lambda: (
        Module(attention, attention=nn.MultiheadAttention(8, 2, batch_first=True)),
        torch.randn(B, 4, 8),
    ),
    "transformer": lambda: (transformer(), torch.randn(B, 4, 8)),
    "time-major transformer": lambda: (
        Module(
            lambda m, x: m.layer(x.transpose(0, 1)).transpose(0, 1),
            layer=transformer(batch_first=False),
        ),
        torch.randn(B, 4, 8),
    ),
    "positions without a batch axis": lambda: (
        Module(lambda m, x: (x + m.positions).relu(), positions=parameter(4, 3)),
        torch.randn(B, 4, 3),
    ),
    "scale and shift": lambda: (
        Module(
            lambda m, x: m.a * x + m.b - m.c,
            a=parameter(3),
            b=parameter(1),
            c=parameter(),
        ),
        torch.randn(B, 4, 3),
    ),
    "scaled sum": lambda: (
        Module(lambda m, x: torch.add(x, m.a, alpha=3), a=parameter(3)),
        torch.randn(B, 3),
    ),
    "addmm with its scales": lambda: (
        Module(
            lambda m, x: torch.addmm(m.b, x, m.w, beta=2, alpha=3),
            b=parameter(3),
            w=parameter(4, 3),
        ),
        torch.randn(B, 4),
    ),
    "multiplied from the left, position by position": lambda: (
        Module(lambda m, x: m.w @ x, w=parameter(2, 3)),
        torch.randn(B, 3, 4),
    ),
    "subtracted from": lambda: (
        Module(lambda m, x: m.a - x, a=parameter(3)),
        torch.randn(B, 3),
    ),
    "shared layer": lambda: (Module(shared, layer=nn.Linear(4, 4)), torch.randn(B, 4)),
    "graph convolution": lambda: (
        Module(graph_conv, layer=nn.Linear(4, 3)),
        torch.randn(B, 5, 4),
    ),
    "in place": lambda: (
        Module(in_place, first=nn.Linear(4, 3), w=parameter(3, 2)),
        torch.randn(B, 4),
    ),
    "lora": lambda: (
        Module(lora, w=torch.randn(4, 4), a=parameter(4, 2), b=parameter(2, 4)),
        torch.randn(B, 4),
    ),
    "rnn cell over time": lambda: (
        Module(lambda m, x: m.cell(x[:, 1], m.cell(x[:, 0])), cell=nn.GRUCell(3, 4)),
        torch.randn(B, 2, 3),
    ),
    "transposed convolution": lambda: (
        nn.ConvTranspose2d(3, 2, 3, stride=2),
        torch.randn(B, 3, 4, 4),
    ),
    "weight norm": lambda: (
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        torch.randn(B, 4),
    ),
    "prelu": lambda: (nn.PReLU(3), torch.randn(B, 3, 4)),
    "embedding bag": lambda: (nn.EmbeddingBag(7, 3, mode="sum"), tokens()),
    "parameters multiplied with each other": lambda: (
        Module(lambda m, x: x @ (m.a * m.b), a=parameter(4, 3), b=parameter(4, 3)),
        torch.randn(B, 4),
    ),
    "parameters that meet at a sum": lambda: (
        Module(lambda m, x: x * (m.a + m.b), a=parameter(3), b=parameter(3)),
        torch.randn(B, 3),
    ),
    "a row for every example": lambda: (
        Module(lambda m, x: x + m.rows, rows=parameter(B, 3)),
        torch.randn(B, 3),
    ),
    "chosen by a mask": lambda: (
        Module(lambda m, x: torch.where(x > 0, m.a, x), a=parameter(3)),
        torch.randn(B, 3),
    ),
    "multiplied from the left": lambda: (
        Module(lambda m, x: (m.w @ x.T).T, w=parameter(3, 4)),
        torch.randn(B, 4),
    ),
    "a batched product": lambda: (
        Module(lambda m, x: m.w.expand(len(x), 2, 3).bmm(x), w=parameter(2, 3)),
        torch.randn(B, 3, 4),
    ),
}
# No rule serves a part of these, so they warn, once.
SLOW = {
    "bilinear": lambda: (
        Module(lambda m, x: m.bilinear(x, x), bilinear=nn.Bilinear(4, 4, 3)),
        torch.randn(B, 4),
    ),
    "a function of one's own": lambda: (
        Module(lambda m, x: Square.apply(x, m.w), w=parameter(3)),
        torch.randn(B, 3),
    ),
    "looked up in a vector": lambda: (
        Module(lambda m, x: m.table[x], table=parameter(7)),
        tokens(),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_gradients_are_those_of_the_loop(name, assert_exact, per_example):
    """One backward pass over any model equals a pass an example."""
    model, x = GOOD[name]()

    assert_exact(per_example(model(x)), list(model.parameters()))


@pytest.mark.parametrize("name", sorted(name for name in GOOD if "conv" in name))
def test_without_room_gradients_are_computed_twice(
    name, monkeypatch, assert_exact, per_example
):
    """Where memory is short nothing is kept, and the result is the same."""
    monkeypatch.setattr(_tuning, "ALLOWED_BYTES", 0)
    monkeypatch.setattr(_tuning, "ALLOWED_SHARE", 0)
    monkeypatch.setattr(_tuning, "WINDOW_CHUNK_BYTES", 1 << 19)
    model, x = GOOD[name]()

    assert_exact(per_example(model(x)), list(model.parameters()))


@pytest.mark.parametrize("room", [0, 1 << 30])
@pytest.mark.parametrize("name", sorted(name for name in GOOD if "conv" in name))
def test_convolutions_are_products_of_windows_on_an_accelerator(
    name, room, monkeypatch, assert_exact, per_example
):
    """Of groups, dilated and transposed ones too; tried out on the host."""
    monkeypatch.setattr(_tuning, "MANY_CHANNEL_PAIRS", {})
    monkeypatch.setattr(_tuning, "ALLOWED_BYTES", room)
    monkeypatch.setattr(_tuning, "ALLOWED_SHARE", 0)
    model, x = GOOD[name]()

    assert_exact(per_example(model(x)), list(model.parameters()))


@pytest.mark.parametrize("name", SLOW)
def test_what_no_rule_serves_is_right_and_said_once(name, assert_exact, per_example):
    """The slower path is exact too, and the warning names the operation."""
    model, x = SLOW[name]()
    engine = Engine()
    with pytest.warns(
        UserWarning, match=r"no rule serves \w+ with parameters of shape"
    ):
        assert_exact(per_example(model(x)), list(model.parameters()), engine=engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_exact(per_example(model(x)), list(model.parameters()), engine=engine)


@pytest.mark.parametrize("name", sorted({*GOOD, *SLOW} - {"a row for every example"}))
@pytest.mark.filterwarnings("ignore:no rule serves")
def test_one_example_alone_is_itself(name, assert_exact, per_example):
    """With a batch of one there is nothing to tell apart."""
    model, x = {**GOOD, **SLOW}[name]()

    assert_exact(per_example(model(x[:1])), list(model.parameters()))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore:no rule serves")
def test_recurrent_layers(kind, batch_first, assert_exact, per_example):
    """Weights that are used at every time step, in either order of the axes."""
    model = kind(3, 4, num_layers=2, batch_first=batch_first)
    x = torch.randn(B, 3, 3) if batch_first else torch.randn(3, B, 3)
    outputs = model(x)[0]

    losses_B = per_example(outputs if batch_first else outputs.transpose(0, 1))
    assert_exact(losses_B, list(model.parameters()))


def test_a_vector_of_losses_may_have_no_graph():
    """Losses that depend on no parameter have gradients of zero."""
    p = parameter(3)
    gradients = Engine().gradients(torch.ones(B), [p])
    total = torch.zeros(3)
    gradients.add_weighted_sum(torch.ones(1, B), [0], [total])

    assert gradients.squared_norms([0]).tolist() == [[0.0] * B]
    assert not total.any()


def test_an_empty_batch_has_no_gradients():
    """Poisson sampling draws nobody now and then."""
    model = nn.Linear(3, 1)
    gradients = Engine().gradients(
        model(torch.zeros(0, 3)).squeeze(1), [*model.parameters()]
    )

    assert gradients.num_samples == 0
    assert gradients.squared_norms([0, 0]).shape == (1, 0)


def test_frozen_and_unused_parameters(assert_exact, per_example):
    """A frozen parameter is none of the engine's; an unused one has zeros."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(requires_grad=False)
    unused = parameter(3)

    assert_exact(
        per_example(model(torch.randn(B, 4))), [*model[2].parameters(), unused]
    )


def test_a_parameter_that_is_not_asked_for_is_left_alone(assert_exact, per_example):
    """Another optimizer may own a part of the model."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

    assert_exact(per_example(model(torch.randn(B, 4))), [*model[2].parameters()])
    assert model[0].weight.grad is None


def test_a_loss_that_is_a_parameters_own_is_found(assert_exact):
    """A penalty on the weights counts for every example that has it."""
    model = nn.Linear(4, 1)
    penalty = model.weight.square().sum()

    assert_exact(
        model(torch.randn(B, 4)).squeeze(1) + penalty, list(model.parameters())
    )


@pytest.fixture
def followed(monkeypatch):
    """The numbers of units of the graphs that owners were followed in."""
    sizes = []

    def counting(graph, root, units, num_units):
        sizes.append(num_units)
        return analysed(graph, root, units, num_units)

    analysed = _known_graphs.analysed
    monkeypatch.setattr(_known_graphs, "analysed", counting)
    return sizes


def test_owners_are_followed_once_for_all_sizes_of_a_graph(
    followed, assert_exact, per_example
):
    """A size that was seen before costs a comparison."""
    model, engine = nn.Linear(4, 2), Engine()
    parameters = list(model.parameters())
    for size in (5, 7, 5, 7, 5, 7):
        assert_exact(
            per_example(model(torch.randn(size, 3, 4))), parameters, engine=engine
        )

    assert followed == [5, 7, 5]  # The first when the graph was walked, too.


def test_owners_are_followed_again_if_units_or_indices_are_others(followed):
    """Losses of the same units, and rows that are added where they were, are known."""
    model, engine = nn.Linear(4, 2), Engine()
    parameters = list(model.parameters())
    rows, others = torch.tensor([0, 1, 1, 2, 3, 3]), torch.tensor([0, 0, 1, 2, 3, 3])
    units, fewer = torch.tensor([7, 9, 7, 9]), torch.tensor([7, 9, 9, 9])
    numbers = []
    for index, of_loss in (
        (rows, units),
        (rows, units),
        (rows, units + 1),  # The same units by other names.
        (rows, fewer),
        (rows, units),
        (others, units),
        (others, units),
    ):
        x = torch.randn(6, 4)

        def losses_of(x, index=index):
            return torch.zeros(4, 2).index_add(0, index, model(x)).sin().sum(1)

        gradients = engine.gradients(losses_of(x), parameters, units=of_loss)
        numbers.append(len(followed))
        assert_as_by_loop(gradients, losses_of(x), parameters, units=of_loss)

    # Walked, followed, known twice, other units, known again, and other indices.
    assert numbers == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("copied", [True, False])
def test_another_order_of_axes_is_another_graph(copied, followed, assert_exact):
    """One model, called with the batch first and then with the time first."""
    model, engine = nn.Linear(4, 2), Engine()
    parameters = list(model.parameters())
    x = torch.randn(B, 3, 4)
    assert_exact(model(x).sum((1, 2)).sin(), parameters, engine=engine)
    x = x.transpose(0, 1)
    x = x.contiguous() if copied else x  # Which is the same graph, but for the axes.
    assert_exact(model(x).sum((0, 2)).sin(), parameters, engine=engine)

    assert followed == [B, B]


@pytest.mark.parametrize("bad", [[2], [0, 1, 3]], ids=str)
@pytest.mark.parametrize("num_positions", [2, B])
def test_examples_that_are_not_finite_keep_to_themselves(
    bad, num_positions, assert_exact, by_loop
):
    """NaN in some examples of the very first batch leaves the others' gradients alone."""
    model, engine = nn.Linear(4, 2), Engine()
    parameters = list(model.parameters())
    x = torch.randn(B, num_positions, 4)
    good = [i for i in range(B) if i not in bad]
    expected = by_loop(model(x)[:, 0].sum(1).exp(), parameters)
    broken = x.clone()
    broken[bad] = math.nan
    gradients = engine.gradients(model(broken)[:, 0].sum(1).exp(), parameters)
    norms_B = gradients.squared_norms([0, 0])[0]
    sums = [torch.zeros_like(p) for p in parameters]
    gradients.add_weighted_sum(norms_B.isfinite()[None].double(), [0, 0], sums)

    assert norms_B.isfinite().nonzero().flatten().tolist() == good
    for total, rows in zip(sums, expected, strict=True):
        torch.testing.assert_close(total, rows[good].sum(0))
    assert_exact(model(x)[:, 0].sum(1).exp(), parameters, engine=engine)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:no rule serves")
def test_without_a_rule_one_bad_example_is_refused(bad, per_example):
    """0 times NaN is NaN: a slower pass would make every example's gradient NaN."""
    w = parameter(3)
    x = torch.rand(B, 3)
    x[2, 1] = bad
    losses_B = per_example(Square.apply(x, w).nan_to_num(0.5, 0.5, 0.5))

    with pytest.raises(UnsupportedOperationError, match=r"shape \(3,\).*nan_to_num"):
        Engine().gradients(losses_B, [w])


@pytest.mark.filterwarnings("ignore:no rule serves")
def test_without_a_rule_one_large_gradient_is_its_own():
    """A gradient that overflows from finite values concerns its example only."""
    w = parameter(1)
    scale_B = torch.ones(B)
    scale_B[2] = 1e308
    losses_B = Square.apply(torch.ones(B, 1) * 10, w).squeeze(1) * scale_B
    norms_B = Engine().gradients(losses_B, [w]).squared_norms([0])[0]

    assert norms_B.isfinite().tolist() == [i != 2 for i in range(B)]


@pytest.mark.parametrize("positions", [(), (3,)], ids=str)
def test_examples_without_a_finite_loss_have_no_part(positions, by_loop, per_example):
    """Whatever their gradients are: by their own loss alone."""
    model = nn.Linear(4, 2)
    parameters = list(model.parameters())
    losses_B = per_example(model(torch.randn(B, *positions, 4)))
    expected = by_loop(losses_B, parameters)
    shift_B = torch.tensor([0.0, math.nan, math.inf, 0.0, 0.0])
    gradients = Engine().gradients(losses_B + shift_B, parameters)

    norms_B = gradients.squared_norms([0, 0])[0]
    assert norms_B.isinf().tolist() == [False, True, True, False, False]
    true_B = sum(rows.flatten(1).square().sum(1) for rows in expected)
    torch.testing.assert_close(norms_B[[0, 3, 4]], true_B[[0, 3, 4]])


@pytest.mark.parametrize("positions", [(), (3,)], ids=str)
def test_an_example_may_be_dropped_from_one_group_alone(positions):
    """Zero times infinity reaches no sum, and the other group has the example."""
    first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    parameters = [*first.parameters(), *second.parameters()]
    x = torch.randn(B, *positions, 4)
    bad = x.clone()
    bad[1] = math.inf
    losses_B = (first(bad) + second(x)).flatten(1).sum(1)
    gradients = Engine().gradients(losses_B, parameters)
    factors_GB = torch.ones(2, B)
    factors_GB[0, 1] = 0
    sums = [torch.zeros_like(p) for p in parameters]
    gradients.add_weighted_sum(factors_GB, [0, 0, 1, 1], sums)

    x_B4 = x.reshape(B, -1, 4).sum(1)
    torch.testing.assert_close(sums[2][0], x_B4.sum(0))
    torch.testing.assert_close(sums[0][0], x_B4.sum(0) - x_B4[1])


def test_a_batch_without_any_finite_loss_adds_nothing():
    """Nobody contributes."""
    model, engine = nn.Linear(4, 2), Engine()
    parameters = list(model.parameters())
    x = torch.full((B, B, 4), math.nan)
    norms_B = engine.gradients(model(x).sum((1, 2)), parameters).squared_norms([0, 0])[
        0
    ]

    assert norms_B.isinf().all()


def test_an_example_that_makes_all_losses_infinite_is_noticed():
    """Dropping all of them would move the sum by what every other one adds."""
    model, engine = nn.Linear(4, 2), Engine()
    x = torch.randn(B, 4)
    x[0] = math.inf
    outputs = model(x)
    losses_B = (outputs - outputs.mean()).square().sum(1)

    assert not losses_B.isfinite().any()
    with pytest.raises(SampleMixingError, match="units meet"):
        engine.gradients(losses_B, list(model.parameters()))


def test_a_batch_that_is_nan_behind_finite_losses_adds_nothing():
    """Whose a row is follows from the graph, whatever the numbers are."""
    model = nn.Linear(4, 2)
    x = torch.full((B, B, 4), math.nan)
    losses_B = model(x).exp().nan_to_num().sum((1, 2))
    gradients = Engine().gradients(losses_B, list(model.parameters()))

    assert not gradients.squared_norms([0, 0]).isfinite().any()


def test_owners_are_known_where_no_gradient_flows(followed, assert_exact):
    """A dead unit lets nothing through; owners are the same when it wakes up."""
    model, engine = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), Engine()
    parameters = list(model.parameters())
    x = torch.randn(B, B, 4)
    for bias in (-1e3, -1e3, 1e3):
        with torch.no_grad():
            model[0].bias.fill_(bias)
        assert_exact(model(x).sum((0, 2)), parameters, engine=engine)

    assert followed == [B, B]  # When it was walked, and when it was recognised.


def test_examples_axis_is_found_where_sizes_coincide(assert_exact, per_example):
    """As many positions as examples: the graph tells the axes apart, not sizes."""
    model = nn.Linear(B, B)
    x = torch.randn(B, B, B)

    assert_exact(per_example(model(x)), list(model.parameters()))
    assert_exact(
        per_example(model(x.transpose(0, 1)).transpose(0, 1)), list(model.parameters())
    )


def test_long_rows_are_not_under_estimated():
    """The norm errs by less than the clipping margin, which is 16 roundings."""
    rows_BP = torch.full((1, 12_800_003), 1e-3, dtype=torch.float32, device="cpu")
    true = rows_BP.double().square().sum().item()
    at_once = torch.linalg.vector_norm(rows_BP, dim=1).square().item()

    assert squared_norms(rows_BP).item() == pytest.approx(true, rel=3e-6)
    assert at_once < true * (1 - 1e-4)  # Twin: this is what the two stages are for.


def test_gram_norms_do_not_under_estimate_cancelling_gradients(monkeypatch, by_loop):
    """Positions that cancel leave a small difference of large numbers."""
    monkeypatch.setattr(_tuning, "ALLOWED_BYTES", 0)  # Or gradients are kept.
    layer = nn.Linear(64, 64, bias=False, dtype=torch.float32)
    x = torch.randn(B, 1, 64, dtype=torch.float32)
    x = torch.cat([x, -x * (1 + 1e-4)], dim=1)
    losses_B = layer(x).flatten(1).sum(1)
    true_B = by_loop(losses_B, [layer.weight])[0].double().flatten(1).square().sum(1)

    norms_B = Engine().gradients(losses_B, [layer.weight]).squared_norms([0])[0]
    assert (norms_B.double() >= true_B * (1 - 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_norms_and_sums_are_at_least_float32(dtype, by_loop):
    """Half-precision gradients are summed where rounding cannot hide noise."""
    model = nn.Linear(4, 2, dtype=dtype)
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in model.parameters()]
    losses_B = model(torch.randn(B, 4, dtype=dtype)).square().sum(1)
    expected = by_loop(losses_B, [*model.parameters()])
    gradients = Engine().gradients(losses_B, [*model.parameters()])
    gradients.add_weighted_sum(torch.ones(1, B, dtype=torch.float32), [0, 0], sums)

    assert gradients.squared_norms([0, 0]).dtype == torch.float32
    for total, rows in zip(sums, expected, strict=True):
        torch.testing.assert_close(total, rows.float().sum(0), rtol=0.02, atol=0.02)


def test_mixed_precision_is_seen_through(by_loop):
    """Under autocast weights are cast on the way to their use."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).float()
    x = torch.randn(B, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses_B = model(x).float().square().sum(1)
    expected = by_loop(losses_B, [*model.parameters()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients = Engine().gradients(losses_B, [*model.parameters()])
    sums = [torch.zeros_like(p) for p in model.parameters()]
    gradients.add_weighted_sum(torch.ones(1, B, dtype=torch.float32), [0] * 4, sums)

    for total, rows in zip(sums, expected, strict=True):
        torch.testing.assert_close(total, rows.sum(0), rtol=0.03, atol=0.03)


scales = st.lists(
    st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 1e3, 1e9, math.nan, math.inf, -math.inf]),
    min_size=1,
    max_size=9,
)


@pytest.mark.slow
@given(
    scales,
    st.integers(1, 6),
    st.integers(1, 4),
    st.floats(1e-6, 1e6),
    st.sampled_from([False, True]),
)
def test_clipped_sums_are_those_of_a_loop(
    sizes, num_inputs, num_positions, bound, deep
):
    """Whatever an example's scale is, clipping treats it as the definition says."""
    layers = [nn.Linear(num_inputs, 3), nn.Tanh(), nn.Linear(3, 2)]
    model = nn.Sequential(*layers) if deep else layers[0]
    parameters = list(model.parameters())
    x = torch.randn(len(sizes), num_positions, num_inputs)
    scale_B = torch.tensor(sizes)
    losses_B = model(x).flatten(1).sin().sum(1) * scale_B
    clipping = FlatClipping(max_grad_norm=bound)
    gradients = Engine().gradients(losses_B, parameters)
    group_of = clipping.group_of(parameters)
    factors_GB = clipping.factors(gradients.squared_norms(group_of).sqrt())
    sums = [torch.zeros_like(p) for p in parameters]
    gradients.add_weighted_sum(factors_GB, group_of, sums)

    true = [torch.zeros_like(p) for p in parameters]
    for example, scale in zip(x, sizes, strict=True):
        loss = model(example[None]).flatten(1).sin().sum() * scale
        grads = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        if math.isfinite(norm):
            factor = min(1.0, bound / norm) if norm else 1.0
            true = [t + g * factor for t, g in zip(true, grads, strict=True)]
    largest = max(*(float(t.abs().max()) for t in true), bound)
    for total, expected in zip(sums, true, strict=True):
        assert (total - expected).abs().max() <= 1e-9 * largest
