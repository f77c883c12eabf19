"""What mixes units is refused in the step in which it begins; what does not is exact.

Shapes: ``B`` examples, ``U`` units, ``N`` rows.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.checkpoint import checkpoint

from dp.exceptions import SampleMixingError, UnsupportedOperationError
from dp.per_sample import Engine
from dp.per_sample._graph.public import PublicTensors

from .ragged_models import MODELS, assert_as_by_loop


B = 6


pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:no rule serves"),
]


def long(*numbers):
    return torch.tensor(numbers, dtype=torch.long)


def _written(h, index):
    out = h * 1
    out[index] = out[index] + h
    return out


def _masked(h, index):
    """Return the rows of half of the batch, put where a mask is true."""
    mask = (
        (index == torch.arange(B))[:, None]
        if (index == torch.arange(B)).all()
        else _shifted_mask()
    )
    return torch.zeros_like(h).masked_scatter(mask.expand(B, 4), h)


def _shifted_mask():
    mask = torch.ones(B, 1, dtype=torch.bool)
    mask[0] = False
    return mask


# By what rows are moved: a first batch that keeps examples apart, and a later one of
# the same shapes that does not.
ITSELF, OTHERS = torch.arange(B), torch.arange(B).roll(1)
MOVED = {
    "index": lambda h, i: h + h[i],
    "index of several axes": lambda h, i: h + h[i, :2].repeat(1, 2),
    "index_select": lambda h, i: h + h.index_select(0, i),
    "gather": lambda h, i: h + h.gather(0, i[:, None].expand(-1, 4)),
    "take_along_dim": lambda h, i: h + h.take_along_dim(i[:, None], 0),
    "index_add": lambda h, i: h.index_add(0, i, h),
    "index_copy": lambda h, i: h + torch.zeros_like(h).index_copy(0, i, h),
    "index_put": lambda h, i: h + torch.zeros_like(h).index_put((i,), h),
    "write": _written,
    "scatter_add": lambda h, i: h.scatter_add(0, i[:, None].expand(-1, 4), h),
    "scatter_reduce": lambda h, i: h.scatter_reduce(
        0, i[:, None].expand(-1, 4), h, "sum"
    ),
    "embedding": lambda h, i: h + F.embedding(i, h),
    "sparse product": lambda h, i: (
        h
        + torch.sparse_coo_tensor(
            torch.stack([ITSELF, i]), torch.ones(B), check_invariants=True
        )
        @ h
    ),
    "masked_scatter": lambda h, i: h + _masked(h, i),
    "custom function": lambda h, i: h + Moved.apply(h, i),
    "slice": lambda h, i: h + F.pad(h[int(i[0]) :], (0, 0, 0, int(i[0]))),
    "as_strided": lambda h, i: h + h.as_strided((B, 4), (0 if i[0] else 4, 1)),
    "compared pairs": lambda h, i: h - h[i].detach() * h[i],
}


class Moved(torch.autograd.Function):
    """Rows in another order, by an operation that is nobody's but the user's."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.index = index
        return x[index]

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad).index_add_(0, ctx.index, grad), None


@pytest.mark.parametrize("is_deep", [False, True], ids=["data", "hidden"])
@pytest.mark.parametrize("name", MOVED)
def test_rows_that_begin_to_move_are_noticed(name, is_deep, assert_exact):
    """The graph has the same form and the same sizes; only what it kept differs."""
    first, last, engine = nn.Linear(3, 4), nn.Linear(4, 2), Engine()
    parameters = [*first.parameters(), *last.parameters()]

    def losses(index):
        hidden = first(torch.randn(B, 3))
        hidden = hidden.tanh() if is_deep else hidden
        return last(MOVED[name](hidden, index)).square().sum(1)

    for _ in range(3):
        assert_exact(losses(ITSELF), parameters, engine=engine)
    with pytest.raises(SampleMixingError, match="units meet in"):
        engine.gradients(losses(OTHERS), parameters)
    assert_exact(losses(ITSELF), parameters, engine=engine)


