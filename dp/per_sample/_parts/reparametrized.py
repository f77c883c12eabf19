"""Gradients of a parameter of which a use takes something computed: a view, a cast, more.

A use meets an *operand*: the parameter itself, a view of it such as ``weight.T``, or
the result of a parametrization such as weight normalisation. What is known is the
gradient of the operand, and it has to be taken back to the parameter. Where that is
linear and costs nothing (views) it is done on the sum alone; otherwise each example's
gradient is taken back, several at a time.

Shapes: ``B`` examples.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.per_sample._graph.nodes import Node, name_of
from dp.per_sample._graph.uses import Operand
from dp.per_sample._isolation.ordinary_pass import without_hooks
from dp.per_sample._parts.part import (
    GradPart,
    MaterializedGrads,
    chunk_bytes,
    chunked_norms,
    chunks,
    wide,
)


__all__ = (
    "SlicedGrads",
    "parts_of_parameters",
    "transposed_back",
)

_MATRIX = 2
_WIDE = 4  # Bytes of float32.


def parts_of_parameters(
    part: GradPart, operand: Operand, num_samples: int
) -> list[tuple[Tensor, GradPart]]:
    """Return the parts of the parameters that an operand was computed from."""
    # The usual use: of the parameter itself.
    if operand.chain == []:
        return [(operand.parameters[0], part)]
    # A slice is of the operand as the use saw it, so it is taken back as a whole.
    if operand.chain is None or isinstance(part, SlicedGrads):
        return _through_autograd(part, operand, num_samples)
    (parameter,) = operand.parameters
    if _is_transposed(operand) and (factors := part.factors_of_transposed()):
        return [(parameter, factors)]
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
    # Other views may come to the same, as permute(1, 0): by shape and strides.
    view = operand.seen_in(parameter.detach())
    return view.shape == parameter.mT.shape and view.stride() == parameter.mT.stride()


def _is_cast(operand: Operand) -> bool:
    """Whether the operand is its parameter in another dtype, and otherwise unchanged."""
    chain = operand.chain or ()
    return {name_of(node) for node, _ in chain} == {"ToCopyBackward0"}


def transposed_back(part: GradPart) -> GradPart:
    """Return materialized gradients of a transposed parameter in its own orientation.

    They are a view: in memory they stay in the operand's order, in which norms and
    sums read them several times as fast. Only row look-ups need this orientation.
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
        return self.inner.squared_norms()  # A view holds no element twice.

    def gradients(self, examples: slice) -> Tensor:
        inner = self.inner.gradients(examples)
        result = inner.new_zeros(len(inner), *self.parameter.shape)
        for row, grad in zip(result, inner, strict=True):
            self.operand.seen_in(row).copy_(grad)
        return result

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        view = self.operand.seen_in(total)
        if not beta and view.numel() < total.numel():
            total.zero_()  # The elements that the view leaves out.
        self.inner.add_weighted_sum(factors_B, view, beta=beta)

    def mask_examples(self, mask_B: Tensor) -> GradPart:
        return ViewGrads(self.inner.mask_examples(mask_B), self.operand)


