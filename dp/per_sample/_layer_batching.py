"""Serve many small uses of a kind as one.

A deep model of small layers takes the same few small steps for each of them, and the
time goes into calling them. Layers that are alike are put behind one another, as if
they were more examples of one layer.

Shapes: ``L`` layers, ``B`` examples.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
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
        indices: By input position, each one's parameter.
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
    """Return which uses may be served as one, in graphs like this one."""
    index_of = {id(p): i for i, p in enumerate(parameters)}
    times_used = Counter(id(p) for use in graph.uses for p in use.parameters)
    members: dict[Hashable, list[int]] = {}
    for position, (use, found) in enumerate(zip(graph.uses, layouts, strict=True)):
        rule = RULES.get(use.operation)
        if rule is None or found is None or not rule.stacks or [*found] != [0]:
            continue
        context = RuleContext(use, found, num_samples)
        if (
            context.examples_lead
            and rule.applies(context)
            and all(
                _is_plain(operand)
                and times_used[id(operand.parameters[0])] == 1
                and (len(operand.shape) < len(use.shape) or input_ == rule.matrix)
                for input_, operand in use.operands.items()
            )
        ):
            members.setdefault(_kind(use, found[0]), []).append(position)
    return [
        _layer_group(graph, some, index_of)
        for some in members.values()
        if len(some) >= _tuning.FEWEST_IDENTICAL_LAYERS
    ]


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
    if operand.chain is None or operand.parameters[0].numel() > _tuning.SMALL_PARAMETER:
        return False
    return [name_of(node) for node, _ in operand.chain] in ([], ["TBackward0"])


def _kind(use: Use, layout: Layout) -> Hashable:
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
    return (use.operation, layout, use.shape, *operands)


@final
@dataclass(frozen=True, slots=True)
class BatchedLayers:
    """Some layers of one batch, as one.

    Attributes:
        group: What they are.
        nodes: Their nodes.
        rule: Theirs.
        context: Where the rule finds them, as more examples.
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
            grads: Of the outputs of each; None where no gradient flows.
        """
        some = next((grad for grad in grads if grad is not None), None)
        if some is None:
            return {}
        all_grads = [torch.zeros_like(some) if g is None else g for g in grads]
        found: dict[int, MaterializedGrads | FactoredGrads] = {}
        for position, part in self.rule.parts(
            self.context, torch.cat(all_grads)
        ).items():
            assert isinstance(part, MaterializedGrads | FactoredGrads)  # noqa: S101 -- see Rule.stacks
            is_turned = position in self.group.transposed
            found[position] = part.transposed() if is_turned else part
        return found


def batch_layers(
    members: Sequence[Use],
    some: LayerGroup,
    layouts: Mapping[int, Layout],
    *,
    num_samples: int,
    budget: MemoryBudget,
) -> BatchedLayers | None:
    """Put the layers of one batch behind one another, if they are still alike.

    What they kept for the backward pass is read now, before it is freed.
    """
    first, nodes = members[0], [use.node for use in members]
    rule = RULES[first.operation]
    num_bytes = size(first.shape) * next(iter(first.parameters)).itemsize
    if num_bytes > _tuning.LARGEST_LAYER_BYTES or not rule.applies(
        RuleContext(first, layouts, num_samples)
    ):
        return None
    held = _held(nodes, rule)
    if held is None or not budget.try_reserve(2 * num_bytes * len(nodes)):
        return None
    context = RuleContext(first, layouts, num_samples * len(nodes), budget, held)
    return BatchedLayers(some, nodes, rule, context)


def _held(nodes: Sequence[Node], rule: Rule) -> dict[str, Any] | None:
    """Return what all nodes keep, as of one; None if they are not alike."""
    held = {}
    for name in rule.reads:
        if name in rule.stacks:
            if any(is_checkpointed(node, name) for node in nodes):
                return None
            found = [getattr(node, f"_saved_{name}").detach() for node in nodes]
            if any(some.shape != found[0].shape for some in found):
                return None
            held[name] = torch.cat(found)
            continue
        values = [getattr(node, f"_saved_{name}") for node in nodes]
        if not any(isinstance(value, Tensor) for value in values):
            if values.count(values[0]) != len(values):
                return None
            held[name] = values[0]
    return held
