"""Gradients of matrix products, held as their two factors.

A linear layer's gradient for one example is ``a.T @ g``, a [T, I] input times a [T, O]
output gradient. Its squared norm needs no I by O matrix:

    |a.T g|^2 = sum over s, t of (a a.T)[s, t] * (g g.T)[s, t]

which are two T by T Gram matrices (Li et al., https://arxiv.org/abs/2110.05679,
section 4). They are symmetric, so that a part of large ones is left out. The sum over
examples of ``factor * a.T @ g`` is one product over all rows.

Shapes: ``B`` examples, ``N`` independent products, ``T`` positions of an example,
``I`` by ``O`` the operand, ``R = B * T`` rows.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, final

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample._parts.part import (
    LOST_BY_PRODUCT,
    GradPart,
    MaterializedGrads,
    chunk_bytes,
    chunked_norms,
    chunks,
    loses_small_factors,
    may_lose_unseen,
    rounded_up,
    squared_norms,
    wide,
    zeroed,
)


__all__ = (
    "FactoredGrads",
    "concatenated",
    "gram_is_cheaper",
    "joint_gram_norms",
    "share_grams",
)

# Where gradients cancel over positions, the sum above is a small difference of large
# numbers, and may come out too small, which would break the clipping bound. Adding
# this many units in the last place of the terms' size keeps it an upper bound.
_GRAM_MARGIN: Final = 4.0
_ALIGNED: Final = 8  # Rows of a block, of which whole registers are full.


@final
class _Product:
    """The matrices ``x @ x.mT``, without entries that are equal to their mirror images.

    Of positions in three blocks, ``x = (a, b, c)``, the rows of each are held from its
    own columns on:

        a a.T    a b.T    a c.T
                 b b.T    b c.T
                          c c.T

    Args:
        factor: [..., T, I].
    """

    def __init__(self, factor: Tensor) -> None:
        T = factor.shape[-2]
        num_entries = math.prod(factor.shape[:-2]) * T * T
        # On an accelerator one large product takes no longer than several parts of it.
        pays = factor.is_cpu and num_entries >= _tuning.FEWEST_GRAM_ENTRIES
        num_blocks = max(1, T // _tuning.ROWS_OF_GRAM) if pays else 1
        # Example: 200 positions in 6 blocks that begin at 0, 32, 64, 96, 128 and 160.
        starts = [block * T // num_blocks & -_ALIGNED for block in range(num_blocks)]
        self.blocks = [
            factor[..., start:stop, :] @ factor[..., start:, :].mT
            for start, stop in zip(starts, [*starts[1:], T], strict=True)
            if num_blocks > 1
        ] or [factor @ factor.mT]  # Small ones, in which each call counts.

    def diagonal(self) -> Tensor:
        """Return [..., T] the squared lengths of all rows."""
        parts = [block.diagonal(dim1=-2, dim2=-1) for block in self.blocks]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def dot(self, other: "_Product") -> Tensor:
        """Return [...] the sum of the products of all entries."""
        totals = []
        for mine, its in zip(self.blocks, other.blocks, strict=True):
            totals.append(torch.linalg.vecdot(mine.flatten(-2), its.flatten(-2)))
            rows, columns = mine.shape[-2:]
            if columns > rows:  # What is left of them has the same products.
                mirrored = mine[..., rows:] * its[..., rows:]
                totals.append(mirrored.sum((-2, -1)))
        return totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)


@final
class _Gram:
    """Gram matrices of a factor that several parts hold, until the last has read them."""

    def __init__(self) -> None:
        self.num_parts = 0
        self._num_reads = 0
        self._product: _Product | None = None

    def of(self, factor: Tensor) -> _Product:
        product = _Product(factor) if self._product is None else self._product
        self._num_reads += 1
        is_last = self._num_reads % self.num_parts == 0
        self._product = None if is_last else product
        return product


@final
class FactoredGrads(GradPart):
    """Gradients ``left.mT @ right``, held as these two factors.

    Args:
        left: [B, T, I], or [B, N, T, I] for N matrices in one operand.
        right: [B, T, O] or [B, N, T, O].
        left_rows: The same tensor as *left* where it is another parameter's gradients
            too: the gradients of the outputs are also the bias's. Its norms are then
            computed once.
        right_rows: Likewise for *right*.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        *,
        left_rows: MaterializedGrads | None = None,
        right_rows: MaterializedGrads | None = None,
    ) -> None:
        self.left = left
        self.right = right
        self.left_rows = left_rows
        self.right_rows = right_rows
        self.grams: tuple[_Gram, _Gram] | None = None

    def transposed(self) -> "FactoredGrads":
        """Return the gradients of the transposed operand."""
        return FactoredGrads(
            self.right,
            self.left,
            left_rows=self.right_rows,
            right_rows=self.left_rows,
        )

    def factors_of_transposed(self) -> GradPart:
        return self.transposed()

    @property
    def has_gram_norms(self) -> bool:
        """Whether norms come from Gram matrices of several positions."""
        T, I = self.left.shape[-2:]  # noqa: E741 -- a shape suffix
        is_outer = T == 1 and self.left.dim() == 3  # noqa: PLR2004 -- [B, T, I]
        return not is_outer and gram_is_cheaper(T, I, self.right.shape[-1])

    def squared_norms(self) -> Tensor:
        T, I = self.left.shape[-2:]  # noqa: E741 -- a shape suffix
        O = self.right.shape[-1]  # noqa: E741 -- a shape suffix
        B = len(self.left)
        if T == 1 and self.left.dim() == 3:  # noqa: PLR2004 -- [B, T, I]
            left, right = self.left_rows, self.right_rows
            left_B = left.squared_norms() if left else squared_norms(self.left)
            right_B = right.squared_norms() if right else squared_norms(self.right)
            if loses_small_factors(left_B, right_B):
                left_B = squared_norms(self.left.double())
                right_B = squared_norms(self.right.double())
            # |x g^T|^2 = |x|^2 |g|^2.
            return rounded_up(left_B, I) * rounded_up(right_B, O)
        if self.has_gram_norms:
            return self._gram_norms()
        # The elements of N matrices.
        size = math.prod(self.left.shape[1:-2]) * I * O
        return chunked_norms([self], B, size, self.left.device)

    @property
    def kind_of_grams(self) -> Hashable | None:
        """What parts have in common whose Gram norms are found together; None if alone."""
        B, T = self.left.shape[:2]
        is_batch = self.left.dim() == 3 and not self.left.is_complex()  # noqa: PLR2004 -- [B, T, I]
        # What may be lost unseen is added to each by itself.
        if not is_batch or may_lose_unseen(self.left) or not self.has_gram_norms:
            return None
        if len(chunks(B, 8 * T * T, chunk_bytes(self.left.device))) > 1:
            return None
        return B, T, self.left.dtype, self.right.dtype, self.left.device

    def products(self) -> tuple[_Product, _Product]:
        """Return the Gram matrices of both factors, of all examples."""
        left, right = wide(self.left), wide(self.right)
        if self.grams:
            return self.grams[0].of(left), self.grams[1].of(right)
        return _Product(left), _Product(right)

    def _gram_norms(self) -> Tensor:
        B, T = len(self.left), self.left.shape[-2]
        num_products = math.prod(self.left.shape[1:-2])
        norms = []
        at_most = chunk_bytes(self.left.device)
        in_chunks = chunks(B, 8 * T * T * num_products, at_most)
        for examples in in_chunks:
            left, right = wide(self.left[examples]), wide(self.right[examples])
            # [b, T, T] or [b, N, T, T], as the other.
            product, other = (
                self.products()
                if len(in_chunks) == 1
                else (_Product(left), _Product(right))
            )
            of_left, of_right = product.diagonal(), other.diagonal()
            if loses_small_factors(of_left, of_right):
                product, other = _Product(left.double()), _Product(right.double())
                of_left, of_right = product.diagonal(), other.diagonal()
            squares = _at_least(product.dot(other), of_left, of_right)
            if may_lose_unseen(squares):
                squares = squares.add_(_lost(of_left, of_right, left, right))
            # [b] or [b, N]: of one product there is nothing to add up.
            norms.append(squares if squares.dim() == 1 else squares.flatten(1).sum(1))
        return norms[0] if len(norms) == 1 else torch.cat(norms)

    def gradients(self, examples: slice) -> Tensor:
        product: Tensor = wide(self.left[examples]).mT @ wide(self.right[examples])
        return product

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        left, right = self.left.to(total.dtype), self.right.to(total.dtype)
        # The thinner factor is scaled: fewer multiplications, and a smaller copy.
        factors = factors_B.to(total.dtype).view(-1, *[1] * (left.dim() - 1))
        if left.shape[-1] < right.shape[-1]:
            left = left * factors
        else:
            right = right * factors
        if left.dim() == 3:  # noqa: PLR2004 -- [B, T, I]
            # A sum over rows in any order: that in which the larger factor lies, so that
            # it is not copied. Recurrent layers and attention lie as [T, B, ...].
            larger = left if left.shape[-1] > right.shape[-1] else right
            if larger.stride(0) < larger.stride(1):
                left, right = left.transpose(0, 1), right.transpose(0, 1)
            left_RI, right_RO = left.flatten(0, 1), right.flatten(0, 1)
            total.addmm_(left_RI.T, right_RO, beta=beta)
            return
        # [B, N, T, I] to [N, B * T, I]: one product over all rows of all examples, for
        # each of the N matrices.
        left_NRI = left.transpose(0, 1).flatten(1, 2)
        right_NRO = right.transpose(0, 1).flatten(1, 2)
        total.baddbmm_(left_NRI.mT, right_NRO, beta=beta)

    def stacked_sums(self, factors_LB: Tensor) -> Tensor:
        """Return the weighted sums of L layers whose examples are concatenated."""
        L = len(factors_LB)
        left, right = wide(self.left), wide(self.right)
        factors = factors_LB.to(right.device, right.dtype)
        # [L, B] factors as [L * B, 1, 1], in the order in which layers were put
        # together.
        right = right * factors.reshape(-1, 1, 1)
        R = math.prod(left.shape[:-1]) // L
        left_LRI = left.reshape(L, R, left.shape[-1])
        return left_LRI.mT @ right.reshape(L, R, right.shape[-1])

    def mask_examples(self, mask_B: Tensor) -> "FactoredGrads":
        return FactoredGrads(zeroed(self.left, mask_B), zeroed(self.right, mask_B))


