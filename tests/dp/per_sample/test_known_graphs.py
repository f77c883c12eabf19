"""A graph that was seen before is recognised, and only that.

Shapes: ``B`` examples, ``T`` positions.
"""

import math
import re
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.checkpoint import checkpoint

from dp.exceptions import SampleMixingError, WrongGradientError
from dp.per_sample import (
    Engine as VerifiedEngine,
    _backward_pass,
    _known_graphs,
    _layer_batching,
)
from dp.per_sample._graph.nodes import output_shape, output_shapes
from dp.per_sample._graph.public import PublicTensors
from dp.per_sample._graph.uses import Graph, Use
from dp.per_sample._isolation.known_graph import (
    BROADCASTING,
    FOLLOWING,
    FOLLOWING_ARGUMENTS,
    FOLLOWING_SOME,
    Template,
)
from dp.per_sample._isolation.rule_table import arguments_reader
from dp.per_sample._isolation.verification import Verification
from dp.per_sample._rules.context import RuleContext
from dp.per_sample._rules.table import RULES


B, T = 5, 3


def Engine():  # noqa: N802 -- the one of this module
    """An engine that runs every backward pass once."""
    return VerifiedEngine(verification=Verification(first=0, every=1 << 62))


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def walks(monkeypatch):
    """The batch sizes of the graphs that were walked, not recognised."""
    sizes = []

    def counting(root, parameters, **more):
        sizes.append(output_shape(*root)[0])
        return find_uses(root, parameters, **more)

    find_uses = _known_graphs.find_uses
    monkeypatch.setattr(_known_graphs, "find_uses", counting)
    return sizes


@pytest.fixture
def stacks(monkeypatch):
    """How many layers were served as one, batch by batch and kind by kind."""
    sizes = []

    def counting(members, *args, **kwargs):
        found = batch_layers(members, *args, **kwargs)
        sizes.append(0 if found is None else len(members))
        return found

    batch_layers = _backward_pass.batch_layers
    monkeypatch.setattr(_backward_pass, "batch_layers", counting)
    return sizes


class Residual(nn.Module):
    """A norm and two products, which may be narrow."""

    def __init__(self, width=4, inner=6, *, bias=True):
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=bias)
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).tanh())


def deep(num_layers=5, **options):
    return nn.Sequential(*[Residual(**options) for _ in range(num_layers)])


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", [(), (T,), (T, 2)], ids=str)
def test_layers_that_are_alike_are_served_as_one(
    bias, positions, stacks, assert_exact, per_example
):
    """The gradients are those of the loop, for batches of any size."""
    model, engine = deep(bias=bias), Engine()
    for size in (B, B, 7, 13):
        x = torch.randn(size, *positions, 4)
        assert_exact(per_example(model(x)), trained(model), engine=engine)

    assert stacks == 3 * [5, 5, 5]


def test_batches_of_any_size_are_one_graph(walks, assert_exact, per_example):
    """As Poisson sampling makes them."""
    model, engine = deep(), Engine()
    for size in (B, B, 7, 1, 13):
        x = torch.randn(size, T, 4)
        assert_exact(per_example(model(x)), trained(model), engine=engine)

    assert walks == [B]


def test_examples_on_another_axis_are_found_without_a_walk(walks, assert_exact):
    """The form is the same, but sizes and arguments are not: owners are followed."""
    layer, engine = nn.Linear(3, 4), Engine()
    for shape, steps in ((B, T, 3), (1, T)), ((T, B, 3), (B, 1)):
        for _ in range(2):
            rows = layer(torch.randn(shape))
            by_step = rows.sum(2).as_strided((T, B), steps)
            losses_B = by_step.square().sum(0)
            assert_exact(losses_B, trained(layer), engine=engine)

    assert walks == [B]


def test_layers_of_one_row_with_long_products_are_served_as_one(
    stacks, assert_exact, per_example
):
    """Their gradients are not kept, but held as two factors."""
    layers = [nn.Sequential(nn.Linear(64, 64, bias=False), nn.Tanh()) for _ in range(4)]
    model, engine = nn.Sequential(*layers), Engine()
    for _ in range(3):
        losses_B = per_example(model(torch.randn(B, 64)))
        assert_exact(losses_B, trained(model), engine=engine, loss_scale=8.0)

    assert stacks == [4, 4]


