"""Gradients of a parameter that reach it through its own computation.

Shapes: ``B`` examples.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.per_sample._graph.nodes import Node, name_of
from dp.per_sample._graph.uses import Operand
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import (
    GradPart,
    MaterializedGrads,
    chunk_bytes,
    chunked_norms,
    chunks,
    wide,
)


__all__ = ("SlicedGrads", "parts_of_parameters", "transposed_back")

_MATRIX = 2


def parts_of_parameters(
    part: GradPart, operand: Operand, num_samples: int
) -> list[tuple[Tensor, GradPart]]:
    """Return what the gradients of an operand add to those of its parameters."""
    if operand.chain == []:
        return [(operand.parameters[0], part)]
    if operand.chain is None or isinstance(part, SlicedGrads):
        return _derived(part, operand, num_samples)
    (parameter,) = operand.parameters
    if isinstance(part, FactoredGrads) and _is_transposed(operand):
        return [(parameter, part.transposed())]
    if _is_cast(operand):
        return [(parameter, part)]
    return [(parameter, ViewGrads(part, operand))]


def _is_transposed(operand: Operand) -> bool:
    """Whether the operand is its parameter, a matrix, with the axes exchanged."""
    parameter = operand.parameters[0]
    if parameter.dim() != _MATRIX or parameter.numel() == 0:
        return False
    if operand.chain and [name_of(node) for node, _ in operand.chain] == ["TBackward0"]:
        return True
    view = operand.seen_in(parameter.detach())
    return view.shape == parameter.mT.shape and view.stride() == parameter.mT.stride()


def _is_cast(operand: Operand) -> bool:
    """Whether the operand is its parameter in another dtype, and nothing else."""
    chain = operand.chain or ()
    return {name_of(node) for node, _ in chain} == {"ToCopyBackward0"}


def transposed_back(part: GradPart) -> GradPart:
    """Return kept gradients of a transposed parameter as its own, to look up rows.

    All of them lie in memory as the operand's do, in which order norms and sums read
    them several times as fast.
    """
    if (
        isinstance(part, ViewGrads)
        and isinstance(part.inner, MaterializedGrads)
        and _is_transposed(part.operand)
    ):
        return part.inner.transposed()
    return part


@final
class ViewGrads(GradPart):
    """Gradients of an operand that is a view of its parameter."""

    def __init__(self, inner: GradPart, operand: Operand) -> None:
        self.inner = inner
        self.operand = operand
        self.parameter = operand.parameters[0]

    def squared_norms(self) -> Tensor:
        return self.inner.squared_norms()  # A view takes no element twice.

    def gradients(self, examples: slice) -> Tensor:
        inner = self.inner.gradients(examples)
        result = inner.new_zeros(len(inner), *self.parameter.shape)
        for one, grad in zip(result, inner, strict=True):
            self.operand.seen_in(one).copy_(grad)
        return result

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        view = self.operand.seen_in(total)
        if not beta and view.numel() < total.numel():
            total.zero_()
        self.inner.add_weighted_sum(factors_B, view, beta=beta)

    def mask_examples(self, bad_B: Tensor) -> GradPart:
        return ViewGrads(self.inner.mask_examples(bad_B), self.operand)


@final
class SlicedGrads(GradPart):
    """Gradients of an operand of which every example has a slice of its own.

    Args:
        inner: The gradients of the examples' slices, one slice each.
        shape: Of the whole operand.
        axis: The operand's axis, from the front, that the examples share: each has
            consecutive entries.
    """

    def __init__(self, inner: GradPart, shape: Sequence[int], axis: int) -> None:
        self.inner = inner
        self.shape = shape
        self.axis = axis

    def squared_norms(self) -> Tensor:
        return self.inner.squared_norms()

    def gradients(self, examples: slice) -> Tensor:
        inner = self.inner.gradients(examples)
        result = inner.new_zeros(len(inner), *self.shape)
        length = inner.shape[1 + self.axis]
        for i, (one, grad) in enumerate(zip(result, inner, strict=True)):
            start = ((examples.start or 0) + i) * length
            one.narrow(self.axis, start, length).copy_(grad)
        return result

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        inner = self.inner.gradients(slice(None)).to(total.dtype)
        factors = factors_B.to(total.dtype).view(-1, *[1] * (inner.dim() - 1))
        weighted = (inner * factors).movedim(0, self.axis).reshape(self.shape)
        total.copy_(total + weighted if beta else weighted)

    def mask_examples(self, bad_B: Tensor) -> GradPart:
        return SlicedGrads(self.inner.mask_examples(bad_B), self.shape, self.axis)


@final
class ReparametrizedGrads(GradPart):
    """Gradients of an operand, taken further back to one of its parameters."""

    def __init__(
        self, inner: GradPart, operand: Operand, parameter: Tensor, num_samples: int
    ) -> None:
        self.inner = inner
        self.operand = operand
        self.parameter = parameter
        self.num_samples = num_samples

    def squared_norms(self) -> Tensor:
        size = max(self.parameter.numel(), _size(self.operand))
        return chunked_norms([self], self.num_samples, size, self.parameter.device)

    def gradients(self, examples: slice) -> Tensor:
        (grads,) = _backward(
            self.operand, [self.parameter], self.inner.gradients(examples), batched=True
        )
        return wide(grads)

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        shape = self.operand.shape
        inner_total = torch.empty(shape, dtype=total.dtype, device=total.device)
        self.inner.add_weighted_sum(factors_B, inner_total, beta=0)
        (grad,) = _backward(self.operand, [self.parameter], inner_total, batched=False)
        total.copy_(total + grad if beta else grad)

    def mask_examples(self, bad_B: Tensor) -> GradPart:
        return ReparametrizedGrads(
            self.inner.mask_examples(bad_B),
            self.operand,
            self.parameter,
            self.num_samples,
        )


def _derived(
    part: GradPart, operand: Operand, num_samples: int
) -> list[tuple[Tensor, GradPart]]:
    """Keep the parameters' gradients if they are smaller than the operand's."""
    parameters = operand.parameters
    size = sum(parameter.numel() for parameter in parameters)
    if len(parameters) == 1 or size > _size(operand):
        return [
            (p, ReparametrizedGrads(part, operand, p, num_samples)) for p in parameters
        ]
    columns: list[list[Tensor]] = [[] for _ in parameters]
    at_most = chunk_bytes(parameters[0].device)
    for examples in chunks(num_samples, 4 * _size(operand), at_most):
        grads = _backward(operand, parameters, part.gradients(examples), batched=True)
        for column, grad in zip(columns, grads, strict=True):
            column.append(grad)
    return [
        (p, MaterializedGrads(torch.cat(column)))
        for p, column in zip(parameters, columns, strict=True)
    ]


def _backward(
    operand: Operand, parameters: Sequence[Tensor], grads: Tensor, *, batched: bool
) -> Sequence[Tensor]:
    """Take gradients of the operand back to parameters, for one or all of a batch."""
    found: Sequence[Tensor] = torch.autograd.grad(
        [GradientEdge(*operand.edge)],
        parameters,
        [grads.to(_dtype(*operand.edge))],
        retain_graph=True,
        is_grads_batched=batched,
    )
    return found


def _dtype(node: Node, index: int) -> torch.dtype:
    dtype: torch.dtype = node._input_metadata[index].dtype  # noqa: SLF001 -- see _nodes
    return dtype


def _size(operand: Operand) -> int:
    size = 1
    for length in operand.shape:
        size *= length
    return size