GATES = {
    "clamp": lambda x: x.clamp(min=9.0),
    "relu": lambda x: (x - 9).relu(),
    "where": lambda x: torch.where(x > 9, x, torch.zeros(())),
    "hinge": lambda x: (9 - x).clamp(max=0),
    "masked_fill": lambda x: x.masked_fill(x < 9, 0.0),
    "threshold": lambda x: F.threshold(x, 9.0, 0.0),
    "maximum": lambda x: torch.maximum(x, torch.full_like(x, 9.0)),
    "times nothing": lambda x: x * 0.0,
    "hardtanh": lambda x: F.hardtanh(x, 9.0, 10.0),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_over_the_batch_counts_as_open(name):
    """A penalty that is closed at first, as free bits are, is refused at once."""
    model = nn.Linear(3, 2)
    hidden = model(torch.randn(B, 3)) * 1e-3
    losses_B = hidden.sum(1).square() + GATES[name](hidden.square().mean())

    with pytest.raises(SampleMixingError, match="units meet in"):
        Engine().gradients(losses_B, [*model.parameters()])


@pytest.mark.parametrize("name", GATES)
def test_a_gate_of_an_example_is_none_of_it(name, assert_exact):
    """Twin: each example's own penalty is served, open or closed."""
    model = nn.Linear(3, 2)
    hidden = model(torch.randn(B, 3)) * 1e-3
    losses_B = hidden.sum(1).square() + GATES[name](hidden.square().mean(1))

    assert_exact(losses_B, [*model.parameters()])


@pytest.mark.parametrize(
    ("mix", "name"),
    [
        (lambda h: h - h.mean(0), "MeanBackward1|SubBackward0"),
        (lambda h: h.softmax(0), "SoftmaxBackward0"),
        (lambda h: F.batch_norm(h, None, None, training=True), "NativeBatchNorm.*"),
        (lambda h: h @ (h.T @ h), "MmBackward0"),
        (lambda h: h.sort(0).values, "SortBackward0"),
    ],
)
def test_the_operation_at_which_units_meet_is_named(mix, name):
    """That is what has to be changed, not the layer below it."""
    model, head = nn.Linear(3, 4), nn.Linear(4, 2)
    losses_B = head(mix(model(torch.randn(B, 3)))).square().sum(1)

    with pytest.raises(SampleMixingError, match=f"units meet in ({name}):"):
        Engine().gradients(losses_B, [*model.parameters(), *head.parameters()])


@pytest.mark.parametrize(
    "read_twice",
    [
        lambda m, x: m(x) + m(x)[OTHERS],
        lambda m, x: m(x[1:]) + m(x[:-1]),
        lambda m, x: torch.cat([m(x[:3]) + m(x[3:]), m(x[3:])]),
        lambda m, x: m(x) + m(x[:, :B].T),
        lambda m, x: m(x) + m(x.reshape(-1)[: B * B].view(B, B).flip(0)).flip(0) * 0,
    ],
    ids=["index", "overlap", "halves", "transposed", "a copy is not seen"],
)
def test_one_tensor_of_data_is_not_read_for_two_units(read_twice, request):
    """Each use alone has one owner a row, but a row of the data has two."""
    model, x = nn.Linear(B, 2), torch.randn(B, B)
    losses = read_twice(model, x).square().sum(1)
    parameters, units = [*model.parameters()], torch.arange(len(losses))
    if "copy" in request.node.callspec.id:
        assert Engine().gradients(losses, parameters, units=units).num_samples == B
        return

    with pytest.raises(SampleMixingError, match="meet in the data"):
        Engine().gradients(losses, parameters, units=units)


def test_images_of_data_are_not_read_for_two_units():
    """A convolution keeps its input, too."""
    layer, x = nn.Conv1d(1, 2, 3), torch.randn(B, 1, 8)
    losses = (layer(x) + layer(x).flip(0)).square().sum((1, 2))

    with pytest.raises(SampleMixingError, match="meet in the data"):
        Engine().gradients(losses, [*layer.parameters()], units=ITSELF)


def test_a_part_of_the_batch_may_be_read():
    """Some columns of each row, and a copy that is not recognised."""
    model, x = nn.Linear(4, 2), torch.randn(B, 6)
    parameters, engine = [*model.parameters()], Engine()
    for some in (x[:, 1:5], x[:, 1:5] * 2):
        losses = model(some).square().sum(1)
        assert engine.gradients(losses, parameters, batch=[x]).num_samples == B
    losses = nn.functional.linear(x[:, :4], model.weight.tanh()).square().sum(1)
    assert engine.gradients(losses, parameters, batch=[x]).num_samples == B


def test_sizes_are_forgotten_where_there_are_too_many(monkeypatch, assert_exact):
    """They are followed again."""
    monkeypatch.setattr("dp._tuning.KNOWN_SIZES", 2)
    model, engine = nn.Linear(4, 2), Engine()
    for size in (2, 3, 4, 5, 2, 3, 4, 5):
        losses = model(torch.randn(size, 4)).square().sum(1)
        assert_exact(losses, [*model.parameters()], engine=engine)

    (known,) = engine._graphs._known
    assert len(known.by_sizes) == 2


def test_public_tensors_are_recognised_where_they_can_be_compared():
    """Not on another device, nor of another layout; a cast keeps what it can."""
    public = PublicTensors([torch.ones(2, 2)])

    assert public.has(torch.ones(2, 2))
    assert not public.has(torch.zeros(2, 2))
    assert not public.has(torch.ones(2, 2, device="meta"))
    assert not public.has(torch.ones(2, 2).to_sparse())
    assert public.has(torch.ones(2, 2, dtype=torch.float32))
    assert not public.has(torch.ones(2, 2, dtype=torch.int64))
    indices = PublicTensors([torch.tensor([2, 3], dtype=torch.int32)])
    assert indices.has(torch.tensor([2, 3]))
    assert not indices.has(torch.tensor([2, 4]))
    assert not PublicTensors([]).has(torch.ones(2, 2))


def test_one_tensor_of_data_may_be_read_twice_for_one_unit(assert_exact):
    """Twin: two layers over the same rows, and over parts of the same columns."""
    model, other, x = nn.Linear(4, 2), nn.Linear(2, 2), torch.randn(B, 4)
    losses = (model(x) + model(x).tanh() + other(x[:, 2:])).square().sum(1)

    assert_exact(losses, [*model.parameters(), *other.parameters()])


@pytest.mark.parametrize("kind", ["steps of two examples", "examples cut into rows"])
def test_a_row_of_the_batch_is_one_units(kind):
    """Each row of each use has one owner, but a loss has pieces of two examples."""
    model, x = nn.Linear(4, 2), torch.randn(B, 5, 4)
    parameters, engine = [*model.parameters()], Engine()
    whole = model(x).square().sum((1, 2))
    assert engine.gradients(whole, parameters, batch=[x]).num_samples == B
    by_step = model(x.transpose(0, 1)).square().sum((0, 2))
    assert engine.gradients(by_step, parameters, batch=[x]).num_samples == B

    if kind == "steps of two examples":
        h = model(x)
        h = torch.cat([h[:, :2], h.flip(0)[:, 2:]], 1)
    else:  # Of as many rows as examples, by a reshape that forgot an axis.
        h = model(x.view(-1, 4)).view(5, B, 2).transpose(0, 1)
    with pytest.raises(SampleMixingError, match="units meet in the batch"):
        engine.gradients(
            h.square().sum((1, 2)), parameters, units=torch.arange(B), batch=[x]
        )


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.clone(),
        lambda x: x.to(torch.float32),
        lambda x: x.index_fill(0, torch.tensor([0]), torch.nan),
    ],
    ids=["as to another device", "another dtype", "with NaN"],
)
def test_a_copy_of_the_batch_is_recognised_by_its_values(move):
    """Moved whole, it is the loader's all the same; with other values it is not."""
    x = torch.randn(B, 5, 4)
    moved = move(x)
    loaded = moved.clone() if bool(moved.isnan().any()) else x
    model = nn.Linear(4, 2, dtype=moved.dtype)
    parameters, engine, units = [*model.parameters()], Engine(), torch.arange(B)

    def in_pieces(data):
        return (
            model(data.view(-1, 4)).view(5, B, 2).transpose(0, 1).square().sum((1, 2))
        )

    whole = model(moved).square().sum((1, 2))
    assert engine.gradients(whole, parameters, batch=[loaded]).num_samples == B
    other = in_pieces(moved + 1)
    computed = engine.gradients(other, parameters, units=units, batch=[loaded])
    assert computed.num_samples == B
    with pytest.raises(SampleMixingError, match="units meet in the batch"):
        engine.gradients(in_pieces(moved), parameters, units=units, batch=[loaded])