def test_an_example_of_a_stack_may_be_dropped(by_loop, per_example):
    """NaN in one example's gradient reaches none of the sums."""
    model, engine = deep(), Engine()
    parameters = trained(model)
    x = torch.randn(B, T, 4)
    engine.gradients(per_example(model(x)), parameters)
    expected = by_loop(per_example(model(x)), parameters)
    x[1, 0, 0] = math.nan
    losses_B = per_example(model(x))
    gradients = engine.gradients(losses_B, parameters)

    norms_GB = gradients.squared_norms([0] * len(parameters))
    factors_GB = torch.where(norms_GB.isfinite(), 1.0, 0.0)
    sums = [torch.zeros_like(p) for p in parameters]
    gradients.add_weighted_sum(factors_GB, [0] * len(parameters), sums)

    assert norms_GB.isfinite().tolist() == [[True, False, True, True, True]]
    for total, rows in zip(sums, expected, strict=True):
        torch.testing.assert_close(total, rows.sum(0) - rows[1])


def test_layers_may_have_groups_of_their_own(by_loop, per_example):
    """Per-layer clipping finds each parameter's norms in what was computed as one."""
    model, engine = deep(), Engine()
    parameters = trained(model)
    for _ in range(2):
        losses_B = per_example(model(torch.randn(B, T, 4)))
        expected = by_loop(losses_B, parameters)
        gradients = engine.gradients(losses_B, parameters)
        norms_GB = gradients.squared_norms(range(len(parameters)))

        for norms_B, rows in zip(norms_GB, expected, strict=True):
            torch.testing.assert_close(norms_B, rows.flatten(1).square().sum(1))
        sums = [torch.empty_like(p) for p in parameters]
        factors_GB = torch.rand_like(norms_GB)
        gradients.add_weighted_sum(factors_GB, range(len(parameters)), sums, beta=0)
        for total, factors_B, rows in zip(sums, factors_GB, expected, strict=True):
            true = torch.einsum("b...,b->...", rows, factors_B)
            torch.testing.assert_close(total, true)


class Gate(torch.autograd.Function):
    """What gradients pass if it is open."""

    @staticmethod
    def forward(ctx, x, is_open):
        ctx.is_open = is_open
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return (grad if ctx.is_open else None), None


@pytest.mark.parametrize(
    ("closed", "served"), [([2], [3]), ([0, 1, 2, 3], [])], ids=str
)
def test_layers_that_no_gradient_reaches_have_none(
    closed, served, stacks, assert_exact
):
    """One of the layers that are alike, or all of them, in a later batch."""
    layers, head = nn.ModuleList(nn.Linear(4, 3) for _ in range(4)), nn.Linear(4, 5)
    parameters, engine = [*trained(layers), *trained(head)], Engine()
    for later in (False, True):
        x = torch.randn(B, 4)
        losses_B = head(x).sin().square().sum(1)
        for i, layer in enumerate(layers):
            is_open = not (later and i in closed)
            losses_B = losses_B + Gate.apply(layer(x).sin(), is_open).sum(1)
        assert_exact(losses_B, parameters, engine=engine)

    assert stacks == served


def test_layers_that_no_gradient_reached_at_first_are_right_later(assert_exact):
    """Two layers behind a closed gate in the first batch, and an open one later."""
    model, head = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), nn.Linear(4, 2)
    parameters, engine = [*trained(model), *trained(head)], Engine()
    for is_open in (False, True, False):
        x = torch.randn(B, 4)
        losses_B = head(x).sin().sum(1) + Gate.apply(model(x), is_open).sin().sum(1)
        assert_exact(losses_B, parameters, engine=engine)


def test_products_with_scales_that_differ_are_not_one(
    stacks, assert_exact, per_example
):
    """What a layer is scaled with is read in every batch."""
    weights = [nn.Parameter(torch.randn(4, 4)) for _ in range(4)]
    bias = [nn.Parameter(torch.randn(4)) for _ in range(4)]
    engine = Engine()
    for scales in ([1, 1, 1, 1], [2, 2, 2, 2], [1, 2, 3, 4]):
        h = torch.randn(B, 4)
        for w, b, alpha in zip(weights, bias, scales, strict=True):
            h = torch.addmm(b, h, w, alpha=alpha).tanh()
        assert_exact(per_example(h), [*weights, *bias], engine=engine)

    assert stacks == [4, 0]


