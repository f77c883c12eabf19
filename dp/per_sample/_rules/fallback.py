"""Gradients of operations that no rule serves.

Two ways, both exact: a backward pass of the operation alone for every example, or,
where its examples cannot be told apart, one of the whole graph.

Shapes: ``B`` examples.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from dp.exceptions import UnsupportedOperationError
from dp.per_sample._graph.nodes import (
    Node,
    by_input,
    materialized,
    output_shape,
    output_shapes,
    size,
)
from dp.per_sample._parts.part import MaterializedGrads
from dp.per_sample._rules.context import Grads, Parts, RuleContext


__all__ = ("by_graph", "by_node")

_BYTES_AT_ONCE: Final = 32 << 20
_ROWS_AT_ONCE: Final = 16  # Examples whose backward through the graph runs together.


def by_node(site: RuleContext, grads: Grads) -> Parts:
    """Return whole gradients by one backward pass of the node for each example.

    Raises:
        UnsupportedOperationError: If 0 times what the node holds is not 0.
    """
    node, B = site.use.node, site.num_samples
    positions = list(site.operands)
    grads = [*grads, *[None] * (len(output_shapes(node)) - len(grads))]
    owners = {
        i: site.owners[i].as_rows(grad.dim(), B, grad.device)
        for i, grad in enumerate(grads)
        if grad is not None
    }

    def of_example(example: Tensor) -> tuple[Tensor, ...]:
        masked = [
            None if grad is None else torch.where(owners[i] == example, grad, 0)
            for i, grad in enumerate(grads)
        ]
        found = _called(node, masked)
        return tuple(
            _or_zeros(site, position, found[position]) for position in positions
        )

    if B > 1:
        _check_separable(site, of_example(torch.tensor(-1, device=_device(owners))))
    index_B = torch.arange(B, device=_device(owners))
    chunk = max(1, _BYTES_AT_ONCE // (8 * _largest(site) or 1))
    try:
        chunks = [_batched(of_example, some) for some in index_B.split(chunk)]
    except RuntimeError:  # An operation that torch.vmap cannot batch.
        chunks = [
            tuple(grad[None] for grad in of_example(example)) for example in index_B
        ]
    columns = zip(*chunks, strict=True)
    return {
        position: MaterializedGrads(torch.cat(column))
        for position, column in zip(positions, columns, strict=True)
    }


def _batched(
    of_example: Callable[[Tensor], tuple[Tensor, ...]], index_B: Tensor
) -> tuple[Tensor, ...]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        found: tuple[Tensor, ...] = torch.vmap(of_example)(index_B)
    return found


def _or_zeros(site: RuleContext, position: int, found: Tensor | None) -> Tensor:
    """Return a gradient in the operand's shape; zeros if the node has none."""
    operand = site.operands[position]
    if found is None:
        return torch.zeros(operand.shape, device=operand.parameters[0].device)
    return found.sum_to_size(operand.shape)  # As autograd does for broadcast inputs.


def _called(node: Node, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Run a node's own backward, without the rest of the graph."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return by_input(node, node.apply(*materialized(node, grads)))
    found: Any = node(*grads)
    return found if isinstance(found, tuple) else (found,)


def _check_separable(site: RuleContext, found: Sequence[Tensor]) -> None:
    """Raise if 0 times what the node holds is not 0.

    A backward pass for one example sends 0 to the others. Where one of them holds
    NaN or infinity, 0 times it is NaN, and that would be counted as the first one's.
    """
    for grad in found:
        if not bool(grad.isfinite().all()):
            raise _inseparable(site.use.parameters)


def _inseparable(parameters: Sequence[Tensor]) -> UnsupportedOperationError:
    shapes = ", ".join(str(tuple(parameter.shape)) for parameter in parameters)
    return UnsupportedOperationError(
        f"NaN or infinity meets a parameter of shape {shapes} in an operation without a"
        " rule, or in every example, so that the other examples' gradients cannot be"
        " told from its own; clean the data before the forward pass, as by"
        " torch.nan_to_num, or use operations that have rules"
    )


def _device(owners: dict[int, Tensor]) -> torch.device:
    return next(iter(owners.values())).device


def _largest(site: RuleContext) -> int:
    outputs = sum(size(output_shape(site.use.node, i)) for i in site.layouts)
    return max(outputs, *(size(o.shape) for o in site.operands.values()))


def by_graph(
    losses_B: Tensor, parameters: Sequence[Tensor], *, loss_scale: float
) -> dict[int, MaterializedGrads]:
    """Return whole gradients by one backward pass an example, several at a time."""
    found = torch.autograd.grad(
        losses_B,
        parameters,
        torch.zeros_like(losses_B),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    for parameter, grad in zip(parameters, found, strict=True):
        if len(losses_B) > 1 and not bool(grad.isfinite().all()):
            raise _inseparable([parameter])
    try:
        rows = _rows(losses_B, parameters, loss_scale, batched=True)
    except RuntimeError:  # An operation that torch.vmap cannot batch.
        rows = _rows(losses_B, parameters, loss_scale, batched=False)
    return {
        id(p): MaterializedGrads(grads)
        for p, grads in zip(parameters, rows, strict=True)
    }


def _rows(
    losses_B: Tensor,
    parameters: Sequence[Tensor],
    loss_scale: float,
    *,
    batched: bool,
) -> list[Tensor]:
    one_hot_BB = torch.eye(len(losses_B), dtype=losses_B.dtype, device=losses_B.device)
    seeds_BB = one_hot_BB * loss_scale
    chunks = []
    for seeds in seeds_BB.split(_ROWS_AT_ONCE) if batched else seeds_BB:
        found = torch.autograd.grad(
            losses_B,
            parameters,
            seeds,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
            materialize_grads=True,
        )
        chunks.append([g if batched else g[None] for g in found])
    return [torch.cat(column) for column in zip(*chunks, strict=True)]
