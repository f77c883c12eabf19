"""Gradients of operations that no rule serves.

One backward of the operation alone for each example is exact, whatever it is.

Shapes: ``B`` examples.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from dp import _tuning
from dp.exceptions import UnsupportedOperationError
from dp.per_sample._graph.nodes import (
    output_shape,
    output_shapes,
    run_backward,
    size,
)
from dp.per_sample._graph.uses import shapes_of
from dp.per_sample._parts.part import GradPart, MaterializedGrads
from dp.per_sample._parts.ragged import by_unit
from dp.per_sample._parts.row_groups import RowGroups
from dp.per_sample._rules.context import Grads, Parts, RuleContext


__all__ = ("by_node",)

_NO_UNIT: Final = -9  # Neither a unit nor one of the marks of owners.
# By kind of node and shapes: whether what torch.vmap batches adds up.
_adds_up: Final[dict[Hashable, bool]] = {}


@final
@dataclass(frozen=True, slots=True)
class _Separated:
    """A use whose node is run for the rows of some units alone.

    Attributes:
        context: The use.
        grads: Of every output of its node.
        owners: Of every output that has a gradient, whose each of its rows is.
    """

    context: RuleContext
    grads: Sequence[Tensor | None]
    owners: Mapping[int, Tensor]

    def of_rows(self, mine: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """Return the operands' gradients, from the rows that *mine* marks."""
        masked = [
            None if grad is None else torch.where(mine[i], grad, 0)
            for i, grad in enumerate(self.grads)
        ]
        of_inputs = run_backward(self.context.use.node, masked)
        return tuple(
            _or_zeros(self.context, i, of_inputs[i]) for i in self.context.operands
        )

    def of_example(self, example: Tensor) -> tuple[Tensor, ...]:
        return self.of_rows({i: owner == example for i, owner in self.owners.items()})

    def of_all(self) -> tuple[Tensor, ...]:
        return self.of_rows({i: owner >= 0 for i, owner in self.owners.items()})


def by_node(context: RuleContext, grads: Grads) -> Parts:
    """Return materialized gradients by one backward of the node for each example.

    A node's backward is linear in the gradient of its output. Where all but one
    example's rows of that gradient are set to zero, the result is that example's.

    Raises:
        UnsupportedOperationError: If 0 times what the node holds is not 0.
    """
    # One for every output, as the node's backward wants them.
    grads = [*grads, *[None] * (len(output_shapes(context.use.node)) - len(grads))]
    owners = {
        i: context.owner_tensor(i, grad)
        for i, grad in enumerate(grads)
        if grad is not None
    }
    separated = _Separated(context, grads, owners)
    unit_K = _units(context, owners)
    if context.num_samples > 1:
        # The rows of a unit that nobody is: a gradient of zeros, which must give zeros.
        nobody = unit_K.new_tensor(_NO_UNIT)
        _check_separable(context, separated.of_example(nobody))
    columns = zip(*_rows(separated, unit_K), strict=True)
    return {
        position: _of_units(torch.cat(column), unit_K, context)
        for position, column in zip(context.operands, columns, strict=True)
    }


