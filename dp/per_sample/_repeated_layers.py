"""Serve a linear layer that is used at many steps as one use of more positions.

A recurrence meets its hidden state with the same weight at every step. Each of these
uses is small, and all of them are one matrix product: what they kept and the gradients
of their outputs are put behind one another, as of a layer over T positions.

Shapes: ``B`` examples, ``T`` steps, ``I`` inputs, ``O`` outputs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample._graph.uses import Graph
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._parts.part import GradPart, MaterializedGrads
from dp.per_sample._row_layers import RowLayer, RowLayers, row_layer
from dp.per_sample._rules.context import RuleContext


__all__ = ("find_repeated_layers", "parts_of_steps")


def find_repeated_layers(
    graph: Graph,
    layouts: Sequence[Mapping[int, Layout] | None],
    parameters: Sequence[Tensor],
    *,
    num_samples: int,
) -> list[list[RowLayer]]:
    """Return the uses of each layer that may be served as one, in graphs like this one.

    Args:
        graph: The graph.
        layouts: By use and output, how the examples lie in it.
        parameters: Those it was walked for.
        num_samples: The number of examples.
    """
    times_used = Counter(id(p) for use in graph.uses for p in use.parameters)
    times = [times_used[id(p)] for p in parameters]
    fewest = _tuning.FEWEST_IDENTICAL_LAYERS
    index_of = {id(p): i for i, p in enumerate(parameters) if times[i] >= fewest}
    # Example: a GRU over 40 steps has 40 uses of w_hh and b_hh, each with rows of its
    # own, and one of w_ih and b_ih over all steps, which is served like any other.
    steps_of: dict[tuple[int, int | None], list[RowLayer]] = {}
    for position, (use, layout) in enumerate(zip(graph.uses, layouts, strict=True)):
        if layout is not None and [*layout] == [0]:
            context = RuleContext(use, layout, num_samples)
            step = row_layer(position, context, index_of)
            if step is not None:
                steps_of.setdefault((step.weight, step.bias), []).append(step)
    # A parameter that is used elsewhere too has a gradient that is not of these alone.
    return [
        steps
        for indices, steps in steps_of.items()
        if all(times[i] == len(steps) for i in indices if i is not None)
    ]


def parts_of_steps(
    steps: RowLayers, grads: Sequence[Tensor | None], context: RuleContext
) -> dict[int, GradPart]:
    """Return the gradients of a layer's parameters, by their indices.

    Args:
        steps: The uses of the layer.
        grads: [B, O] of each: the gradients of its outputs; None where no loss depends
            on it.
        context: Any of the uses, for its memory.
    """
    reached = [
        (data, grad)
        for data, grad in zip(steps.inputs, grads, strict=True)
        if grad is not None
    ]
    if not reached:
        return {}
    layer = steps.layers[0]
    # Step by step in memory, which is one copy; seen as [B, T, I] and [B, T, O].
    inputs_TBI, grads_TBO = (torch.stack(some) for some in zip(*reached, strict=True))
    parts: dict[int, GradPart] = {
        layer.weight: context.product(
            grads_TBO.transpose(0, 1), inputs_TBI.transpose(0, 1)
        )
    }
    if layer.bias is not None:
        parts[layer.bias] = MaterializedGrads(grads_TBO.sum(0))
    return parts