def test_labels_that_are_all_alike_are_not_taken_for_what_examples_share():
    """As many zeros stand in a batch of one class and in the token types of a sequence."""
    words, kinds = nn.Embedding(9, 4), nn.Embedding(2, 4)
    tokens, types = torch.randint(9, (B, B)), torch.zeros(B, dtype=torch.long)
    parameters, engine = [words.weight, kinds.weight], Engine()

    def losses():
        read = kinds(types.clone().expand(B, B))
        return (words(tokens) + read).square().sum((1, 2))

    alike, others = torch.zeros(B, dtype=torch.long), torch.arange(B) % 2
    for labels in (alike, others):
        gradients = engine.gradients(losses(), parameters, batch=[tokens, labels])
        assert gradients.num_samples == B
    types = others
    with pytest.raises(SampleMixingError, match="units meet in the batch"):
        Engine().gradients(losses(), parameters, batch=[tokens, others])


def test_a_tensor_of_another_size_is_no_copy_of_the_batch():
    """Labels, say: what has as many elements is compared, and nothing else."""
    model, x = nn.Linear(4, 2), torch.randn(B, 4)
    losses = model(x.clone()).square().sum(1)
    labels, columns = torch.arange(B), torch.randn(4, B).T
    gradients = Engine().gradients(
        losses, [*model.parameters()], batch=[labels, columns]
    )

    assert gradients.num_samples == B


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_units_along_no_axis_are_as_by_a_loop(name):
    """Packed, ragged and routed batches, graphs, users: owners are found, not given."""
    model, engine = MODELS[name](), Engine()
    for seed in range(4):
        torch.manual_seed(seed)
        losses, units = model()
        parameters = [*model.parameters()]
        gradients = engine.gradients(losses, parameters, units=units)
        torch.manual_seed(seed)
        losses, units = model()  # Of the same numbers: the first graph is freed.
        assert_as_by_loop(gradients, losses, parameters, units)


