"""What the uses of a parameter add to every example's gradient.

A part knows the per-example gradients of one use without necessarily holding them:
small ones are kept, those of a matrix product are two thin factors, and those of a
large convolution are computed again, a few examples at a time.

Shapes: ``B`` examples, ``T`` positions of an example, ``I`` inputs and ``O`` outputs
of a linear map, ``D`` embedding dimensions, ``P`` elements of a parameter.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Final, final

import torch
from torch import Tensor


__all__ = (
    "Convolution",
    "Embedding",
    "Kept",
    "Outer",
    "Part",
    "joint_squared_norms",
    "squared_norms",
    "wide",
)

_ROW: Final = 4096  # Elements that one floating-point reduction may run over.
_CHUNK_BYTES: Final = 8 << 20
# A Gram norm is a difference of large numbers where gradients cancel over positions.
_GRAM_MARGIN: Final = 4.0


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def squared_norms(grads_BP: Tensor) -> Tensor:
    """Return the squared norm of each row, in float32 at least.

    Long rows are reduced in two stages: a single float32 reduction over 12.8 million
    elements was measured 5e-4 too small, which would break the clipping bound.
    """
    rows_BP = wide(grads_BP).reshape(len(grads_BP), -1)
    whole = rows_BP.shape[1] // _ROW * _ROW
    norms_BN = torch.linalg.vector_norm(
        rows_BP[:, :whole].unflatten(1, (-1, _ROW)), dim=2
    )
    rest_B = torch.linalg.vector_norm(rows_BP[:, whole:], dim=1)
    total_B: Tensor = norms_BN.square().sum(1) + rest_B.square()
    return total_B


class Part(ABC):
    """The gradients of all examples that pass through one use of a parameter."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Return the squared norm of each example's gradient, of shape [B]."""

    @abstractmethod
    def gradients(self, examples: slice) -> Tensor:
        """Return the gradients of some examples, one row each."""

    @abstractmethod
    def add_weighted_sum(self, factors_B: Tensor, total: Tensor) -> None:
        """Add the gradients times the factors to *total*, in place."""

    @abstractmethod
    def without(self, bad_B: Tensor) -> "Part":
        """Return the part with the gradients of some examples set to zero."""


@final
class Kept(Part):
    """Gradients that are held in full."""

    def __init__(self, grads_BP: Tensor) -> None:
        self.grads_BP = grads_BP

    def squared_norms(self) -> Tensor:
        return squared_norms(self.grads_BP)

    def gradients(self, examples: slice) -> Tensor:
        return wide(self.grads_BP[examples])

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor) -> None:
        grads_BP = self.grads_BP.reshape(len(self.grads_BP), -1).to(total.dtype)
        total.view(-1).addmv_(grads_BP.T, factors_B.to(total.dtype))

    def without(self, bad_B: Tensor) -> Part:
        return Kept(_zeroed(self.grads_BP, bad_B))


@final
class Outer(Part):
    """Gradients ``g.T @ a`` of a linear map, held as outputs' gradients and inputs."""

    def __init__(self, a_BTI: Tensor, g_BTO: Tensor, *, transposed: bool) -> None:
        self.a_BTI = wide(a_BTI)
        self.g_BTO = wide(g_BTO)
        self.transposed = transposed  # The parameter is [I, O] rather than [O, I].

    def squared_norms(self) -> Tensor:
        _, T, num_inputs = self.a_BTI.shape
        num_outputs = self.g_BTO.shape[2]
        if T == 1:
            return squared_norms(self.a_BTI) * squared_norms(self.g_BTO)
        if T * (num_inputs + num_outputs) < num_inputs * num_outputs:
            return self._gram_norms()
        return _chunked_norms([self], len(self.a_BTI), num_inputs * num_outputs)

    def _gram_norms(self) -> Tensor:
        B, T, _ = self.a_BTI.shape
        norms = []
        for examples in _chunks(B, 2 * T * T * self.a_BTI.element_size()):
            a_BTI, g_BTO = self.a_BTI[examples], self.g_BTO[examples]
            product_BTT = (a_BTI @ a_BTI.mT) * (g_BTO @ g_BTO.mT)
            lengths_BT = a_BTI.norm(dim=2) * g_BTO.norm(dim=2)
            eps = torch.finfo(a_BTI.dtype).eps
            margin_B = _GRAM_MARGIN * eps * lengths_BT.sum(1).square()
            norms.append(product_BTT.sum(2).sum(1).clamp(min=0) + margin_B)
        return torch.cat(norms)

    def gradients(self, examples: slice) -> Tensor:
        a_BTI, g_BTO = self.a_BTI[examples], self.g_BTO[examples]
        return a_BTI.mT @ g_BTO if self.transposed else g_BTO.mT @ a_BTI

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor) -> None:
        a_BTI, g_BTO = self.a_BTI.to(total.dtype), self.g_BTO.to(total.dtype)
        factors_B11 = factors_B.to(total.dtype)[:, None, None]
        if g_BTO.shape[2] <= a_BTI.shape[2]:
            g_BTO = g_BTO * factors_B11
        else:
            a_BTI = a_BTI * factors_B11
        a_RI, g_RO = a_BTI.flatten(0, 1), g_BTO.flatten(0, 1)
        left, right = (a_RI, g_RO) if self.transposed else (g_RO, a_RI)
        total.view(left.shape[1], right.shape[1]).addmm_(left.T, right)

    def without(self, bad_B: Tensor) -> Part:
        return Outer(
            _zeroed(self.a_BTI, bad_B),
            _zeroed(self.g_BTO, bad_B),
            transposed=self.transposed,
        )


