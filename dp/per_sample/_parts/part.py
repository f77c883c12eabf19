"""Representations of one use's contribution to the per-example gradients.

A part knows the per-example gradients of one use without necessarily holding them:
small ones are materialized, those of a matrix product are two thin factors ("ghost
clipping": Goodfellow, https://arxiv.org/abs/1510.01799; Li et al.,
https://arxiv.org/abs/2110.05679), and those of a large convolution are computed again,
a few examples at a time. Norms and weighted sums come from the same part, as in the
book-keeping of Bu et al. (https://arxiv.org/abs/2210.00038), so that one backward pass
is enough.

Shapes: ``B`` examples, ``P`` elements of a parameter, ``N`` blocks of a row.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, final

import torch
from torch import Tensor

from dp import _tuning


__all__ = (
    "LOST_BY_PRODUCT",
    "GradPart",
    "MaterializedGrads",
    "chunk_bytes",
    "chunked_norms",
    "chunks",
    "loses_small_factors",
    "may_lose_unseen",
    "rounded_up",
    "squared_norms",
    "wide",
    "zeroed",
)

# Elements that one float32 reduction may run over: its relative error grows with them.
_ROW: Final = 4096
# Squares below float32's range, of which 4096 are lost, times this are 3e-18 at most.
_LARGEST_SQUARE: Final = 2.0**80
# What a float32 product that is too small for a normal number lacks, at most.
LOST_BY_PRODUCT: Final = 2.0**-126


class GradPart(ABC):
    """The gradients of all examples that pass through one use of a parameter."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Return the squared norm of each example's gradient, of shape [B]."""

    @abstractmethod
    def gradients(self, examples: slice) -> Tensor:
        """Return the gradients of a slice of the examples, one row each."""

    @abstractmethod
    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        """Set *total* to *beta* times itself plus the gradients times the factors.

        Args:
            factors_B: Each example's factor.
            total: In float32 or float64. With a *beta* of 0 it may hold anything.
            beta: 0 or 1.
        """

    def factors_of_transposed(self) -> "GradPart | None":
        """Return the gradients of the transposed operand, if they are two factors."""
        return None

    def owned_by(self, unit_B: Tensor, num_units: int) -> "GradPart | None":  # noqa: ARG002 -- for parts that can
        """Return the gradients of units, if the part can hold examples in any order.

        Args:
            unit_B: The unit of each example; a negative number if it is nobody's.
            num_units: The number of units.
        """
        return None

    @abstractmethod
    def mask_examples(self, mask_B: Tensor) -> "GradPart":
        """Return the part with the gradients of the marked examples set to zero."""


