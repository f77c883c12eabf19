"""Batch many small identical layers into one computation.

A deep model of small layers takes the same few small operations for each of them, and
most of the time goes into the calls. Identical layers are concatenated, as if they were
more examples of one layer: 30 layers of 32 examples are one layer of 960, whose norms
and sums are split by layer at the end.

Shapes: ``L`` layers, ``B`` examples.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample._graph.nodes import Node, is_checkpointed, name_of, size
from dp.per_sample._graph.uses import Graph, Operand, Use
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import MaterializedGrads
from dp.per_sample._rules.context import MemoryBudget, Rule, RuleContext
from dp.per_sample._rules.table import RULES


__all__ = ("BatchedLayers", "LayerGroup", "batch_layers", "find_identical_layers")


@final
@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Uses that may be served as one.

    Attributes:
        members: Their positions in the graph.
        indices: By input position, the index of each one's parameter.
        transposed: The input positions that take their parameters transposed.
    """

    members: Sequence[int]
    indices: Mapping[int, Sequence[int]]
    transposed: frozenset[int]


def find_identical_layers(
    graph: Graph,
    layouts: Sequence[Mapping[int, Layout] | None],
    parameters: Sequence[Tensor],
    *,
    num_samples: int,
) -> list[LayerGroup]:
    """Return the groups of uses that may be served as one, in graphs like this one."""
    # Example: a stack of 30 blocks Linear(16, 16) - ReLU of 32 examples has 30 alike
    # uses of AddmmBackward0 with [32, 16]: one group. The output layer has another
    # shape, and is served alone.
    index_of = {id(p): i for i, p in enumerate(parameters)}
    times_used = Counter(id(p) for use in graph.uses for p in use.parameters)
    members: dict[Hashable, list[int]] = {}
    for position, (use, layout) in enumerate(zip(graph.uses, layouts, strict=True)):
        if layout is None or [*layout] != [0]:
            continue  # Some other output than the first matters for the losses.
        context = RuleContext(use, layout, num_samples)
        if _is_batchable(context, times_used):
            members.setdefault(_kind(use, layout[0]), []).append(position)
    return [
        _layer_group(graph, positions, index_of)
        for positions in members.values()
        if len(positions) >= _tuning.FEWEST_IDENTICAL_LAYERS
    ]


def _is_batchable(context: RuleContext, times_used: Mapping[int, int]) -> bool:
    """Whether a use may be served together with others of its kind."""
    rule = RULES.get(context.use.operation)
    if rule is None or not rule.stacks:
        return False
    # Rows of layers are put one behind another, so each must have its examples in
    # front.
    if not (context.examples_lead and rule.applies(context)):
        return False
    return all(
        _is_plain(operand)
        # A tied parameter has another use, to which its gradient must be added.
        and times_used[id(operand.parameters[0])] == 1
        # Broadcast over the examples, or else each example has a part of it.
        and (len(operand.shape) < len(context.use.shape) or position == rule.matrix)
        for position, operand in context.operands.items()
    )


def _layer_group(
    graph: Graph, members: Sequence[int], index_of: Mapping[int, int]
) -> LayerGroup:
    uses = [graph.uses[i] for i in members]
    indices = {
        position: [index_of[id(use.operands[position].parameters[0])] for use in uses]
        for position in uses[0].operands
    }
    transposed = [i for i, operand in uses[0].operands.items() if operand.chain]
    return LayerGroup(members, indices, frozenset(transposed))


def _is_plain(operand: Operand) -> bool:
    """Whether an operand is a small parameter, as it is or transposed."""
    if operand.chain is None:
        return False
    if operand.parameters[0].numel() > _tuning.SMALL_PARAMETER:
        return False
    return [name_of(node) for node, _ in operand.chain] in ([], ["TBackward0"])


def _kind(use: Use, layout: Layout) -> Hashable:
    """Return what must be equal for layers to be served as one."""
    operands = [
        (
            position,
            bool(operand.chain),
            tuple(operand.shape),
            operand.parameters[0].dtype,
            operand.parameters[0].device,
        )
        for position, operand in use.operands.items()
    ]
    # The dtype and the device count too: torch.cat would promote, or fail.
    return (use.operation, layout, use.shape, *operands)


