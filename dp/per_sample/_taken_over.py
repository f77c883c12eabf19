"""Let a rule compute what a node's own backward would send on.

A recurrent layer is one node, whose own backward goes back through time to find the
gradients of its inputs, and of the weights, which nobody needs. A rule goes back
through time as well. Where it adds up the inputs' gradient besides, the node's own
backward can be left out, which is a third of the pass.

autograd has no way to replace what a node returns where its gradients are undefined, so
the gradient is handed over beside it. The edge from the node to its input is made a
root of the backward pass, with a buffer of zeros as its gradient:

    losses -> ... -> LSTM -x-> input of the LSTM -> ...
                      | rule   ^
                      +-> buffer

The LSTM's rule fills the buffer in a hook before the node, and leaves the node without
gradients, so that it computes nothing. autograd runs what is behind the edge after the
LSTM, since the edge is still there, and reads the buffer then.

That holds only if nothing else sends gradients along the edge: the buffer might be
added to them before it is filled. Two directions of a layer share one buffer.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.per_sample._graph.nodes import Node
from dp.per_sample._graph.uses import Edge, Graph
from dp.per_sample._rules.context import Rule, RuleContext


__all__ = ("Root", "take_over")


class Root(NamedTuple):
    """Where a gradient enters the backward pass beside the losses'.

    Attributes:
        edge: The edge.
        buffer: The gradient, which is filled during the pass.
    """

    edge: GradientEdge
    buffer: Tensor


def take_over(
    graph: Graph, served: Iterable[tuple[RuleContext, Rule | None]]
) -> list[Root]:
    """Give every rule that can use one a buffer for the gradient of its input.

    Args:
        graph: The graph.
        served: The uses, and the rule of each.
    """
    able = {
        context.use.node: context
        for context, rule in served
        if rule is not None and rule.takes_over and _has_one_input(context)
    }
    if not able:
        return []
    senders = _senders(graph, {_input_edge(node) for node in able})
    roots = []
    for edge, nodes in senders.items():
        if all(node in able for node in nodes):
            root = _root(edge)
            roots.append(root)
            for node in nodes:
                able[node].input_grad = root.buffer
    return roots


def _has_one_input(context: RuleContext) -> bool:
    """Whether only the first input is data, and something behind it is asked for."""
    if context.use.is_last:
        return False
    edges = context.use.node.next_functions
    return edges[0][0] is not None and all(
        child is None or position in context.operands
        for position, (child, _) in enumerate(edges)
        if position
    )


def _input_edge(node: Node) -> Edge:
    child, index = node.next_functions[0]
    return child, index


def _senders(graph: Graph, edges: set[Edge]) -> dict[Edge, list[Node]]:
    """Return every node that sends gradients along each edge."""
    senders: dict[Edge, list[Node]] = {edge: [] for edge in edges}
    for node in graph.nodes:
        for child, index in node.next_functions:
            if (child, index) in senders:
                senders[child, index].append(node)
    return senders


def _root(edge: Edge) -> Root:
    node, index = edge
    like = node._input_metadata[index]  # noqa: SLF001 -- see _graph.nodes
    buffer = torch.zeros(tuple(like.shape), dtype=like.dtype, device=like.device)
    return Root(GradientEdge(node, index), buffer)