def joint_gram_norms(parts: Sequence[FactoredGrads]) -> Tensor:
    """Return [L, B] the squared norms of parts of one kind, by Gram matrices.

    The dozen calls that follow the products take as long for all parts as for one.
    """
    squares, lengths = [], []
    for part in parts:
        product, other = part.products()
        squares.append(product.dot(other))
        # A copy of [2, B, T] numbers, so that no matrix is held until the end.
        lengths.append(torch.stack([product.diagonal(), other.diagonal()]))
    of_left_LBT, of_right_LBT = torch.stack(lengths, 1)
    if loses_small_factors(of_left_LBT, of_right_LBT):
        return torch.stack([part.squared_norms() for part in parts])
    return _at_least(torch.stack(squares), of_left_LBT, of_right_LBT)


def _at_least(squares: Tensor, of_left: Tensor, of_right: Tensor) -> Tensor:
    """Return squared norms that rounding has not made smaller than they are.

    Args:
        squares: The sums of the products of two Gram matrices, which are overwritten.
        of_left: The squared lengths of the rows of one factor.
        of_right: Those of the other.
    """
    # By Cauchy-Schwarz no term is larger than the product of its rows' lengths.
    lengths = (of_left * of_right).sqrt_()
    eps = torch.finfo(squares.dtype).eps
    margin = lengths.sum(-1).square_().mul_(_GRAM_MARGIN * eps)
    # Example: two positions with x = (1, 0) both, and g and -g: 1 * |g|^2 twice, -|g|^2
    # twice. Rounding may leave -1e-7 of what is 0, or 0 of what is 1e-8.
    return squares.clamp_(min=0).add_(margin)