@final
class MaterializedGrads(GradPart):
    """Gradients that are held in full.

    Args:
        grads_BP: The gradients.
        is_held_anyway: Whether another part holds the same tensor, so that dropping
            it here would free nothing.
    """

    def __init__(self, grads_BP: Tensor, *, is_held_anyway: bool = False) -> None:
        self.grads_BP = grads_BP
        self.is_held_anyway = is_held_anyway
        # A bias may give its norms to a weight as well: see FactoredGrads.
        self._norms_B: Tensor | None = None

    def squared_norms(self) -> Tensor:
        if self._norms_B is None:
            self._norms_B = squared_norms(self.grads_BP)
        return self._norms_B

    def gradients(self, examples: slice) -> Tensor:
        return wide(self.grads_BP[examples])

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        grads_BP = self.grads_BP.reshape(self.grads_BP.shape[0], -1).to(total.dtype)
        factors_B = factors_B.to(total.dtype)
        # addmv_ writes into the sum; with a beta of 0 it reads nothing, not even NaN.
        if total.is_contiguous():
            total.view(-1).addmv_(grads_BP.T, factors_B, beta=beta)
        else:
            # A sum that is seen through a transposed view, as a parameter's operand may
            # be.
            weighted = (factors_B @ grads_BP).view(total.shape)
            total.copy_(total + weighted if beta else weighted)

    def mask_examples(self, mask_B: Tensor) -> "MaterializedGrads":
        return MaterializedGrads(zeroed(self.grads_BP, mask_B))

    def transposed(self) -> "MaterializedGrads":
        """Return the gradients of the transposed operand."""
        return MaterializedGrads(self.grads_BP.mT)

    def stacked_sums(self, factors_LB: Tensor) -> Tensor:
        """Return the weighted sums of L layers whose examples are concatenated."""
        L, B = factors_LB.shape
        grads_LBP = wide(self.grads_BP).reshape(L, B, -1)
        # [L, 1, B] @ [L, B, P]: a sum over the examples of each layer.
        factors_L1B = factors_LB[:, None].to(grads_LBP.device, grads_LBP.dtype)
        sums_LP = factors_L1B @ grads_LBP
        return sums_LP.view(L, *self.grads_BP.shape[1:])


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is in float64 or complex."""
    if tensor.dtype in (torch.float32, torch.float64) or tensor.is_complex():
        return tensor
    return tensor.float()


def squared_norms(grads_BP: Tensor) -> Tensor:
    """Return the squared norm of each row, in float32 at least.

    Long rows are reduced in two stages: a single float32 reduction over 12.8 million
    elements was measured 5e-4 too small, which would break the clipping bound.
    """
    length = math.prod(grads_BP.shape[1:])
    rows_BP = grads_BP.reshape(grads_BP.shape[0], length)
    if length <= _ROW:
        return _squared_norms(rows_BP)
    # Example: rows of 10000 elements are 2 blocks of 4096, of which each is reduced by
    # itself, and 1808 that are left.
    in_blocks = length // _ROW * _ROW
    squares_BN = _squared_norms(rows_BP[:, :in_blocks].unflatten(1, (-1, _ROW)))
    total_B = squares_BN.sum(1)
    if in_blocks < length:
        total_B += _squared_norms(rows_BP[:, in_blocks:])
    return total_B


def _squared_norms(rows: Tensor) -> Tensor:
    """Return the squared norms over the last axis."""
    # An accelerator widens while it reads; the host is faster if that is done before.
    rows = wide(rows) if rows.is_cpu else rows
    dtype = torch.float32 if rows.itemsize < 4 else None  # noqa: PLR2004 -- bytes
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=dtype)
    return norms.square_()


def loses_small_factors(*squares: Tensor) -> bool:
    """Whether the product of such squared norms may be too small in float32.

    Example: of ``x = 1e-23`` and ``g = 1e19`` the gradient is 1e-4, but ``x * x`` is 0 in
    float32, and so is ``|x|^2 |g|^2``. Float64 has room for both squares.

    Not asked on an accelerator, which would have to wait for the answer: there
    :func:`rounded_up` takes what may be lost for lost.

    Args:
        squares: Squared norms of the factors, of any shape.
    """
    if squares[0].dtype == torch.float64 or is_far(squares[0]):
        return False
    # NaN is not at most anything: then the others are computed again as well.
    return not all(float(one.max()) <= _LARGEST_SQUARE for one in squares)


def may_lose_unseen(squares: Tensor) -> bool:
    """Whether small factors may be lost, and asking would wait for an accelerator."""
    return squares.dtype != torch.float64 and is_far(squares)


def is_far(tensor: Tensor) -> bool:
    """Whether reading a number of *tensor* would wait for an accelerator."""
    return not tensor.is_cpu


def rounded_up(squares: Tensor, length: int) -> Tensor:
    """Return squared norms that are no smaller than they are, whatever was lost of them.

    Example: of 40 elements of 1e-23 the squares are 0 in float32, and 5e-37 stands for
    them. To a sum of 1e-29 or more it adds nothing.

    Args:
        squares: Squared norms of one factor of a product.
        length: Of how many squares each is the sum, at most.
    """
    if not may_lose_unseen(squares):
        return squares
    return squares + length * LOST_BY_PRODUCT


def chunked_norms(
    parts: Sequence[GradPart], num_samples: int, size: int, device: torch.device
) -> Tensor:
    """Return the squared norms of the sum of parts, a few examples at a time.

    Args:
        parts: Of one parameter.
        num_samples: The number of examples.
        size: The number of elements of one example's gradient.
        device: Where the gradients are.
    """
    norms = []
    for examples in chunks(num_samples, 4 * size, chunk_bytes(device)):
        gradients = parts[0].gradients(examples)
        # Uses are added before they are squared: the norm is of the whole gradient.
        for part in parts[1:]:
            gradients = gradients + part.gradients(examples)
        norms.append(squared_norms(gradients))
    return torch.cat(norms)


def chunk_bytes(device: torch.device) -> int:
    """Return how many bytes a chunk of gradients may take on a device."""
    return _tuning.CHUNK_BYTES.get(device.type, _tuning.ACCELERATOR_CHUNK_BYTES)


def chunks(num_samples: int, bytes_each: int, at_most: int) -> list[slice]:
    """Return slices of the examples that take at most *at_most* bytes each."""
    # One example at least, however large its gradient is.
    step = max(1, at_most // max(1, bytes_each))
    return [slice(i, i + step) for i in range(0, num_samples, step)]


def zeroed(rows: Tensor, mask_B: Tensor) -> Tensor:
    """Return *rows* with those of the marked examples set to zero.

    They are filled, not multiplied by zero: a row may be NaN or infinite.
    """
    return rows.masked_fill(mask_B.view(-1, *[1] * (rows.dim() - 1)), 0)