@final
@dataclass(frozen=True, slots=True)
class BatchedLayers:
    """Identical layers of one batch, as one layer.

    Attributes:
        group: The layers.
        nodes: Their nodes.
        rule: The rule that serves them.
        context: The context of the one layer, with L * B examples.
    """

    group: LayerGroup
    nodes: Sequence[Node]
    rule: Rule
    context: RuleContext

    def parts(
        self, grads: Sequence[Tensor | None]
    ) -> dict[int, MaterializedGrads | FactoredGrads]:
        """Return the parts of all layers' parameters, by input position.

        Args:
            grads: The gradient of each layer's output; None where none flows.
        """
        flowing = next((grad for grad in grads if grad is not None), None)
        if flowing is None:
            return {}
        # A layer that no loss of this batch depends on has gradients of zero, in its
        # place.
        all_grads = [torch.zeros_like(flowing) if g is None else g for g in grads]
        parts: dict[int, MaterializedGrads | FactoredGrads] = {}
        # L gradients of [B, ...] become one of [L * B, ...], in the order of the saved
        # rows.
        joint = self.rule.parts(self.context, torch.cat(all_grads))
        for position, part in joint.items():
            assert isinstance(part, MaterializedGrads | FactoredGrads)  # noqa: S101 -- see Rule.stacks
            is_transposed = position in self.group.transposed
            parts[position] = part.transposed() if is_transposed else part
        return parts


def batch_layers(
    members: Sequence[Use],
    group: LayerGroup,
    layouts: Mapping[int, Layout],
    *,
    num_samples: int,
    budget: MemoryBudget,
) -> BatchedLayers | None:
    """Concatenate the layers of one batch, or return None if they differ in it.

    What they saved for the backward pass is read now, before it is freed.
    """
    first, nodes = members[0], [use.node for use in members]
    rule = RULES[first.operation]
    num_bytes = size(first.shape) * next(iter(first.parameters)).itemsize
    context = RuleContext(first, layouts, num_samples)
    # A large layer is not worth a copy: calls are a small part of its time.
    if num_bytes > _tuning.LARGEST_LAYER_BYTES or not rule.applies(context):
        return None
    held = _read_saved(nodes, rule)
    # Inputs and output gradients are copied: twice the outputs, about.
    if held is None or not budget.try_reserve(2 * num_bytes * len(nodes)):
        return None
    joint = RuleContext(first, layouts, num_samples * len(nodes), budget, held)
    return BatchedLayers(group, nodes, rule, joint)


def _read_saved(nodes: Sequence[Node], rule: Rule) -> dict[str, Any] | None:
    """Return the values that the nodes saved, as of one node; None if they differ."""
    if _are_checkpointed(nodes, rule.stacks[0]):
        return None
    held: dict[str, Any] = {}
    for name in rule.reads:
        if name in rule.stacks:
            rows = _concatenated(nodes, name)
            if rows is None:
                return None
            held[name] = rows
            continue
        values = [*map(attrgetter(f"_saved_{name}"), nodes)]
        if not any(isinstance(value, Tensor) for value in values):
            # As alpha and beta of an addmm. The matrix of an mm, another for each
            # layer, is not held: its gradient is what is computed, for which the other
            # side is enough.
            if values.count(values[0]) != len(values):
                return None
            held[name] = values[0]
    return held


def _are_checkpointed(nodes: Sequence[Node], name: str) -> bool:
    """Whether reading what nodes saved would run a part of the model once more.

    Args:
        nodes: The nodes.
        name: Of something that each of them saved: a checkpoint keeps all of a node.
    """
    # Where nothing is hooked nothing is checkpointed, which is seen in a third of the
    # time.
    kept = map(attrgetter(f"_raw_saved_{name}"), nodes)
    hooks = [getattr(one, "unpack_hook", None) for one in kept]
    return any(hooks) and any(is_checkpointed(node, name) for node in nodes)


def _concatenated(nodes: Sequence[Node], name: str) -> Tensor | None:
    """Return the rows that all nodes saved; None if they differ in shape."""
    rows = [*map(attrgetter(f"_saved_{name}"), nodes)]
    if len({row.shape for row in rows}) > 1:
        return None
    with torch.no_grad():  # One context for all: detaching each takes twice as long.
        return torch.cat(rows)