def concatenated(parts: list[FactoredGrads]) -> FactoredGrads:
    """Return the sum of several uses of one operand, as one part of more positions."""
    left = torch.cat([part.left for part in parts], dim=-2)
    return FactoredGrads(left, torch.cat([part.right for part in parts], dim=-2))


def share_grams(parts: Iterable[GradPart]) -> None:
    """Let parts that hold the same factor compute its Gram matrices once.

    The layers of queries, keys and values have one input, and the two weights of a
    recurrent layer have one gradient of the gates.
    """
    known: dict[Hashable, _Gram] = {}
    for part in parts:
        if isinstance(part, FactoredGrads) and part.has_gram_norms:
            left, right = (
                known.setdefault(_memory(factor), _Gram())
                for factor in (part.left, part.right)
            )
            left.num_parts += 1
            right.num_parts += 1
            part.grams = left, right


def _memory(factor: Tensor) -> Hashable:
    """Return what is the same for tensors that hold the same numbers in the same place."""
    layout = factor.device, factor.dtype, factor.shape, factor.stride()
    return factor.data_ptr(), *layout


def gram_is_cheaper(T: int, I: int, O: int) -> bool:  # noqa: E741 -- shape suffixes
    """Whether T by T Gram matrices take fewer operations than I by O gradients."""
    # T * T * (I + O) multiplications against T * I * O: for 768 by 768, up to T = 383.
    return T * (I + O) < I * O


def _lost(of_left: Tensor, of_right: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return how much squared norms from Gram matrices may lack by small elements."""
    # An entry x_t x_s lacks I of the smallest products, and is multiplied with g_t g_s.
    # Over all t and s these are (sum |g_t|)^2, and so T times sum |g_t|^2 at most.
    T, I = left.shape[-2:]  # noqa: E741 -- a shape suffix
    lacks_left = of_right.sum(-1) * (T * I * LOST_BY_PRODUCT)
    lacks_right = of_left.sum(-1) * (T * right.shape[-1] * LOST_BY_PRODUCT)
    return lacks_left + lacks_right
