"""Rules of elementwise operations and of concatenation.

Shapes: none are fixed.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.per_sample._graph.nodes import leaf, output_shape, signed
from dp.per_sample._rules.context import (
    Parts,
    Rule,
    RuleContext,
    is_shared,
    reduce_broadcast,
)


__all__ = ("POINTWISE_RULES",)


def _add(context: RuleContext, grad: Tensor) -> Parts:
    # torch.add(a, b, alpha=2) is a + 2 * b.
    return _sum(context, grad, context.saved("alpha"))


def _sub(context: RuleContext, grad: Tensor) -> Parts:
    return _sum(context, grad, -context.saved("alpha"))


def _sum(context: RuleContext, grad: Tensor, scale: float) -> Parts:
    parts = Parts()
    if 0 in context.operands:
        parts[0] = reduce_broadcast(context, 0, grad)
    if 1 in context.operands:
        parts[1] = reduce_broadcast(context, 1, grad if scale == 1 else grad * scale)
    return parts


def _mul(context: RuleContext, grad: Tensor) -> Parts:
    # d(a * b) / da is b: each side's gradient takes what the other side was.
    factors = {0: "other", 1: "self"}
    return {
        i: reduce_broadcast(context, i, grad * context.saved(factors[i]))
        for i in context.operands
    }


def _div(context: RuleContext, grad: Tensor) -> Parts:
    parts = Parts()
    divisor = context.saved("other")
    if 0 in context.operands:
        parts[0] = reduce_broadcast(context, 0, grad / divisor)
    if 1 in context.operands:
        # d(a / b) / db is -a / b / b. A division by b**2 would overflow in float32 at b
        # = 1e20.
        quotient = context.saved("self") / divisor
        parts[1] = reduce_broadcast(context, 1, -grad * quotient / divisor)
    return parts


def _where(context: RuleContext, grad: Tensor) -> Parts:
    # Filled with zeros and not multiplied by them: the branch that was not taken may
    # have a gradient of infinity, and 0 times it is NaN.
    condition = context.saved("condition")
    masked = {0: grad.where(condition, 0), 1: grad.masked_fill(condition, 0)}
    return {i: reduce_broadcast(context, i, masked[i]) for i in context.operands}


def _prelu(context: RuleContext, grad: Tensor) -> Parts:
    inputs = context.saved("self")
    # max(x, 0) + a * min(x, 0): only where x is not positive does its slope a count.
    negative = (grad * inputs).masked_fill(inputs > 0, 0)
    return {1: reduce_broadcast(context, 1, negative)}


def _cat(context: RuleContext, grad: Tensor) -> Parts:
    dim = signed(context.saved("dim"))
    # Example: cat([cls.expand(B, 1, D), x], dim=1) with x of [B, 16, D]. The operand is
    # the expanded token, whose gradient is [:, 0:1] of that of the result, and of which
    # each example has a slice.
    parts, start = Parts(), 0
    for position, length in enumerate(_lengths(context, dim, grad.shape[dim])):
        if position in context.operands:
            parts[position] = reduce_broadcast(
                context, position, grad.narrow(dim, start, length)
            )
        start += length
    return parts


def _lengths(context: RuleContext, dim: int, total: int) -> list[int]:
    """Return the lengths of a concatenation's inputs.

    An input without a graph has no node that would tell its length; one such input
    has what the others leave of the total.
    """
    lengths = [
        _length(edge, dim, context)
        for edge in enumerate(context.use.node.next_functions)
    ]
    known = sum(length for length in lengths if length is not None)
    return [total - known if length is None else length for length in lengths]


def _length(
    indexed_edge: tuple[int, tuple[object, int]], dim: int, context: RuleContext
) -> int | None:
    position, (child, index) = indexed_edge
    if position in context.operands:
        return context.operands[position].shape[dim]
    return None if child is None else output_shape(child, index)[dim]


def _lengths_are_known(context: RuleContext) -> bool:
    children = [child for child, _ in context.use.node.next_functions]
    dim = signed(context.saved("dim"))
    # Along the examples' own axis an input would be some examples' alone, and along any
    # other each example has a part of every input.
    num_axes = len(context.use.shape)
    return children.count(None) <= 1 and dim % num_axes != context.axis


POINTWISE_RULES: Final[Mapping[str, Rule]] = {
    # These spread where operands are shared: a bias is the same for all rows, and a
    # table of positions [T, D] is not for examples that are single tokens.
    "AddBackward0": Rule(
        parts=_add,
        spreads=is_shared,
        reads=("alpha",),
        example=lambda: leaf(1) + leaf(1),
    ),
    "CatBackward0": Rule(
        parts=_cat,
        reads=("dim",),
        example=lambda: torch.cat([leaf(1), leaf(1)]),
        applies=_lengths_are_known,
    ),
    "DivBackward0": Rule(
        parts=_div,
        spreads=is_shared,
        reads=("self", "other"),
        example=lambda: leaf(1) / leaf(1),
    ),
    "MulBackward0": Rule(
        parts=_mul,
        spreads=is_shared,
        reads=("self", "other"),
        example=lambda: leaf(1) * leaf(1),
    ),
    "PreluKernelBackward0": Rule(
        parts=_prelu,
        spreads=lambda context: 0 not in context.operands and is_shared(context),
        reads=("self",),
        example=lambda: F.prelu(leaf(1, 1), leaf(1)),
        # Input 0 is the data; if it is computed of parameters, the node itself is run.
        applies=lambda context: 0 not in context.operands,
    ),
    "SubBackward0": Rule(
        parts=_sub,
        spreads=is_shared,
        reads=("alpha",),
        example=lambda: leaf(1) - leaf(1),
    ),
    "WhereBackward0": Rule(
        parts=_where,
        spreads=is_shared,
        reads=("condition",),
        example=lambda: torch.where(
            torch.ones(1, dtype=torch.bool, device="cpu"), leaf(1), leaf(1)
        ),
    ),
}