def test_layers_of_other_lengths_are_not_one(stacks, assert_exact, per_example):
    """Layers that were alike meet inputs of different lengths in a later batch."""
    layers = nn.ModuleList(nn.Linear(4, 3) for _ in range(4))
    engine = Engine()
    for lengths in ([2, 2, 2, 2], [2, 3, 2, 4]):
        outputs = [
            layer(torch.randn(B, length, 4)).sum(1)
            for layer, length in zip(layers, lengths, strict=True)
        ]
        losses_B = per_example(torch.stack(outputs, 1))
        assert_exact(losses_B, trained(layers), engine=engine)

    assert not stacks


def test_a_parameter_that_is_shared_with_another_layer_is_not_in_a_stack(
    stacks, assert_exact, per_example
):
    """Tied weights have cross terms, also among layers that are alike."""
    model, engine = deep(), Engine()
    model[3].up.weight = model[0].up.weight
    for _ in range(2):
        x = torch.randn(B, T, 4)
        assert_exact(per_example(model(x)), trained(model), engine=engine)

    assert sorted(stacks) == [3, 5, 5]


def test_large_outputs_are_served_alone(stacks, assert_exact, per_example):
    """What would need much memory to be put together is not."""
    model, engine = deep(4, inner=32), Engine()
    for length in (2, 2, 601):
        x = torch.randn(B, length, 4)
        assert_exact(per_example(model(x)), trained(model), engine=engine, rtol=1e-9)

    assert stacks == [4, 4, 4, 0, 0, 0]


def test_large_parameters_are_served_alone(stacks, assert_exact, per_example):
    """Their gradients are not held, so nothing is gained by serving them together."""
    model, engine = nn.Sequential(*(nn.Linear(70, 70) for _ in range(4))), Engine()
    for _ in range(2):
        losses_B = per_example(model(torch.randn(B, 70)))
        assert_exact(losses_B, trained(model), engine=engine, rtol=1e-9)

    assert not stacks


def test_layers_are_one_only_as_long_as_they_are_alike():
    """What the plan promises is looked at again, before rows are concatenated."""
    layers = [nn.Linear(4, 3) for _ in range(2)]
    nodes = [
        layer(torch.randn(rows, 4)).grad_fn
        for layer, rows in zip(layers, (2, 5), strict=True)
    ]
    rule = RULES["AddmmBackward0"]

    assert _layer_batching._read_saved(nodes[:1], rule) is not None
    assert _layer_batching._read_saved(nodes, rule) is None


def test_layers_without_any_gradient_have_no_parts():
    """As where every one of them is cut off."""
    group = _layer_batching.LayerGroup([0, 1], {}, frozenset())
    node = nn.Linear(2, 1)(torch.ones(B, 2)).grad_fn
    context = RuleContext(Use(node, dict, [0], is_last=True), {}, B)
    layers = _layer_batching.BatchedLayers(group, [], RULES["AddmmBackward0"], context)

    assert layers.parts([None, None]) == {}


def test_freezing_a_layer_makes_another_graph(walks, assert_exact, per_example):
    """Also where nothing else of the graph changes."""
    model, engine = deep(), Engine()
    x = torch.randn(B, T, 4)
    assert_exact(per_example(model(x)), trained(model), engine=engine)
    model[2].requires_grad_(requires_grad=False)
    assert_exact(per_example(model(x)), trained(model), engine=engine)
    assert_exact(per_example(model(x)), trained(model), engine=engine)
    model[2].requires_grad_(requires_grad=True)
    assert_exact(per_example(model(x)), trained(model), engine=engine)

    assert walks == [B, B]  # The first is still known.


def test_one_node_for_two_is_another_graph(walks, assert_exact):
    """Operations of the same kind, once on one result and once on two equal ones."""
    model, engine = nn.Linear(4, 2), Engine()
    x = torch.randn(B, 4)
    for _ in range(2):
        h = model(x)
        assert_exact((h.exp() * model(x).exp()).sum(1), trained(model), engine=engine)
        e = model(x).exp()
        assert_exact((e * e).sum(1), trained(model), engine=engine)

    assert walks == [B, B]


def test_another_output_of_a_node_is_another_graph(walks, assert_exact):
    """Losses that are the second of two outputs."""
    model, engine = nn.Linear(4, 2), Engine()
    for which in (0, 1):
        losses_B = model(torch.randn(B, 4)).sin().unbind(1)[which]
        assert_exact(losses_B, trained(model), engine=engine)

    assert walks == [B, B]