@final
class SlicedGrads(GradPart):
    """Gradients of an operand of which every example has a slice of its own.

    An instance norm over 2 images of 3 channels takes its weight repeated to [6]: the
    first 3 entries meet the first image only.

    Args:
        inner: The gradients of the examples' slices.
        shape: The shape of the whole operand.
        axis: The operand's axis, counted from the front, on which each example has
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
        for i, (row, grad) in enumerate(zip(result, inner, strict=True)):
            start = ((examples.start or 0) + i) * length
            row.narrow(self.axis, start, length).copy_(grad)
        return result

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        inner = self.inner.gradients(slice(None)).to(total.dtype)
        factors = factors_B.to(total.dtype).view(-1, *[1] * (inner.dim() - 1))
        # Slices [B, ..., L, ...] behind one another are the operand: [3] of each of 2
        # images is [6] for an instance norm of 3 channels.
        weighted = (inner * factors).movedim(0, self.axis).reshape(self.shape)
        total.copy_(total + weighted if beta else weighted)

    def mask_examples(self, mask_B: Tensor) -> GradPart:
        return SlicedGrads(self.inner.mask_examples(mask_B), self.shape, self.axis)


@final
class ReparametrizedGrads(GradPart):
    """Gradients of an operand, taken back to one of its parameters by autograd.

    Gradients come from a batched backward pass from the operand to the parameter. It
    is linear, so the weighted sum needs one pass only, unless the pass rounds to 16
    bits: the sum would be rounded in another way than the gradients whose norms it is
    clipped by, and one example was seen to contribute 1.0003 of the clipping norm.
    """

    def __init__(
        self, inner: GradPart, operand: Operand, parameter: Tensor, num_samples: int
    ) -> None:
        self.inner = inner
        self.operand = operand
        self.parameter = parameter
        self.num_samples = num_samples
        self._rounds = _rounds_to_16_bits(operand.edge[0])

    def squared_norms(self) -> Tensor:
        return chunked_norms(
            [self], self.num_samples, self._size(), self.parameter.device
        )

    def _size(self) -> int:
        return max(self.parameter.numel(), _size(self.operand))

    def gradients(self, examples: slice) -> Tensor:
        (grads,) = _backward(
            self.operand, [self.parameter], self.inner.gradients(examples)
        )
        return wide(grads)

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        if self._rounds:
            self._add_one_by_one(factors_B, total, beta=beta)
            return
        shape = self.operand.shape
        # The sum of the operand's gradients first, and then one pass back to the
        # parameter.
        inner_total = torch.empty(shape, dtype=total.dtype, device=total.device)
        self.inner.add_weighted_sum(factors_B, inner_total, beta=0)
        (grad,) = _backward_once(self.operand, [self.parameter], inner_total)
        total.copy_(total + grad if beta else grad)

    def _add_one_by_one(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        """Add the very gradients that the norms are of."""
        if not beta:
            total.zero_()
        at_most = chunk_bytes(self.parameter.device)
        for examples in chunks(self.num_samples, 4 * self._size(), at_most):
            grads = MaterializedGrads(self.gradients(examples))
            grads.add_weighted_sum(factors_B[examples], total, beta=1)

    def mask_examples(self, mask_B: Tensor) -> GradPart:
        return ReparametrizedGrads(
            self.inner.mask_examples(mask_B),
            self.operand,
            self.parameter,
            self.num_samples,
        )


def _rounds_to_16_bits(node: Node) -> bool:
    """Whether a backward pass from *node* meets a gradient of less than 32 bits."""
    seen: set[Node] = {None}  # In place of a node that needs no gradient.
    pending: list[Node] = [node]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        dtypes = [meta.dtype for meta in node._input_metadata]  # noqa: SLF001 -- see _nodes
        if any(d.is_floating_point and d.itemsize < _WIDE for d in dtypes):
            return True
        pending.extend(following for following, _ in node.next_functions)
    return False


def _through_autograd(
    part: GradPart, operand: Operand, num_samples: int
) -> list[tuple[Tensor, GradPart]]:
    """Return a part for each parameter, materialized if that is smaller.

    A low-rank product A @ B is larger than A and B together, so their gradients are
    held; a weight made of one parameter of its own size gains nothing by that. Sums
    are real, so gradients of complex operands are held as well.
    """
    parameters = operand.parameters
    size = sum(parameter.numel() for parameter in parameters)
    # LoRA with A [768, 8] and B [8, 768]: 12 288 elements an example are held, where
    # the gradient of the product would have 589 824.
    is_complex = _dtype(*operand.edge).is_complex  # Of real parameters.
    if not is_complex and (len(parameters) == 1 or size > _size(operand)):
        return [
            (p, ReparametrizedGrads(part, operand, p, num_samples)) for p in parameters
        ]
    columns: list[list[Tensor]] = [[] for _ in parameters]
    at_most = chunk_bytes(parameters[0].device)
    for examples in chunks(num_samples, 4 * _size(operand), at_most):
        grads = _backward(operand, parameters, part.gradients(examples))
        for column, grad in zip(columns, grads, strict=True):
            column.append(grad)
    return [
        (p, MaterializedGrads(torch.cat(column)))
        for p, column in zip(parameters, columns, strict=True)
    ]


def _backward(
    operand: Operand, parameters: Sequence[Tensor], grads_B: Tensor
) -> Sequence[Tensor]:
    """Return the gradients of the parameters, for a batch of gradients."""
    try:
        return _backward_once(operand, parameters, grads_B, batched=True)
    except RuntimeError:  # An operation that torch.vmap cannot batch.
        # One example after the other: slower, and the same.
        rows = [_backward_once(operand, parameters, grad) for grad in grads_B]
        return [torch.stack(column) for column in zip(*rows, strict=True)]


def _backward_once(
    operand: Operand,
    parameters: Sequence[Tensor],
    grads: Tensor,
    *,
    batched: bool = False,
) -> Sequence[Tensor]:
    # A hook may be no linear function: the sums would not be of what norms bounded.
    with without_hooks(parameters):
        result: Sequence[Tensor] = torch.autograd.grad(
            [GradientEdge(*operand.edge)],
            parameters,
            [grads.to(_dtype(*operand.edge))],
            retain_graph=True,
            is_grads_batched=batched,
        )
    return result


def _dtype(node: Node, index: int) -> torch.dtype:
    dtype: torch.dtype = node._input_metadata[index].dtype  # noqa: SLF001 -- see _nodes
    return dtype


def _size(operand: Operand) -> int:
    size = 1
    for length in operand.shape:
        size *= length
    return size