@pytest.mark.slow
def test_every_pattern_of_lengths_of_four_examples(assert_exact):
    """Of 152 patterns whose rows divide by the examples, 40 were served wrongly."""
    model, count = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), 0
    engine = Engine()
    for lengths in itertools.product(range(1, 6), repeat=4):
        if sum(lengths) % 4 == 0 and len({*lengths}) > 1:
            owner = torch.repeat_interleave(torch.arange(4), long(*lengths))
            rows = model(torch.randn(len(owner), 8)).square().sum(1)
            losses = torch.zeros(4).index_add(0, owner, rows)
            assert_exact(losses, [*model.parameters()], engine=engine)
            count += 1

    assert count == 152


def test_as_many_rows_as_before_but_other_owners(assert_exact):
    """A budget of tokens: the sizes are the same, the examples' lengths are not."""
    weight, engine = nn.Parameter(torch.randn(8)), Engine()
    for lengths in ([3] * 16, [3] * 16, [33, *[1] * 15], [3] * 16):
        owner = torch.repeat_interleave(torch.arange(16), long(*lengths))
        losses = torch.zeros(16).index_add(0, owner, torch.randn(48, 8) @ weight)
        assert_exact(losses.square(), [weight], engine=engine)


def test_a_loop_over_examples_and_several_passes(assert_exact):
    """Losses that are put together of several forward passes."""
    model, x = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), None
    x, parameters = torch.randn(4, 6, 8), [*model.parameters()]
    loop = torch.stack([model(x[i, : i + 2]).square().sum() for i in range(4)])
    passes = torch.cat([model(x[:1, 0]).square().sum(1), model(x[1:, 0]).sum(1).sin()])

    assert_exact(loop, parameters)
    assert_exact(passes, parameters)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_unit_of_several_losses_is_clipped_once(reduction, by_loop):
    """Its gradient is the sum of its losses' gradients, or the mean by name."""
    model, x = nn.Linear(8, 3), torch.randn(20, 8)
    parameters, units = [*model.parameters()], torch.randint(5, (20,)) * 7
    losses = model(x).square().sum(1)
    rows = by_loop(losses, parameters)
    known = units.unique()
    gradients = Engine().gradients(
        losses.view(4, 5), parameters, units=units.view(4, 5), reduction=reduction
    )
    norms_U = gradients.squared_norms([0, 0])[0]

    of_units = [
        [getattr(torch, reduction)(r[units == u], 0) for r in rows] for u in known
    ]
    for norm, of_unit in zip(norms_U, of_units, strict=True):
        torch.testing.assert_close(norm, sum(r.square().sum() for r in of_unit))