def test_another_input_that_needs_a_gradient_is_another_graph(walks, assert_exact):
    """A leaf that is nobody's parameter, where data was."""
    model, engine = nn.Linear(4, 2), Engine()
    x = torch.randn(B, 4)
    for some in (x, x.clone().requires_grad_(), x):
        assert_exact(model(some).sin().sum(1), trained(model), engine=engine)

    assert walks == [B, B]


def test_a_number_that_becomes_a_tensor_is_looked_at(walks):
    """A factor that all examples share may be computed from all of them."""
    model, engine = nn.Linear(4, 2), Engine()
    x = torch.randn(B, 4)
    for _ in range(2):
        engine.gradients((model(x) * 0.5).sin().sum(1), trained(model))
    with pytest.raises(SampleMixingError, match="scales the losses"):
        engine.gradients((model(x) * x.mean()[None]).sin().sum(1), trained(model))

    assert walks == [B, B]


def test_positions_that_are_looked_up_may_be_of_any_number(walks, assert_exact):
    """Embeddings of positions, which all examples share, at several lengths."""
    words, places, engine = nn.Embedding(9, 4), nn.Embedding(30, 4), Engine()
    parameters = [words.weight, places.weight]
    for length in (3, 3, 4, 11, 4):
        x = torch.randint(0, 9, (B, length))
        h = words(x) + places(torch.arange(length))
        assert_exact(h.sin().sum((1, 2)), parameters, engine=engine)

    assert walks == [B, B]  # Once more, with positions taken for shared.


def looked_up(table, length):
    return table[torch.arange(length)]


