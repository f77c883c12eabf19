"""The rule of fused attention, of which each head is computed by itself.

Shapes: ``B`` images of ``H`` heads, ``T`` positions, ``D`` dimensions of a head.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from dp.per_sample._graph.nodes import output_shape, output_shapes, run_backward
from dp.per_sample._rules.context import Parts, Rule, RuleContext, sliced_by_example


__all__ = ("ATTENTION_RULES",)

_HEADS: Final = 2  # Axes before the positions: [B, H, T, D].


def _attention(context: RuleContext, grad: Tensor) -> Parts:
    # Example: queries [1, H, T, D] that are learned are expanded to [B, H, T, D] before
    # they meet the keys. No head reads another one, so row b of the gradient of what was
    # expanded is example b's, and one backward finds all rows.
    others = [None] * (len(output_shapes(context.use.node)) - 1)
    of_inputs = run_backward(context.use.node, [grad, *others])
    parts = Parts()
    for position in context.operands:
        found = of_inputs[position]
        assert found is not None  # noqa: S101 -- an operand requires a gradient
        parts[position] = sliced_by_example(found, context.axis, context)
    return parts


def _are_heads(context: RuleContext) -> bool:
    """Whether every operand has the heads of each example apart, as the output does."""
    # Positions of a head read one another, so examples along them are mixed. Keys that
    # several heads of queries share lack a part of the second axis.
    length = output_shape(context.use.node, 0)[context.axis]
    operands = context.operands.values()
    return context.axis < _HEADS and all(
        operand.shape[context.axis] == length for operand in operands
    )


ATTENTION_RULES: Final[Mapping[str, Rule]] = {
    "ScaledDotProductFlashAttentionForCpuBackward0": Rule(
        parts=_attention,
        reads=(),
        # None is made: which kernel attends is a setting of the program.
        example=None,
        applies=_are_heads,
        waits=True,
    ),
}
