"""Rules of matrix products.

Shapes: ``B`` examples, ``N`` products in one operand, ``T`` positions of an example,
``I`` inputs, ``O`` outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import leaf
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import GradPart, MaterializedGrads
from dp.per_sample._parts.reparametrized import SlicedGrads
from dp.per_sample._rules.context import Parts, Rule, RuleContext, reduce_broadcast


__all__ = ("MATRIX_RULES",)

_BATCH, _ROWS, _COLUMNS = -3, -2, -1


def _addmm(context: RuleContext, grad: Tensor) -> Parts:
    parts = Parts()
    bias, weight = 0, 2
    if weight in context.operands:
        product = _scaled(grad, context.saved("alpha"))
        parts[weight] = context.product(
            context.rows(context.saved("mat1")), context.rows(product)
        )
    if bias in context.operands:
        parts[bias] = reduce_broadcast(
            context, bias, _scaled(grad, context.saved("beta"))
        )
    return _sharing(parts, bias, weight)


def _sharing(parts: Parts, bias: int, weight: int) -> Parts:
    """Let the norms of what a bias and a weight both have be computed once."""
    kept, outer = parts.get(bias), parts.get(weight)
    if (
        isinstance(kept, MaterializedGrads)
        and isinstance(outer, FactoredGrads)
        and kept.grads_BP.data_ptr() == outer.right.data_ptr()
        and kept.grads_BP.numel() == outer.right.numel()
    ):
        rows = MaterializedGrads(kept.grads_BP, is_held_anyway=True)
        return {
            bias: rows,
            weight: FactoredGrads(outer.left, outer.right, right_rows=rows),
        }
    return parts


def _mm(context: RuleContext, grad: Tensor) -> Parts:
    if 1 in context.operands:
        return {
            1: context.product(context.rows(context.saved("self")), context.rows(grad))
        }
    turned = _transposed_context(context)
    return {
        0: context.product(turned.rows(grad.mT), turned.rows(context.saved("mat2").mT))
    }


def _bmm(context: RuleContext, grad: Tensor) -> Parts:
    return _products(context, grad, first=0, names=("self", "mat2"))


def _baddbmm(context: RuleContext, grad: Tensor) -> Parts:
    product = _scaled(grad, context.saved("alpha"))
    parts = _products(context, product, first=1, names=("batch1", "batch2"))
    if 0 in context.operands:
        parts[0] = reduce_broadcast(context, 0, _scaled(grad, context.saved("beta")))
    return parts


def _products(
    context: RuleContext, grad: Tensor, *, first: int, names: tuple[str, str]
) -> Parts:
    """Return the parts of N products ``left @ right`` of [N, ...] each."""
    left, right = names
    if first + 1 in context.operands:
        inputs = context.saved(left)
        return {first + 1: _product(context, context.layout, inputs, grad)}
    if first in context.operands:
        turned = _transposed_context(context).layout
        return {first: _product(context, turned, grad.mT, context.saved(right).mT)}
    return {}


def _product(
    context: RuleContext, layout: Layout, left: Tensor, right: Tensor
) -> GradPart:
    B = context.num_samples
    if B == 1:
        return context.product(left[None], right[None])
    if layout.axis == _ROWS:
        return context.product(
            _by_example(left, layout, B), _by_example(right, layout, B)
        )
    inner = context.product(left.unflatten(0, (B, -1)), right.unflatten(0, (B, -1)))
    return SlicedGrads(inner, (len(left), left.shape[-1], right.shape[-1]), 0)


def _by_example(tensor: Tensor, layout: Layout, num_samples: int) -> Tensor:
    """Return [B, N, T, ...] of [N, B * T, ...]."""
    N, D = len(tensor), tensor.shape[-1]
    if layout.time_major:
        return tensor.reshape(N, -1, num_samples, D).movedim(2, 0)
    return tensor.reshape(N, num_samples, -1, D).transpose(0, 1)


def _transposed_context(context: RuleContext) -> RuleContext:
    """Return the context of the transposed product, whose examples are on the rows."""
    if context.num_samples == 1 or context.layout.axis != _COLUMNS:
        return context
    return replace(context, layouts={0: replace(context.layout, axis=_ROWS)})


def _mv(context: RuleContext, grad: Tensor) -> Parts:
    products = context.saved("self") * grad[:, None]
    B = context.num_samples
    if context.layout.time_major:
        return {1: MaterializedGrads(products.unflatten(0, (-1, B)).sum(0))}
    return {1: MaterializedGrads(products.unflatten(0, (B, -1)).sum(1))}


def _scaled(grad: Tensor, factor: float) -> Tensor:
    return grad if factor == 1 else grad * factor


def _right_is_shared(right: int, *more_axes: int) -> Callable[[RuleContext], bool]:
    """Return whether one factor is an operand that does not depend on the example."""

    def applies(context: RuleContext) -> bool:
        left = right - 1
        if left in context.operands and right in context.operands:
            return False
        if context.num_samples == 1:
            return True
        for position, axis in ((left, _COLUMNS), (right, _ROWS)):
            if position in context.operands and context.layout.axis != axis:
                return (
                    context.layout.axis in more_axes and not context.layout.time_major
                )
        return True

    return applies


MATRIX_RULES: Final[Mapping[str, Rule]] = {
    "AddmmBackward0": Rule(
        parts=_addmm,
        reads=("mat1", "alpha", "beta"),
        example=lambda: torch.addmm(leaf(3), leaf(2, 3), leaf(3, 3)),
        applies=lambda context: (
            1 not in context.operands and _right_is_shared(2)(context)
        ),
        stacks=("mat1",),
        matrix=2,
    ),
    "BaddbmmBackward0": Rule(
        parts=_baddbmm,
        reads=("batch1", "batch2", "alpha", "beta"),
        example=lambda: torch.baddbmm(leaf(1, 2, 2), leaf(1, 2, 3), leaf(1, 3, 2)),
        applies=_right_is_shared(2, _BATCH),
    ),
    "BmmBackward0": Rule(
        parts=_bmm,
        reads=("self", "mat2"),
        example=lambda: torch.bmm(leaf(1, 2, 3), leaf(1, 3, 2)),
        applies=_right_is_shared(1, _BATCH),
    ),
    "MmBackward0": Rule(
        parts=_mm,
        reads=("self", "mat2"),
        example=lambda: leaf(2, 3) @ leaf(3, 2),
        applies=_right_is_shared(1),
        stacks=("self",),
        matrix=1,
    ),
    "MvBackward0": Rule(
        parts=_mv,
        reads=("self",),
        example=lambda: leaf(2, 3) @ leaf(3),
        applies=lambda context: 0 not in context.operands,
    ),
}