@final
class Convolution(Part):
    """Gradients of a convolution's kernel, computed when they are asked for."""

    def __init__(
        self,
        inputs: Tensor,
        grads: Tensor,
        kernel: Tensor,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self.inputs = wide(inputs)
        self.grads = wide(grads)
        self.kernel = kernel
        self.stride = list(stride)
        self.padding = list(padding)
        self.dilation = list(dilation)
        self.groups = groups

    def squared_norms(self) -> Tensor:
        return _chunked_norms([self], len(self.inputs), self.kernel.numel())

    def gradients(self, examples: slice) -> Tensor:
        # Examples become groups of one convolution over a single example.
        inputs, grads = self.inputs[examples], self.grads[examples]
        B, num_outputs = grads.shape[:2]
        shape = (B * num_outputs, *self.kernel.shape[1:])
        by_example = self._backward(
            inputs.reshape(1, -1, *inputs.shape[2:]),
            grads.reshape(1, -1, *grads.shape[2:]),
            grads.new_empty(()).expand(shape),
            groups=self.groups * B,
        )
        return by_example.view(B, *self.kernel.shape)

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor) -> None:
        factors = factors_B.to(self.grads.dtype).view(-1, *[1] * (self.grads.dim() - 1))
        kernel = self.kernel.detach().to(self.grads.dtype)
        grads = self.grads * factors
        total += self._backward(self.inputs, grads, kernel, groups=self.groups)

    def _backward(
        self, inputs: Tensor, grads: Tensor, kernel: Tensor, *, groups: int
    ) -> Tensor:
        result: tuple[Tensor | None, Tensor, Tensor | None]
        result = torch.ops.aten.convolution_backward(
            grads,
            inputs,
            kernel,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,  # noqa: FBT003 -- not transposed, torch's signature
            [0] * len(self.stride),
            groups,
            [False, True, False],
        )
        return result[1]

    def without(self, bad_B: Tensor) -> Part:
        return Convolution(
            _zeroed(self.inputs, bad_B),
            _zeroed(self.grads, bad_B),
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


@final
class Embedding(Part):
    """Gradients of an embedding: each example touches the rows that it looks up."""

    def __init__(self, indices_BT: Tensor, g_BTD: Tensor, num_rows: int) -> None:
        self.indices_BT = indices_BT
        self.g_BTD = wide(g_BTD)
        self.num_rows = num_rows

    def squared_norms(self) -> Tensor:
        B = len(self.indices_BT)
        example_B1 = torch.arange(B, device=self.indices_BT.device)[:, None]
        keys = (self.indices_BT + example_B1 * self.num_rows).flatten()
        touched, where = keys.unique(return_inverse=True)
        rows = self.g_BTD.new_zeros(len(touched), self.g_BTD.shape[2])
        rows.index_add_(0, where, self.g_BTD.flatten(0, 1))
        return self.g_BTD.new_zeros(B).index_add_(
            0, touched // self.num_rows, squared_norms(rows)
        )

    def gradients(self, examples: slice) -> Tensor:
        indices_BT, g_BTD = self.indices_BT[examples], self.g_BTD[examples]
        B, _, D = g_BTD.shape
        return g_BTD.new_zeros(B, self.num_rows, D).scatter_add_(
            1, indices_BT[..., None].expand(-1, -1, D), g_BTD
        )

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor) -> None:
        weighted_BTD = (self.g_BTD * factors_B[:, None, None]).to(total.dtype)
        total.index_add_(0, self.indices_BT.flatten(), weighted_BTD.flatten(0, 1))

    def without(self, bad_B: Tensor) -> Part:
        return Embedding(self.indices_BT, _zeroed(self.g_BTD, bad_B), self.num_rows)


def joint_squared_norms(parts: Sequence[Part], num_samples: int, size: int) -> Tensor:
    """Return the squared norms of the sum of several uses, cross terms included."""
    if len(parts) == 1:
        return parts[0].squared_norms()
    return _chunked_norms(parts, num_samples, size)


def _chunked_norms(parts: Sequence[Part], num_samples: int, size: int) -> Tensor:
    norms = []
    for examples in _chunks(num_samples, 4 * size):
        gradients = [part.gradients(examples) for part in parts]
        norms.append(squared_norms(reduce(torch.add, gradients)))
    return torch.cat(norms)


def _chunks(num_samples: int, bytes_each: int) -> list[slice]:
    step = max(1, _CHUNK_BYTES // max(1, bytes_each))
    return [slice(i, i + step) for i in range(0, num_samples, step)]


def _zeroed(rows: Tensor, bad_B: Tensor) -> Tensor:
    return rows.masked_fill(bad_B.view(-1, *[1] * (rows.dim() - 1)), 0)
