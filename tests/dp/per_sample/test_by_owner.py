"""Units whose rows lie along no axis have the gradients of a loop over units.

In most tests owners are measured, by one backward pass for each unit, so that they test
what is done with owners, not how the engine finds them.

Shapes: ``U`` units, ``R`` rows, ``P`` elements of a parameter.
"""

import itertools
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.per_sample import Engine, PerSampleGradients
from dp.per_sample._graph.public import PublicTensors
from dp.per_sample._graph.walk import find_uses
from dp.per_sample._isolation.owners import MIXED, NOBODY, NOBODYS, Owners, meet
from dp.per_sample._isolation.verification import Verification
from dp.per_sample._parts.grouped import GroupedGrads
from dp.per_sample._parts.reparametrized import parts_of_parameters
from dp.per_sample._parts.row_groups import RowGroups
from dp.per_sample._rules import by_owner
from dp.per_sample._rules.by_owner import fitting_rule, parts_of_use
from dp.per_sample._rules.context import RuleContext

from .ragged_models import MODELS, D, U, by_unit


pytestmark = pytest.mark.usefixtures("float64")


def measured(losses, units, edges, num_units):
    """Return the owners of tensors, as far as a backward pass of each unit shows."""
    owners = [
        torch.full([*edge.node._input_metadata[edge.output_nr].shape], NOBODY)
        for edge in edges
    ]
    for unit in range(num_units):
        seeds = (units == unit).to(losses.dtype)
        grads = torch.autograd.grad(
            losses, edges, seeds, retain_graph=True, allow_unused=True
        )
        for owner, grad in zip(owners, grads, strict=True):
            if grad is not None:
                owner[grad != 0] = unit
    return [Owners.irregular(narrowed(owner)) for owner in owners]


def narrowed(owner):
    """Return owners with length 1 along the axes on which they do not differ."""
    for axis in reversed(range(owner.dim())):
        met = meet(owner, axis)
        owner = owner if bool((met == MIXED).any()) else met
    return owner


def ragged_gradients(losses, units, parameters, num_units, served=None):
    """Return the gradients of units, and note which operations rules served."""
    root = losses.grad_fn, losses.output_nr
    graph = find_uses(root, parameters, public=PublicTensors())
    places = [(use, output) for use in graph.uses for output in use.outputs]
    edges = [GradientEdge(use.node, output) for use, output in places]
    owners = measured(losses, units, edges, num_units)
    grads = torch.autograd.grad(
        losses, edges, torch.ones_like(losses), retain_graph=True, allow_unused=True
    )
    index_of = {id(p): i for i, p in enumerate(parameters)}
    parts = {}
    with torch.no_grad():
        for use in graph.uses:
            mine = [i for i, (other, _) in enumerate(places) if other is use]
            at = {places[i][1]: owners[i] for i in mine}
            by_output = {places[i][1]: grads[i] for i in mine}
            context = RuleContext(use, {}, num_units, owners=at)
            rule = fitting_rule(context)
            if served is not None:
                served.append((use.operation, rule is not None))
            ordered = [by_output.get(i) for i in range(1 + max(by_output))]
            for position, part in parts_of_use(rule, context, ordered).items():
                operand = context.operands[position]
                for parameter, whole in parts_of_parameters(part, operand, num_units):
                    parts.setdefault(index_of[id(parameter)], []).append(whole)
    return PerSampleGradients(parts, parameters, torch.zeros(num_units))