def test_one_unit_alone_owns_everything():
    """Whatever mixes its own losses is its own business."""
    model = nn.Linear(3, 2)
    h = model(torch.randn(B, 3))
    losses = (h - h.mean(0)).square().sum(1)

    gradients = Engine().gradients(
        losses, [*model.parameters()], units=torch.full((B,), 3)
    )
    assert gradients.num_samples == 1


@pytest.mark.parametrize(
    ("units", "reduction"),
    [
        (torch.arange(B - 1), "sum"),
        (torch.arange(B).float(), "sum"),
        (torch.arange(B), "max"),
    ],
)
def test_units_that_fit_no_losses_are_refused(units, reduction):
    """The error names the shape, or the reductions that there are."""
    model = nn.Linear(3, 2)
    losses = model(torch.randn(B, 3)).sum(1)

    with pytest.raises(ValueError, match=r"shape \(6,\)|'sum' or 'mean'"):
        Engine().gradients(
            losses, [*model.parameters()], units=units, reduction=reduction
        )


@pytest.mark.parametrize("use_routing", [False, True])
def test_routing_inside_a_checkpoint_is_followed(use_routing, assert_exact):
    """Its index is computed again to be read, and once more for the backward pass."""
    model, head, engine = nn.Linear(3, 4), nn.Linear(4, 2), Engine()
    parameters = [*model.parameters(), *head.parameters()]

    def body(x, index):
        h = model(x).tanh()
        return h + h[index] if use_routing else h

    def losses(index):
        x = torch.randn(B, 3, requires_grad=True)
        return head(checkpoint(body, x, index, use_reentrant=False)).square().sum(1)

    for _ in range(3):
        assert_exact(losses(ITSELF), parameters, engine=engine)
    if use_routing:
        with pytest.raises(SampleMixingError):
            engine.gradients(losses(OTHERS), parameters)


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.Embedding(9, 3, scale_grad_by_freq=True), "scale_grad_by_freq=False"),
        (nn.EmbeddingBag(9, 3, scale_grad_by_freq=True), "scale_grad_by_freq=False"),
        (nn.Embedding(9, 3, sparse=True), "sparse=False"),
        (nn.EmbeddingBag(9, 3, sparse=True), "sparse=False"),
    ],
    ids=repr,
)
def test_flags_that_read_the_whole_batch_are_refused_by_name(layer, told):
    """No structure shows them: the node divides by how often a row was looked up."""
    losses_B = layer(torch.randint(9, (B, 4))).flatten(1).square().sum(1)

    with pytest.raises((SampleMixingError, UnsupportedOperationError), match=told):
        Engine().gradients(losses_B, [*layer.parameters()])


def test_a_flag_that_is_set_later_is_noticed(assert_exact):
    """Of a graph that is otherwise the same."""
    table, engine, tokens = nn.Embedding(9, 3), Engine(), torch.randint(9, (B, 4))
    for _ in range(2):
        assert_exact(table(tokens).sin().sum((1, 2)), [table.weight], engine=engine)
    table.scale_grad_by_freq = True

    with pytest.raises(SampleMixingError, match="scale_grad_by_freq"):
        engine.gradients(table(tokens).sin().sum((1, 2)), [table.weight])


def test_sparse_gathers_and_nested_tensors_are_refused_by_name():
    """They have no rows that could be told apart."""
    model = nn.Linear(3, 4)
    h = model(torch.randn(B, 3))
    losses_B = h.gather(1, torch.zeros(B, 1, dtype=torch.long), sparse_grad=True)
    with pytest.raises(UnsupportedOperationError, match="sparse_grad=False"):
        Engine().gradients(losses_B.sum(1), [*model.parameters()])

    nested = torch.nested.nested_tensor_from_jagged(
        model(torch.randn(B, 3)), long(0, 2, 3, B)
    )
    with pytest.raises(UnsupportedOperationError, match="nested tensors"):
        Engine().gradients(nested.values().sum(1), [*model.parameters()])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize("is_weight", [False, True])
def test_operations_between_nested_tensors_are_refused_by_name(layout, is_weight):
    """Their names are those of other tensors', and not all of them have a shape."""
    model = nn.Linear(3, 3)
    rows = [torch.randn(n, 3) for n in range(1, B + 1)]
    if is_weight:
        rows = [model.weight[:1] * row for row in rows]
    nested = torch.nested.as_nested_tensor(rows, layout=layout)
    losses_B = model(nested).to_padded_tensor(0.0).square().sum((1, 2))

    with pytest.raises(UnsupportedOperationError, match=r"on nested tensors.*padded"):
        Engine().gradients(losses_B, [*model.parameters()])