def _rows(separated: _Separated, unit_K: Tensor) -> list[tuple[Tensor, ...]]:
    """Return chunks of rows by operand, batched where torch does that rightly."""
    context = separated.context
    node = context.use.node
    # 8 bytes an element, which is float64, or float32 and its copy.
    step = max(1, _tuning.FALLBACK_CHUNK_BYTES // (8 * _largest(context) or 1))
    rows = _rows_of_examples(separated.of_example, unit_K, step)
    # Looked at once for a kind and its shapes: whether torch's rule is right does not
    # depend on the numbers.
    kind = (type(node), *output_shapes(node), *separated.owners)
    if kind not in _adds_up:
        _adds_up[kind] = _is_sum(rows, separated.of_all())
    if not _adds_up[kind]:
        rows = _one_by_one(separated.of_example, unit_K)
    return rows


def _is_sum(rows: Sequence[tuple[Tensor, ...]], whole: Sequence[Tensor]) -> bool:
    """Whether the examples' gradients add up to those of one whole backward.

    Some of torch's own rules for batching a backward are wrong, as that of cdist.
    """
    for chunks, total in zip(zip(*rows, strict=True), whole, strict=True):
        added = torch.cat(chunks).sum(0)
        error = float(torch.linalg.vector_norm(added - total))
        eps = torch.finfo(total.dtype).eps
        # Half of the digits: 3.5e-4 in float32, where a wrong rule is off by 0.7 and
        # more.
        if error > eps**0.5 * float(torch.linalg.vector_norm(total)):
            return False
    return True


def _units(context: RuleContext, owners: Mapping[int, Tensor]) -> Tensor:
    """Return the units that own anything, which may be few of many."""
    if not context.owners:
        device = next(iter(owners.values())).device
        return torch.arange(context.num_samples, device=device)
    # Example: an expert with tokens of 3 among 256 units is run 3 times, not 256.
    unit_K = torch.cat([owner.flatten() for owner in owners.values()]).unique()
    owned_K: Tensor = unit_K[unit_K >= 0]
    return owned_K


def _of_units(grads_KP: Tensor, unit_K: Tensor, context: RuleContext) -> GradPart:
    part = MaterializedGrads(grads_KP)
    if not context.owners:
        return part
    return by_unit(part, RowGroups(unit_K, context.num_samples))


def _rows_of_examples(
    of_example: Callable[[Tensor], tuple[Tensor, ...]], unit_K: Tensor, step: int
) -> list[tuple[Tensor, ...]]:
    """Return chunks of rows by operand, batched where torch can do that."""
    try:
        return [_batched(of_example, chunk) for chunk in unit_K.split(step)]
    except RuntimeError:  # An operation that torch.vmap cannot batch.
        return _one_by_one(of_example, unit_K)


def _one_by_one(
    of_example: Callable[[Tensor], tuple[Tensor, ...]], unit_K: Tensor
) -> list[tuple[Tensor, ...]]:
    # Chunks of one example each.
    return [tuple(grad[None] for grad in of_example(unit)) for unit in unit_K]


def _batched(
    of_example: Callable[[Tensor], tuple[Tensor, ...]], index_B: Tensor
) -> tuple[Tensor, ...]:
    with warnings.catch_warnings():
        # vmap warns where it loops over the examples, which is what happens anyway.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        rows: tuple[Tensor, ...] = torch.vmap(of_example)(index_B)
    return rows


def _or_zeros(context: RuleContext, position: int, grad: Tensor | None) -> Tensor:
    """Return a gradient in the operand's shape: zeros if the node returned None."""
    operand = context.operands[position]
    if grad is None:
        return torch.zeros(operand.shape, device=operand.parameters[0].device)
    return grad.sum_to_size(operand.shape)  # As autograd does for broadcast inputs.


def _check_separable(context: RuleContext, of_nobody: Sequence[Tensor]) -> None:
    """Raise if 0 times what the node holds is not 0.

    The backward for one example sends 0 to the others. Where another one holds NaN or
    infinity, 0 times it is NaN, which would be counted as the first example's.

    Args:
        context: The use.
        of_nobody: The operands' gradients for a gradient of zeros.
    """
    for grad in of_nobody:
        if not bool(grad.isfinite().all()):
            raise _inseparable(context.use.parameters)


def _inseparable(parameters: Sequence[Tensor]) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"NaN or infinity meets a parameter of shape {shapes_of(parameters)} in an operation"
        " without a rule, or in every example, so the examples' gradients cannot be told"
        " apart; clean the data before the forward pass, for example with"
        " torch.nan_to_num, or use operations that have rules"
    )


def _largest(context: RuleContext) -> int:
    places = context.owners or context.layouts
    outputs = sum(size(output_shape(context.use.node, i)) for i in places)
    return max(outputs, *(size(o.shape) for o in context.operands.values()))