SHARED = {
    "an embedding": lambda table, T: F.embedding(torch.arange(T), table),
    "indices": looked_up,
    "index_select": lambda table, T: table.index_select(0, torch.arange(T)),
    "a slice and a constant": lambda table, T: table[:T] * torch.arange(T)[:, None],
    "a sum with a constant": lambda table, T: table[:T] + torch.arange(T)[:, None] / 9,
    "two of one table": lambda table, T: (
        looked_up(table, T) + looked_up(table, T + 1)[1:]
    ),
    "of distances": lambda table, T: looked_up(table, T + 3)[3:].cos(),
    "one of another shape": lambda table, T: (
        looked_up(table, T) + table[torch.tensor(3)]
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_all_units_share_may_be_longer_where_a_graph_is_verified(name):
    """A walk that is made again knows it by its place, not by its shape."""
    words, table = nn.Embedding(9, 4), nn.Parameter(torch.randn(30, 4))
    engine = VerifiedEngine(verification=Verification(every=1))
    for length in (3, 4, 3, 11):
        h = words(torch.randint(0, 9, (B, length))) + SHARED[name](table, length)
        losses = h.sin().sum((1, 2))
        (total,) = torch.autograd.grad(losses.sum(), table, retain_graph=True)
        sums = [torch.zeros_like(words.weight), torch.zeros_like(table)]
        engine.gradients(losses, [words.weight, table]).add_weighted_sum(
            torch.ones(1, B), [0, 0], sums
        )

        torch.testing.assert_close(sums[1], total)


def test_another_lookup_in_the_place_of_a_shared_one_is_noticed_by_a_walk():
    """A place that is taken for shared is that of the same operation on the same table."""
    one, other = nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(9, 4))
    engine = VerifiedEngine(verification=Verification(every=1))

    def losses():
        x = torch.randn(B, T, 4)
        return (x + looked_up(one, T) + looked_up(other, T)).sin().sum((1, 2))

    engine.gradients(losses(), [one, other])
    bound = Template.bound

    def exchanged(self, nodes, parameters):
        graph = bound(self, nodes, parameters)
        (first, sign), (second, other_sign) = graph.assumed
        return replace(graph, assumed=[(second, sign), (first, other_sign)])

    with (
        patch.object(Template, "bound", exchanged),
        pytest.raises(WrongGradientError, match="taken for one that was walked"),
    ):
        engine.gradients(losses(), [one, other])


def test_many_kinds_of_graph_are_all_right(assert_exact, per_example):
    """More than are remembered."""
    model, engine = deep(6), Engine()
    for depth in (1, 2, 3, 4, 5, 6, 1, 2):
        x = torch.randn(B, T, 4)
        assert_exact(per_example(model[:depth](x)), trained(model), engine=engine)


def test_layers_behind_a_checkpoint_are_served_alone(stacks, assert_exact, per_example):
    """What they keep is computed again during the backward pass, not before."""
    model, engine = deep(3), Engine()
    for _ in range(2):
        h = torch.randn(B, T, 4).requires_grad_()
        for layer in model:
            h = checkpoint(layer, h, use_reentrant=False)
        assert_exact(per_example(h), trained(model), engine=engine)

    assert stacks == [0, 0, 0]


ALIKE = {
    "outputs": (
        lambda m, x: m(x).unbind(1)[0].exp() * m(x).unbind(1)[1].sin(),
        lambda m, x: m(x).unbind(1)[1].exp() * m(x).unbind(1)[0].sin(),
    ),
    "more inputs": (
        lambda m, x: torch.stack([m(x), m(x)]).sin().sum((0, 2)),
        lambda m, x: torch.stack([m(x), m(x), m(x)]).sin().sum((0, 2)),
    ),
    "parameters": (
        lambda m, x: (x @ m.weight.T + m.bias * m.bias.exp()).sin().sum(1),
        lambda m, x: (x @ m.weight.T + m.weight[:, 0] * m.bias.exp()).sin().sum(1),
    ),
    "exchanged parameters": (
        lambda m, x: (x[:, :2] * m.bias.sin() * m.other.exp()).sum(1),
        lambda m, x: (x[:, :2] * m.other.sin() * m.bias.exp()).sum(1),
    ),
    "indices": (
        lambda m, x: (x[:, :1, None] * m.weight.view(2, 2, 2)[ONE]).sin().sum((1, 2)),
        lambda m, x: (
            (x[:, :1, None] * m.weight.view(2, 1, 2, 2)[ONE, ONE - 1]).sin().sum((1, 2))
        ),
    ),
}
ONE = torch.tensor([1])


@pytest.mark.parametrize("kind", ALIKE)
def test_what_looks_alike_is_not(kind, walks, assert_exact):
    """Graphs that differ in one thing are walked for themselves."""
    model, engine = nn.Linear(4, 2), Engine()
    model.other = nn.Parameter(torch.randn(2))
    for losses in 2 * ALIKE[kind]:
        assert_exact(losses(model, torch.randn(B, 4)), trained(model), engine=engine)

    assert 2 <= len(walks) <= 3  # One more where rows are first taken for data.


@pytest.mark.parametrize("name", sorted(FOLLOWING))
def test_shapes_that_are_not_looked_at_follow_from_others(name):
    """An operation of one tensor gives a tensor of the same shape."""
    function = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Backward0")).lower()
    run = getattr(torch, function, None) or getattr(nn.functional, function)
    x = torch.rand(2, 3, requires_grad=True)
    y = run(x, dim=1) if "softmax" in function else run(x)

    assert type(y.grad_fn).__name__ == name
    assert y.shape == x.shape


@pytest.mark.parametrize("name", sorted(BROADCASTING))
def test_shapes_of_two_tensors_say_that_of_the_result(name):
    """In place too, where the first of them has the result's shape."""
    function = getattr(torch.Tensor, name.removesuffix("Backward0").lower())
    x, y = torch.rand(4, 1, 3, requires_grad=True), torch.rand(2, 1, requires_grad=True)
    in_place = getattr(torch.Tensor, f"{function.__name__}_")

    for result in (function(x, y), in_place(function(x, y), y)):
        assert type(result.grad_fn).__name__ == name
        assert result.shape == torch.broadcast_shapes(x.shape, y.shape)


def test_the_shape_of_what_has_no_graph_is_looked_at(assert_exact):
    """A sum with data may be larger than the other side of it."""
    w, engine = nn.Parameter(torch.randn(3)), Engine()
    for rows in (1, 1, 2):
        sums = torch.randn(B, 1, 3) * w + torch.randn(B, rows, 3)
        assert_exact(sums.sin().sum((1, 2)), [w], engine=engine)

    assert len(engine._graphs._known[0].by_sizes) == 2


OF_SOME = {
    "AddmmBackward0": (torch.addmm, (2,), (4, 3), (3, 2)),
    "MmBackward0": (torch.mm, (4, 3), (3, 2)),
    "NativeLayerNormBackward0": (
        lambda x, w: F.layer_norm(x, w.shape, w, w.detach()),
        (4, 5, 3),
        (5, 3),
    ),
}


@pytest.mark.parametrize("name", sorted(FOLLOWING_SOME))
def test_shapes_of_some_inputs_say_those_of_all_results(name):
    """Whatever other inputs there are, and whatever they hold."""
    function, *shapes = OF_SOME[name]
    found = set()
    for is_given in (True, False):
        some = [
            torch.rand(shape, requires_grad=is_given or at in FOLLOWING_SOME[name])
            for at, shape in enumerate(shapes)
        ]
        node = function(*some).grad_fn
        assert type(node).__name__ == name
        found.add(tuple(output_shapes(node)))

    assert found == {((4, 5, 3) if "Norm" in name else (4, 2),)}


@pytest.mark.parametrize("name", sorted(FOLLOWING_SOME))
def test_the_shape_of_an_operation_with_data_is_looked_at(name):
    """A product with data, or a norm without a weight, may have any shape."""
    function, *shapes = OF_SOME[name]
    for without in FOLLOWING_SOME[name]:
        some = [
            torch.rand(shape, requires_grad=at != without)
            for at, shape in enumerate(shapes)
        ]
        node = function(*some).grad_fn
        parameters = [one for one in some if one.requires_grad]

        sizes = _looked_at(node, parameters)
        assert {*output_shapes(node)} <= sizes
        some[without].requires_grad_()
        assert not {*output_shapes(function(*some).grad_fn)} & _looked_at(
            function(*some).grad_fn, some
        )


def _looked_at(node, parameters):
    """The shapes that a template of a graph without uses reads."""
    graph = Graph([], [], [], [], [], (), frozenset())
    template = Template(graph, (node, 0), parameters, PublicTensors(()))
    return {*template.sizes(template.matched((node, 0), parameters), [])}


# For each operation two calls, of which the second gives tensors of another shape.
OF_ARGUMENTS = {
    "PermuteBackward0": [((0, 1, 2),), ((0, 2, 1),)],
    "SelectBackward0": [(1, 0), (2, 0)],
    "SliceBackward0": [(1, 0, 2), (1, 0, 3)],
    "SplitBackward0": [(2, 1), (3, 1)],
    "TransposeBackward0": [(0, 0), (1, 2)],
    "UnsafeSplitBackward0": [(2, 1), (3, 1)],
}


@pytest.mark.parametrize("name", sorted(FOLLOWING_ARGUMENTS))
def test_shapes_follow_from_arguments_that_are_compared(name):
    """What gives another shape has other arguments, or another input."""
    function = getattr(torch, name.removesuffix("Backward0").lower(), None)
    function = {
        "SliceBackward0": torch.ops.aten.slice.Tensor,
        "UnsafeSplitBackward0": torch.unsafe_split,
    }.get(name, function)
    found = []
    for arguments in OF_ARGUMENTS[name]:
        x = torch.rand(5, 4, 3, requires_grad=True) * 1
        result = function(x, *arguments)
        node = (result if isinstance(result, torch.Tensor) else result[0]).grad_fn
        assert type(node).__name__ == name
        found.append((arguments_reader(node)(node), output_shapes(node)))

    (one, shapes), (other, other_shapes) = found
    assert one != other
    assert shapes != other_shapes


@pytest.mark.parametrize("name", sorted(FOLLOWING_ARGUMENTS))
def test_shapes_are_looked_at_where_no_argument_is_compared(name):
    """Arguments are compared of nodes behind which owners are followed."""
    node = next(
        result.grad_fn
        for x in [torch.rand(5, 4, 3, requires_grad=True) * 1]
        for result in (
            x.permute(0, 2, 1),
            x.select(1, 0),
            x[1:3],
            x.split(2, 1)[0],
            x.transpose(1, 2),
            x.unsafe_chunk(2, 1)[0],
        )
        if type(result.grad_fn).__name__ == name
    )
    for followed in ([], [node]):
        graph = Graph([], [], followed, [], [], (), frozenset())
        template = Template(graph, (node, 0), [], PublicTensors(()))
        sizes = template.sizes(template.matched((node, 0), []), [])

        assert ({*output_shapes(node)} <= {*sizes}) == (not followed)


def test_pieces_of_another_size_are_another_graph(assert_exact):
    """A part of a batch that a slice leaves out is as long as its input says."""
    w, engine = nn.Parameter(torch.randn(4)), Engine()
    for length, end in ((6, 3), (6, 3), (6, 4), (5, 4)):
        h = torch.randn(B, length, 4) * w
        assert_exact(h[:, :end].sin().sum((1, 2)), [w], engine=engine)

    assert len(engine._graphs._known[0].by_sizes) == 3