@pytest.mark.usefixtures("float64")
class TestComplexNumbers:
    """Real parameters that meet complex activations have real gradients."""

    @pytest.mark.parametrize("kind", ["product", "matrix", "view", "cast", "sum"])
    def test_real_parameters_of_complex_operations_are_exact(self, kind, assert_exact):
        """The imaginary part of an activation counts for the real weight."""
        w, v = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5, 2))
        x = torch.fft.rfft(torch.randn(B, 8))
        complex_v = {
            "product": lambda: x * w,
            "matrix": lambda: x @ torch.complex(v, v.exp()),
            "view": lambda: x * torch.view_as_complex(v),
            "cast": lambda: x @ v.to(x.dtype),
            "sum": lambda: x.sin() + w,
        }[kind]()
        losses_B = torch.view_as_real(complex_v * complex_v).sin().sum((1, 2))

        assert_exact(losses_B, [w, v])

    def test_complex_parameters_are_refused(self):
        """Noise is real; the error says what to hold instead."""
        w = nn.Parameter(torch.randn(5, dtype=torch.complex128))
        losses_B = (torch.fft.rfft(torch.randn(B, 8)) * w).abs().sum(1)

        with pytest.raises(UnsupportedOperationError, match="view_as_real"):
            Engine().gradients(losses_B, [w])


def test_distances_to_learned_centres_are_exact(assert_exact):
    """Where torch batches a backward wrongly, it is run for each example."""
    centres = nn.Parameter(torch.randn(5, 8))
    for _ in range(2):
        losses_B = torch.cdist(torch.randn(B, 8), centres).square().sum(1)
        assert_exact(losses_B, [centres], rtol=1e-8)


