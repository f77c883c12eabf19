"""Units whose rows lie along no axis have the gradients of a loop over units.

Owners are measured here, by one backward pass a unit, so that what is tested is what is
done with them.

Shapes: ``U`` units, ``R`` rows, ``P`` elements of a parameter.
"""

import pytest
import torch
from hypothesis import given, strategies as st
from torch.autograd.graph import GradientEdge

from dp.per_sample import PerSampleGradients
from dp.per_sample._graph.walk import find_uses
from dp.per_sample._isolation.owners import MIXED, NOBODY, Owners, meet
from dp.per_sample._parts.reparametrized import parts_of_parameters
from dp.per_sample._rules.by_owner import fitting_rule, parts_of_use
from dp.per_sample._rules.context import RuleContext

from .ragged_models import MODELS, U


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
    graph = find_uses(root, parameters, num_samples=1, constants=frozenset())
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


def assert_as_by_loop(losses, units, parameters, *, num_units=U, served=None, rtol=1e-10):
    rows = []
    for unit in range(num_units):
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
    grads_UP = [torch.stack(column) for column in zip(*rows, strict=True)]
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
