"""Rules of matrix products.

Shapes: ``B`` examples, ``N`` products in one operand, ``T`` positions of an example,
``I`` inputs, ``O`` outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.per_sample._graph.nodes import leaf
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.grouped import GroupedGrads
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
        # [B * T, I] and [B * T, O] as [B, T, I] and [B, T, O]: the weight's gradients,
        # [I, O] for each example, are the first's transpose times the second.
        parts[weight] = context.product(
            context.rows(context.saved("mat1")), context.rows(product)
        )
    if bias in context.operands:
        parts[bias] = reduce_broadcast(
            context, bias, _scaled(grad, context.saved("beta"))
        )
    return _share_norms(parts, bias, weight)


def _share_norms(parts: Parts, bias: int, weight: int) -> Parts:
    """Let a bias and a weight that hold the same tensor compute its norms once.

    With one position an example, the weight's gradient is the outer product of the
    input and the output gradient, and the bias's is that output gradient itself.
    """
    # Example: 32 examples of Linear(100, 10). The bias has the gradients g [32, 10],
    # the weight x [32, 1, 100] and g as [32, 1, 10], whose squared norms are |x|^2
    # |g|^2: |g|^2 is computed once, and g is not copied beside the other biases.
    bias_part, weight_part = parts.get(bias), parts.get(weight)
    if (
        isinstance(bias_part, MaterializedGrads)
        and isinstance(weight_part, FactoredGrads)
        and bias_part.grads_BP.data_ptr() == weight_part.right.data_ptr()
        and bias_part.grads_BP.numel() == weight_part.right.numel()
    ):
        rows = MaterializedGrads(bias_part.grads_BP, is_held_anyway=True)
        return {
            bias: rows,
            weight: FactoredGrads(weight_part.left, weight_part.right, right_rows=rows),
        }
    return parts


def _mm(context: RuleContext, grad: Tensor) -> Parts:
    if 1 in context.operands:
        return {
            1: context.product(context.rows(context.saved("self")), context.rows(grad))
        }
    # weight @ x, with x of [I, B * T]: as y.T = x.T @ weight.T the examples are on the
    # rows. The left factor is then the gradient, so that the result is [O, I], as
    # weight is.
    transposed = _transposed_context(context)
    return {
        0: context.product(
            transposed.rows(grad.mT), transposed.rows(context.saved("mat2").mT)
        )
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
    layout = _layout(context)
    if first + 1 in context.operands:
        inputs = context.saved(left)
        return {first + 1: _product(context, layout, inputs, grad)}
    if first in context.operands:
        transposed = _layout(_transposed_context(context))
        return {first: _product(context, transposed, grad.mT, context.saved(right).mT)}
    return {}


def _product(
    context: RuleContext, layout: Layout, left: Tensor, right: Tensor
) -> GradPart:
    B = context.num_samples
    if B == 1:
        # [1, N, T, I] and [1, N, T, O].
        return context.product(left[None], right[None])
    if layout.axis == _ROWS:
        return context.product(
            _by_example(left, layout, B), _by_example(right, layout, B)
        )
    # On the axis of the matrices: bmm(x [B, T, I], w.expand(B, I, O)). Each example
    # meets N / B matrices of its own: a slice of the operand, which is zero elsewhere.
    apart = B, len(left) // B
    inner = context.product(left.unflatten(0, apart), right.unflatten(0, apart))
    return SlicedGrads(inner, (len(left), left.shape[-1], right.shape[-1]), 0)


def _by_example(tensor: Tensor, layout: Layout, num_samples: int) -> Tensor:
    """Return [B, N, T, ...] of [N, B * T, ...]."""
    N, R, D = tensor.shape
    T = R // num_samples
    if layout.time_major:
        # [N, T, B, D] to [B, N, T, D].
        return tensor.reshape(N, T, num_samples, D).movedim(2, 0)
    return tensor.reshape(N, num_samples, T, D).transpose(0, 1)


def _transposed_context(context: RuleContext) -> RuleContext:
    """Return the context of the transposed product, with the examples on its rows."""
    if context.num_samples == 1 or context.layout.axis != _COLUMNS:
        return context
    return replace(context, layouts={0: replace(_layout(context), axis=_ROWS)})


def _layout(context: RuleContext) -> Layout:
    layout = context.layout
    assert isinstance(layout, Layout)  # noqa: S101 -- no rule here spreads
    return layout


def _mv(context: RuleContext, grad: Tensor) -> Parts:
    # [B * T, I]: a row's input, scaled by the gradient of its one output.
    products = context.saved("self") * grad[:, None]
    B = context.num_samples
    T = len(products) // B
    if context.layout.time_major:
        return {1: MaterializedGrads(products.unflatten(0, (T, B)).sum(0))}
    return {1: MaterializedGrads(products.unflatten(0, (B, T)).sum(1))}


def _grouped_mm(context: RuleContext, grad: Tensor) -> Parts:
    """Serve a product of rows that are sorted by expert with each expert's matrix."""
    num_experts = context.operands[1].shape[0]
    row_R = torch.arange(len(grad), device=grad.device)
    # Expert e has the rows up to offsets[e]; behind the last are none.
    offsets_E = context.saved("offs").long()
    # Example: offsets 2, 2, 5 of three experts and 6 rows. Rows 0 and 1 meet expert 0,
    # none meets expert 1, rows 2 to 4 meet expert 2, and row 5 meets none.
    expert_R = torch.searchsorted(offsets_E, row_R, right=True)
    part = GroupedGrads(
        left=context.saved("self"),
        right=grad,
        experts=torch.where(expert_R < num_experts, expert_R, -1),
        units=context.owner_tensor(0, grad).expand(grad.shape)[:, 0],
        num_experts=num_experts,
        num_units=context.num_samples,
    )
    return {1: part}


def _is_routed(context: RuleContext) -> bool:
    """Whether rows go to experts whose matrices all examples share."""
    # Without offsets it is a batch of products, one for each matrix.
    if [*context.operands] != [1] or context.saved("offs") is None:
        return False
    is_stack = len(context.operands[1].shape) == -_BATCH
    is_rows = len(context.use.shape) == -_ROWS
    on_rows = context.num_samples == 1 or context.layout.axis == _ROWS
    return is_stack and is_rows and on_rows


def _scaled(grad: Tensor, factor: float) -> Tensor:
    return grad if factor == 1 else grad * factor


def _right_is_shared(right: int, *more_axes: int) -> Callable[[RuleContext], bool]:
    """Return a test of whether one factor is an operand that all examples share.

    Args:
        right: The input position of the right factor; the left one is before it.
        more_axes: Axes of the output that the examples may be on as well.
    """

    def applies(context: RuleContext) -> bool:
        # The gradient of a factor sums over the axis of the output that the factor
        # lacks: of x @ weight over rows, of weight @ x over columns. The examples must
        # lie there, so that the sum can be split by example.
        left = right - 1
        # Both from parameters, as in addmm(x, a, b): no factor is the data's.
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
    "GroupedMmBackward0": Rule(
        parts=_grouped_mm,
        reads=("self", "offs"),
        example=lambda: F.grouped_mm(
            leaf(1, 4), leaf(1, 4, 4), offs=torch.ones(1, dtype=torch.int32)
        ),
        applies=_is_routed,
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