def by_loop_over_units(losses, units, parameters, numbers):
    """Return [U, P] for each parameter, by one backward pass for each unit."""
    rows = []
    for unit in numbers:
        seeds = (units == unit).to(losses.dtype)
        rows.append(
            torch.autograd.grad(
                losses,
                parameters,
                seeds,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def assert_as_by_loop(
    losses, units, parameters, *, num_units=U, served=None, rtol=1e-10
):
    grads_UP = by_loop_over_units(losses, units, parameters, range(num_units))
    gradients = ragged_gradients(losses, units, parameters, num_units, served)
    factors_GU = torch.rand(2, num_units)
    factors_GU[:, 1:2] = 0
    group_of = [i % 2 for i in range(len(parameters))]
    sums = [torch.full_like(p, torch.nan) for p in parameters]
    gradients.add_weighted_sum(factors_GU, group_of, sums, beta=0)

    norms_GU = gradients.squared_norms(group_of)
    for group in range(max(group_of) + 1):
        mine = [g for g, i in zip(grads_UP, group_of, strict=True) if i == group]
        true_U = sum(g.reshape(num_units, -1).square().sum(1) for g in mine)
        torch.testing.assert_close(norms_GU[group], true_U, rtol=rtol, atol=rtol / 100)
    for total, grad_UP, group in zip(sums, grads_UP, group_of, strict=True):
        true = torch.einsum("u...,u->...", grad_UP, factors_GU[group])
        torch.testing.assert_close(total, true, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_models_whose_units_lie_along_no_axis_are_as_by_a_loop(name, seed):
    """Norms by group and weighted sums, with one unit left out."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    losses, units = model()

    assert_as_by_loop(losses, units, [*model.parameters()])


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_serves_units_along_no_axis(name):
    """Owners are found from the graph; batches differ in size and in their rows."""
    model, engine = MODELS[name](), Engine()
    parameters = [*model.parameters()]
    group_of = [0] * len(parameters)
    for seed in range(3):
        torch.manual_seed(seed)
        losses, units = model()
        present = units.unique().tolist()
        true_UP = by_loop_over_units(losses, units, parameters, present)
        gradients = engine.gradients(losses, parameters, units=units)
        factors_GU = torch.rand(1, len(present))
        sums = [torch.full_like(p, torch.nan) for p in parameters]
        gradients.add_weighted_sum(factors_GU, group_of, sums, beta=0)

        norms_U = sum(g.flatten(1).square().sum(1) for g in true_UP)
        found_U = gradients.squared_norms(group_of)[0]
        torch.testing.assert_close(found_U, norms_U, rtol=1e-10, atol=1e-12)
        for total, grad_UP in zip(sums, true_UP, strict=True):
            true = torch.einsum("u...,u->...", grad_UP, factors_GU[0])
            torch.testing.assert_close(total, true, rtol=1e-10, atol=1e-10)


def test_sequences_of_users_are_served_where_onednn_runs_a_layer():
    """One operation has all gates of all steps; its sequences have any owners."""
    torch.set_default_dtype(torch.float32)  # In double precision it runs step by step.
    model, served = MODELS["sequences"](), []
    losses, units = model()

    parameters = [*model.parameters()]
    assert_as_by_loop(losses, units, parameters, served=served, rtol=1e-4)

    assert served == [("MkldnnRnnLayerBackward0", True)]


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"sequences"}))
def test_no_model_needs_a_backward_an_operation(name):
    """All of them are served by the rules that ordinary batches have."""
    model, served = MODELS[name](), []
    losses, units = model()
    ragged_gradients(losses, units, [*model.parameters()], U, served)

    assert served
    assert all(is_by_rule for _, is_by_rule in served), served


def test_outputs_with_other_rows_are_served_by_their_own_backward():
    """Of some sequences the outputs matter, of others the last state."""
    torch.set_default_dtype(torch.float32)
    layer, served = torch.nn.LSTM(4, 3, batch_first=True), []
    out, (h, _) = layer(torch.randn(6, 4, 4))
    losses = torch.cat([out[:3].square().sum((1, 2)), h[0, 3:].square().sum(1)])
    units = torch.tensor([0, 1, 1, 2, 3, 4])

    parameters = [*layer.parameters()]
    assert_as_by_loop(losses, units, parameters, served=served, rtol=1e-4)

    assert served == [("MkldnnRnnLayerBackward0", False)]


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_products_are_those_of_routed_rows(transposed):
    """One operation for all experts, of which one has no row, and rows of none."""
    torch.set_default_dtype(torch.float32)  # It takes no other on the host.
    stack = torch.nn.Parameter(torch.randn(4, 8, 8) / 3)
    x, owner_R = torch.randn(12, 8), torch.randint(U, (12,))
    offsets = torch.tensor([5, 5, 8, 11], dtype=torch.int32)
    matrices = stack.mT if transposed else stack
    rows = F.grouped_mm(x, matrices, offs=offsets)[:11]
    losses, served = by_unit(rows, owner_R[:11]).sin().sum(1), []

    gradients = ragged_gradients(losses, torch.arange(U), [stack], U, served)
    # torch's own backward of the operation refuses gradients of some layouts.
    bounds = itertools.pairwise([0, *offsets.tolist()])
    rows = torch.cat([x[a:b] @ matrices[e] for e, (a, b) in enumerate(bounds)])
    true_UP = torch.stack(
        [
            torch.autograd.grad(loss, stack, retain_graph=True)[0]
            for loss in by_unit(rows, owner_R[:11]).sin().sum(1)
        ]
    )
    factors_GU = torch.rand(1, U)
    factors_GU[0, 1] = 0
    total = torch.full_like(stack, torch.nan)
    gradients.add_weighted_sum(factors_GU, [0], [total], beta=0)

    assert served == [("GroupedMmBackward0", True)]
    norms_U = true_UP.flatten(1).square().sum(1)
    torch.testing.assert_close(gradients.squared_norms([0])[0], norms_U)
    true = torch.einsum("u...,u->...", true_UP, factors_GU[0])
    torch.testing.assert_close(total, true)
    (part,) = gradients._parts[0]
    torch.testing.assert_close(part.gradients(slice(1, 4)), true_UP[1:4])


def test_a_grouped_product_is_added_to_what_is_there():
    """Every row is a unit's and an expert's."""
    left, right = torch.randn(6, 3), torch.randn(6, 2)
    part = GroupedGrads(
        left=left,
        right=right,
        experts=torch.tensor([0, 0, 1, 1, 1, 1]),
        units=torch.tensor([0, 1, 0, 1, 0, 1]),
        num_experts=2,
        num_units=2,
    )
    factors_U = torch.tensor([0.5, 2.0])
    total = torch.ones(2, 3, 2)
    part.add_weighted_sum(factors_U, total, beta=1)

    true = torch.einsum("ueio,u->eio", part.gradients(slice(None)), factors_U)
    torch.testing.assert_close(total, 1 + true)
    torch.testing.assert_close(
        part.squared_norms(), part.gradients(slice(None)).flatten(1).square().sum(1)
    )


def test_grouped_products_of_a_parameter_are_served_without_the_rule():
    """The rule is for matrices; here the rows are a parameter."""
    torch.set_default_dtype(torch.float32)
    rows = torch.nn.Parameter(torch.randn(5, 8))
    stack = torch.randn(2, 8, 8)
    output = F.grouped_mm(rows * 1, stack, offs=torch.tensor([2, 5], dtype=torch.int32))
    losses_R = output.square().sum(1)
    graph = find_uses((losses_R.grad_fn, 0), [rows], public=PublicTensors())
    (use,) = [u for u in graph.uses if u.operation == "GroupedMmBackward0"]
    owners = {0: Owners.irregular(torch.tensor([[0], [1], [0], [1], [1]]))}

    assert fitting_rule(RuleContext(use, {}, 2, owners=owners)) is None


def test_a_use_that_nothing_flows_to_has_no_parts():
    """As of an expert that only others' tokens reach."""
    layer = torch.nn.Linear(3, 2)
    output = layer(torch.randn(4, 3))
    parameters = [*layer.parameters()]
    graph = find_uses((output.grad_fn, 0), parameters, public=PublicTensors())
    context = RuleContext(graph.uses[0], {}, U, owners={0: NOBODYS})

    rule = fitting_rule(context)

    assert rule is not None
    assert parts_of_use(rule, context, [torch.zeros(4, 2)]) == {}


def test_an_output_that_nothing_flows_to_is_left_out():
    """Of a layer with several outputs, what is nobody's decides nothing."""
    torch.set_default_dtype(torch.float32)
    layer = torch.nn.LSTM(4, 3)
    out, (h, _) = layer(torch.randn(2, 5, 4))
    parameters = [*layer.parameters()]
    losses = out.square().sum((0, 2)) + h[0].sum(1)
    graph = find_uses((losses.grad_fn, 0), parameters, public=PublicTensors())
    (use,) = graph.uses
    unit_N = torch.tensor([0, 1, 0, 2, 2])
    owners = dict.fromkeys(use.outputs, NOBODYS) | {
        use.outputs[0]: Owners.irregular(unit_N.view(1, 5, 1))
    }
    context = RuleContext(use, {}, 3, owners=owners)
    rule = fitting_rule(context)
    grads = [torch.randn(2, 5, 3), torch.zeros(1, 5, 3)]
    served = parts_of_use(rule, context, grads)

    alone = parts_of_use(
        rule,
        RuleContext(use, {}, 3, owners={use.outputs[0]: owners[use.outputs[0]]}),
        grads[:1],
    )

    assert rule is not None
    for position, part in served.items():
        norms = part.squared_norms()
        torch.testing.assert_close(norms, alone[position].squared_norms())


def test_a_loop_over_a_large_layer_is_one_product():
    """Each pass has several rows of one unit; none holds a gradient of its own."""
    layer = torch.nn.Linear(90, 80, bias=False)
    units = torch.tensor([2, 0, 1, 0])
    passes = [layer(torch.randn(n, 90)).square().sum() for n in (1, 3, 2, 4)]

    assert_as_by_loop(torch.stack(passes), units, [layer.weight], num_units=3)


def test_a_unit_meets_a_use_along_an_axis_and_one_along_none():
    """The norm is that of the sum over both."""
    layer = torch.nn.Linear(90, 80)
    owner_R = torch.tensor([0, 3, 3, 1, 2, 0, 0])
    regular = layer(torch.randn(U, 2, 90)).square().sum((1, 2))
    losses = regular + by_unit(layer(torch.randn(7, 90)), owner_R).sin().sum(1)

    assert_as_by_loop(losses, torch.arange(U), [*layer.parameters()])


def test_infinity_in_a_row_of_nobody_stays_there():
    """Its gradient is zero, and zero times infinity is not."""
    layer, x = torch.nn.Linear(3, 2), torch.randn(5, 3)
    x[2] = torch.inf
    losses = layer(x)[[0, 1, 3, 4]].square().sum(1)

    assert_as_by_loop(losses, torch.tensor([0, 1, 0, 1]), [layer.bias], num_units=2)
    gradients = ragged_gradients(
        losses, torch.tensor([0, 1, 0, 1]), [*layer.parameters()], 2
    )

    assert gradients.squared_norms([0, 0]).isfinite().all()


# One use each: its output for some number of rows, and its parameters.
def _bilinear(num_rows, w):
    x = torch.randn(2, num_rows, 3)
    return torch.nn.functional.bilinear(x[0], x[1], w)


def _rows_of_table(num_rows, w):
    return w[torch.randint(len(w), (num_rows,))]


USES = {
    "linear": (lambda n, w, b: torch.addmm(b, torch.randn(n, 3), w), [(3, 2), (2,)]),
    "large": (lambda n, w: torch.randn(n, 90) @ w, [(90, 50)]),
    "transposed": (lambda n, w: w @ torch.randn(3, n), [(2, 3)]),
    "wide rows": (lambda n, w: torch.randn(n, 5, 3) + w, [(5, 1)]),
    "a slice each": (lambda n, w: torch.randn(n, 3) * w[:n], [(24, 3)]),
    "vector": (lambda n, w: torch.randn(n, 3) @ w, [(3,)]),
    "norm": (
        lambda n, w, b: torch.nn.functional.layer_norm(torch.randn(n, 3), [3], w, b),
        [(3,), (3,)],
    ),
    "lookup": (_rows_of_table, [(5, 3)]),
    "images": (
        lambda n, w, b: torch.nn.functional.conv1d(torch.randn(n, 2, 5), w, b),
        [(3, 2, 2), (3,)],
    ),
    "products": (lambda n, w: torch.bmm(torch.randn(2, n, 3), w), [(2, 3, 2)]),
    "products of rows": (
        lambda n, w: torch.bmm(torch.randn(n, 2, 3), w[:n]),
        [(24, 3, 2)],
    ),
    "no rule": (_bilinear, [(2, 3, 3)]),
}
AXES = {"transposed": 1, "products": 1}


def assert_use_is_as_by_loop(output, parameters, owner, num_units):
    """Compare every unit's gradient of one use with its backward on the unit's rows."""
    graph = find_uses((output.grad_fn, 0), parameters, public=PublicTensors())
    (use,) = graph.uses
    grad = torch.randn_like(output).masked_fill(owner < 0, 0)
    context = RuleContext(use, {}, num_units, owners={0: Owners.irregular(owner)})
    rows = [
        torch.autograd.grad(
            output,
            parameters,
            torch.where(owner == unit, grad, 0),
            retain_graph=True,
        )
        for unit in range(num_units)
    ]
    index_of = {id(p): i for i, p in enumerate(parameters)}
    parts = {}
    with torch.no_grad():
        found = parts_of_use(fitting_rule(context), context, [grad])
        for position, part in found.items():
            pairs = parts_of_parameters(part, use.operands[position], num_units)
            for parameter, whole in pairs:
                parts.setdefault(index_of[id(parameter)], []).append(whole)
    gradients = PerSampleGradients(parts, parameters, torch.zeros(num_units))
    factors_GU = torch.rand(1, num_units)
    factors_GU[:, :1] = 0
    sums = [torch.full_like(p, torch.nan) for p in parameters]
    group_of = [0] * len(parameters)
    gradients.add_weighted_sum(factors_GU, group_of, sums, beta=0)

    true_UP = [torch.stack(column) for column in zip(*rows, strict=True)]
    norms_U = sum(g.reshape(num_units, -1).square().sum(1) for g in true_UP)
    torch.testing.assert_close(
        gradients.squared_norms(group_of)[0], norms_U, rtol=1e-10, atol=1e-12
    )
    for total, grad_UP in zip(sums, true_UP, strict=True):
        true = torch.einsum("u...,u->...", grad_UP, factors_GU[0])
        torch.testing.assert_close(total, true, rtol=1e-10, atol=1e-12)
    for index, uses in parts.items():
        for part in uses[: len(uses) == 1]:
            grads = part.gradients(slice(1, num_units))
            torch.testing.assert_close(
                grads.reshape(-1, *parameters[index].shape),
                true_UP[index][1:],
                rtol=1e-10,
                atol=1e-12,
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
@given(
    owner_R=st.lists(st.integers(-1, 4), min_size=1, max_size=24),
    num_units=st.integers(5, 7),
)
def test_any_owners_of_rows_are_as_by_a_loop(name, owner_R, num_units):
    """Rows of nobody, units without rows, one row in all, any order."""
    make, shapes = USES[name]
    parameters = [torch.randn(shape, requires_grad=True) for shape in shapes]
    output = make(len(owner_R), *parameters)
    axis = AXES.get(name, 0)
    owner = torch.tensor(owner_R)
    owner = owner.view([-1 if k == axis else 1 for k in range(output.dim())])

    assert_use_is_as_by_loop(output, parameters, owner, num_units)


@pytest.mark.slow
@given(
    owner_BT=st.lists(st.integers(-1, 4), min_size=12, max_size=12),
    name=st.sampled_from(["norm", "table", "+", "/", "where", "product"]),
)
def test_any_owners_along_two_axes_are_as_by_a_loop(owner_BT, name):
    """As of documents that are packed into the rows of a batch."""
    w = torch.randn(3, requires_grad=True)
    table = torch.randn(5, 3, requires_grad=True)
    x = torch.randn(3, 4, 3)
    output, parameter = {
        "norm": lambda: (torch.nn.functional.rms_norm(x, [3], w), w),
        "table": lambda: (table[torch.randint(5, (3, 4))], table),
        "+": lambda: (x + w, w),
        "/": lambda: (x / w, w),
        "where": lambda: (torch.where(x > 0, w, x), w),
        "product": lambda: (x * table[:4], table),
    }[name]()
    owner = torch.tensor(owner_BT).view(3, 4, 1)

    assert_use_is_as_by_loop(output, [parameter], owner, 5)


def test_rows_are_sorted_once_for_units_as_before():
    """By their units; each use is looked at once a batch, not once more to serve it."""
    model = nn.Sequential(nn.Linear(D, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    units = torch.tensor([2, 0, 2, 1, 0, 2])
    engine = Engine(verification=Verification(first=0, every=1 << 60))
    counts = []

    with (
        patch.object(by_owner, "RowGroups", wraps=RowGroups) as groups,
        patch.object(by_owner, "_found_by_row", wraps=by_owner._found_by_row) as uses,
    ):
        for _ in range(4):
            losses = model(torch.randn(6, D)).square().sum(1)
            engine.gradients(losses, [*model.parameters()], units=units)
            counts.append((groups.call_count, uses.call_count))

    # The graph is walked in the first batch, and followed once more in the second.
    assert counts == [(1, 3), (2, 6), (2, 9), (2, 12)]