def test_anomaly_detection_is_no_obstacle(assert_exact):
    """No NaN is sent through the graph."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with torch.autograd.set_detect_anomaly(True):
        losses_B = model(torch.randn(B, 4)).square().sum(1)
        assert_exact(losses_B, [*model.parameters()])


# Public tensors: weights that are computed with a constant, and the constant.
_SEEDED = torch.Generator().manual_seed(0)
BASIS = torch.randn(4, 4, generator=_SEEDED)
INDEX = torch.randperm(16, generator=_SEEDED)[:10]
CONSTANTS = {
    "basis on the left": (lambda w: BASIS.double() @ w, (4, 4), BASIS.double()),
    "basis on the right": (lambda w: w @ BASIS.double(), (4, 4), BASIS.double()),
    "written into zeros": (
        lambda w: torch.zeros(16).index_put((INDEX,), w).view(4, 4),
        (10,),
        INDEX,
    ),
    "scattered": (
        lambda w: torch.zeros(16).scatter(0, INDEX, w).view(4, 4),
        (10,),
        INDEX,
    ),
    "looked up": (lambda w: w[INDEX % 4][:4], (4, 4), INDEX % 4),
    "a vector": (lambda w: torch.outer(w, BASIS.double()[0]), (4,), BASIS.double()[0]),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_weights_computed_with_a_constant_need_it_to_be_public(name, assert_exact):
    """Without the declaration it may be data; the error names its shape."""
    weight_of, shape, constant = CONSTANTS[name]
    w, head = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(4, 3))

    def losses():
        return (torch.tanh(torch.randn(B, 4) @ weight_of(w)) @ head).square().sum(1)

    engine = Engine(public=[constant])
    for _ in range(3):
        assert_exact(losses(), [w, head], engine=engine)
    if name != "looked up":  # Which is taken for shared, if it never changes.
        with pytest.raises(SampleMixingError, match=r"public=\[tensor\]"):
            Engine().gradients(losses(), [w, head])


def test_a_tensor_that_is_not_public_does_not_become_so(assert_exact):
    """In a graph that is the same but for the constant."""
    w, head = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 3))
    basis, engine = torch.randn(4, 4), None
    engine = Engine(public=[basis])

    def losses(left):
        return (torch.tanh(torch.randn(B, 4) @ (left @ w)) @ head).square().sum(1)

    for _ in range(3):
        assert_exact(losses(basis), [w, head], engine=engine)
    assert_exact(losses(basis.clone()), [w, head], engine=engine)  # Equal is public.
    with pytest.raises(SampleMixingError, match="public"):
        engine.gradients(losses(torch.randn(4, 4)), [w, head])


class Rounded(torch.autograd.Function):
    """A straight-through quantiser."""

    @staticmethod
    def forward(_ctx, weight):
        return weight.round()

    @staticmethod
    def backward(_ctx, grad):
        return grad


class Quantised(torch.autograd.Function):
    """A quantiser that keeps something that has no graph."""

    @staticmethod
    def forward(ctx, weight, scale):
        ctx.save_for_backward(scale)
        return (weight / scale).round() * scale

    @staticmethod
    def backward(ctx, grad):
        (scale,) = ctx.saved_tensors
        return grad * (scale > 0), None


def test_a_custom_function_of_parameters_alone_is_part_of_the_weight(assert_exact):
    """It takes and keeps nothing else; one that does may hold data."""
    w, scale = nn.Parameter(torch.randn(4, 4) * 4), torch.tensor(0.5)
    losses_B = (torch.randn(B, 4) @ Rounded.apply(w)).sin().sum(1)
    assert_exact(losses_B, [w])

    losses_B = (torch.randn(B, 4) @ Quantised.apply(w, scale)).sin().sum(1)
    with pytest.raises(SampleMixingError, match="public"):
        Engine().gradients(losses_B, [w])
    losses_B = (torch.randn(B, 4) @ Quantised.apply(w, scale)).sin().sum(1)
    assert_exact(losses_B, [w], engine=Engine(public=[scale]))


class OuterProduct(torch.autograd.Function):
    """The outer product of two vectors, with a backward that torch.vmap cannot batch."""

    @staticmethod
    def forward(ctx, left, right):
        ctx.save_for_backward(left, right)
        return torch.outer(left, right)

    @staticmethod
    def backward(ctx, grad):
        left, right = ctx.saved_tensors
        of_left = torch.einsum("ij,j->i", grad, right)
        return of_left, torch.einsum("ij,i->j", grad, left)


@pytest.mark.parametrize("rows", [2, 8])
def test_weights_that_cannot_be_batched_are_taken_back_one_by_one(rows, assert_exact):
    """Whether their parameters are larger than the weight or not."""
    left, right = nn.Parameter(torch.randn(rows)), nn.Parameter(torch.randn(2))
    losses_B = (torch.randn(B, rows) @ OuterProduct.apply(left, right)).sin().sum(1)

    assert_exact(losses_B, [left, right])


def test_hooks_on_parameters_of_computed_weights_see_no_private_gradient():
    """One that is not linear would make sums that no norm has bounded."""
    w, x = nn.Parameter(torch.randn(4, 2)), torch.randn(B, 4)
    w.register_hook(torch.sign)
    engine = Engine()
    gradients = engine.gradients((x @ w.exp()).sum(1), [w])
    total = torch.zeros_like(w)
    gradients.add_weighted_sum(torch.ones(1, B), [0], [total], beta=0)

    assert_same = torch.testing.assert_close
    assert_same(total, (x.sum(0)[:, None] * w.exp()).detach())
    assert w._backward_hooks


def test_sparse_weights_are_refused_by_name():
    """Built from parameters, or a parameter themselves."""
    values, places = nn.Parameter(torch.randn(3)), torch.tensor([[0, 1, 2], [1, 0, 3]])
    built = torch.sparse_coo_tensor(
        places, values, (4, 4), check_invariants=True
    ).coalesce()
    given = nn.Parameter(torch.eye(4).to_sparse())
    x = torch.randn(B, 4)

    for weight, parameter in ((built, values), (given, given)):
        losses_B = torch.sparse.mm(weight, x.T).T.square().sum(1)
        with pytest.raises(UnsupportedOperationError, match=r"to_dense\(\)"):
            Engine().gradients(losses_B, [parameter])


def test_data_inside_a_checkpoint_is_not_computed_again_to_compare_it():
    """Two first uses of one tensor, whose owners are alike: nothing is left to see."""
    left, right = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.randn(5, 4)
    parameters = [*left.parameters(), *right.parameters()]
    for recompute in (False, True):
        f = lambda x: left(x) + right(x)  # noqa: E731
        y = checkpoint(f, x, use_reentrant=False) if recompute else f(x)
        gradients = Engine().gradients(y.square().sum(1), parameters, batch=[x])

        assert gradients.num_samples == 5
