"""Serve a linear layer that is used at many steps as one use of more positions.

A recurrence meets its hidden state with the same weight at every step. Each of these
uses is small, and all of them are one matrix product: what they kept and the gradients
of their outputs are put behind one another, as of a layer over T positions. Where
sequences are packed, a step has rows of those that are as long, and rows are grouped by
their units as those of any other use (:mod:`dp.per_sample._parts.ragged`).

Shapes: ``B`` examples, ``T`` steps, ``R`` rows of all steps, ``I`` inputs, ``O``
outputs, ``n`` rows of a step.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample._graph.uses import Graph, Use
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.owners import Owners
from dp.per_sample._parts.part import GradPart, MaterializedGrads
from dp.per_sample._parts.ragged import by_unit
from dp.per_sample._parts.row_groups import RowGroups
from dp.per_sample._row_layers import RowLayer, row_layer
from dp.per_sample._rules.context import RuleContext


__all__ = ("RepeatedLayer", "find_repeated_layers", "parts_of_steps")

_MATRIX: Final = 2
_Step = tuple[RowLayer, Tensor | None]  # A use, and the units of its rows.


@final
@dataclass(frozen=True, slots=True)
class RepeatedLayer:
    """The uses of a linear layer of a known graph, one for each step.

    Attributes:
        steps: The uses.
        groups: The units of all rows, step by step; None if each step has one row of
            each example, in their order.
    """

    steps: Sequence[RowLayer]
    groups: RowGroups | None


def find_repeated_layers(
    graph: Graph,
    layouts: Sequence[Mapping[int, Layout] | None],
    owners: Sequence[Mapping[int, Owners]],
    parameters: Sequence[Tensor],
    *,
    num_samples: int,
) -> list[RepeatedLayer]:
    """Return the layers whose uses may be served as one, in graphs like this one.

    Args:
        graph: The graph.
        layouts: By use and output, how the examples lie in it.
        owners: By use and output, whose its rows are.
        parameters: Those it was walked for.
        num_samples: The number of examples.
    """
    times_used = Counter(id(p) for use in graph.uses for p in use.parameters)
    times = [times_used[id(p)] for p in parameters]
    fewest = _tuning.FEWEST_IDENTICAL_LAYERS
    index_of = {id(p): i for i, p in enumerate(parameters) if times[i] >= fewest}
    # Example: a GRU over 40 steps has 40 uses of w_hh and b_hh, each with rows of its
    # own, and one of w_ih and b_ih over all steps, which is served like any other.
    steps_of: dict[tuple[int, int | None], list[_Step]] = {}
    for position, use in enumerate(graph.uses if index_of else ()):
        found = _found(use, layouts[position], owners[position], num_samples)
        step = found and row_layer(position, found[0], index_of)
        if found and step:
            steps_of.setdefault((step.weight, step.bias), []).append((step, found[1]))
    # A parameter that is used elsewhere too has a gradient that is not of these alone.
    return [
        RepeatedLayer([step for step, _ in steps], _groups(steps, num_samples))
        for indices, steps in steps_of.items()
        if all(times[i] == len(steps) for i in indices if i is not None)
    ]


def _found(
    use: Use,
    layout: Mapping[int, Layout] | None,
    owners: Mapping[int, Owners],
    num_samples: int,
) -> tuple[RuleContext, Tensor | None] | None:
    """Return a use with each row as an example, and the units of its rows.

    The units are None if the rows are those of all examples in their order. None of it
    if units do not lie along the rows of the first output alone.
    """
    if [*owners] != [0] or len(use.shape) != _MATRIX:
        return None
    if layout is not None:
        return RuleContext(use, layout, num_samples), None
    unit_n1 = owners[0].as_rows(_MATRIX, num_samples, use.parameters[0].device)
    if unit_n1.shape != (use.shape[0], 1):
        return None
    rows = RuleContext(use, {0: Layout(-_MATRIX)}, use.shape[0])
    return rows, unit_n1.flatten()


def _groups(steps: Sequence[_Step], num_samples: int) -> RowGroups | None:
    """Return the units of the rows of all steps, one step behind the other."""
    ragged = [unit_n for _, unit_n in steps if unit_n is not None]
    if not ragged:
        return None
    unit_B = torch.arange(num_samples, device=ragged[0].device)
    units = [unit_B if unit_n is None else unit_n for _, unit_n in steps]
    return RowGroups(torch.cat(units), num_samples)


def parts_of_steps(
    layer: RepeatedLayer,
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    context: RuleContext,
) -> dict[int, GradPart]:
    """Return the gradients of a layer's parameters, by their indices.

    Args:
        layer: The layer.
        inputs: [n, I] of each step.
        grads: [n, O] of each step: the gradients of its outputs; None where no loss
            depends on it.
        context: Any of the uses, for its memory.
    """
    if all(grad is None for grad in grads):
        return {}
    one = layer.steps[0]
    outputs = [
        data.new_zeros(len(data), one.width) if grad is None else grad
        for data, grad in zip(inputs, grads, strict=True)
    ]
    data_RI, grads_RO = torch.cat([*inputs]), torch.cat(outputs)
    if layer.groups is None:
        # Step by step in memory, which is one copy; seen as [B, T, I] and [B, T, O].
        data, grad = (
            rows.unflatten(0, (len(inputs), -1)).transpose(0, 1)
            for rows in (data_RI, grads_RO)
        )
    else:
        data, grad = data_RI[:, None], grads_RO[:, None]
    parts = {one.weight: context.product(grad, data)}
    if one.bias is not None:
        parts[one.bias] = MaterializedGrads(grad.sum(1))
    if layer.groups is None:
        return parts
    return {index: by_unit(part, layer.groups) for index, part in parts.items()}
