"""Gradients of embedding tables.

An example's gradient is zero but for the rows that it looked up, so only the lookups
are held. A row that was looked up twice must be summed before it is squared.

Shapes: ``B`` examples, ``L`` lookups in all, ``D`` embedding dimensions, ``V`` rows of
the table, ``K`` pairs of an example and a row, ``T`` positions of an example, ``u``
examples with about ``l`` lookups each.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import (
    GradPart,
    MaterializedGrads,
    chunk_bytes,
    chunks,
    squared_norms,
    wide,
    zeroed,
)
from dp.per_sample._parts.row_groups import RowGroups


__all__ = ("EmbeddingGrads", "join_tables")


@final
class EmbeddingGrads(GradPart):
    """Gradients of a table, as one row for every lookup.

    Args:
        indices_L: The row of each lookup.
        owners_L: The example of each lookup.
        grads_LD: The gradient of what it returned.
        num_rows: The number of rows of the table.
        num_samples: The number of examples.
    """

    def __init__(
        self,
        indices_L: Tensor,
        owners_L: Tensor,
        grads_LD: Tensor,
        *,
        num_rows: int,
        num_samples: int,
    ) -> None:
        # Example: indices 7, 2, 7, 7 of the examples 0, 0, 0, 1. Example 0 has in row 7
        # the sum of two gradients, so its norm is not that of the three lookups; row 7
        # of example 1 is another pair.
        self.indices_L = indices_L
        self.owners_L = owners_L
        self.grads_LD = grads_LD
        self.num_rows = num_rows
        self.num_samples = num_samples

    def squared_norms(self) -> Tensor:
        # (example, row) as one number: lookups of one pair are summed, then squared.
        keys_L = self.indices_L + self.owners_L * self.num_rows
        touched_K, where_L = keys_L.unique(return_inverse=True)
        grads_LD = wide(self.grads_LD)
        rows_KD = grads_LD.new_zeros(len(touched_K), grads_LD.shape[1])
        rows_KD.index_add_(0, where_L, grads_LD)
        owners_K = touched_K.div_(self.num_rows, rounding_mode="floor")
        # [K] added up to [B].
        norms_B = grads_LD.new_zeros(self.num_samples)
        return norms_B.index_add_(0, owners_K, squared_norms(rows_KD))

    def products_with(self, head: FactoredGrads | MaterializedGrads) -> Tensor:
        """Return each example's inner product with the gradient of an output layer.

        A language model may use one table for its inputs and its outputs. The norm of
        the sum of both is |a|^2 + |b|^2 + 2 <a, b>, of which this is <a, b>.

        Args:
            head: The other use of the same table: its left factor is [B, T, V].
        """
        if isinstance(head, MaterializedGrads):
            # [B, V, D] at (example, row): [L, D].
            rows_LD = wide(head.grads_BP[self.owners_L, self.indices_L])
            products_L = (rows_LD * self.grads_LD).sum(1)
            products_B = products_L.new_zeros(self.num_samples)
            return products_B.index_add_(0, self.owners_L, products_L)
        # The head's gradient in row v is the sum over t of left[t, v] * right[t], so a
        # lookup of row v needs left[:, v] alone, times the inner products of right[t]
        # and the lookup's gradient. Those are one matrix product for an example.
        T, device = head.left.shape[1], self.grads_LD.device
        products_B = wide(self.grads_LD[:0]).new_zeros(self.num_samples)
        for bucket in RowGroups(self.owners_L, self.num_samples).buckets:
            # [u, l] lookups of u examples, padded with lookups whose gradient is zero.
            rows_ul = bucket.gather(self.indices_L)
            grads_ulD = bucket.gather(wide(self.grads_LD))
            in_chunks = chunks(len(rows_ul), 8 * T * bucket.length, chunk_bytes(device))
            for some in in_chunks:
                examples_u = bucket.units_u[some]
                at_rows_uTl = _at_rows(head.left, examples_u, rows_ul[some])
                inner_uTl = wide(head.right[examples_u]) @ grads_ulD[some].mT
                products_B[examples_u] = torch.linalg.vecdot(
                    wide(at_rows_uTl).flatten(1), inner_uTl.flatten(1)
                )
        return products_B

    def gradients(self, examples: slice) -> Tensor:
        start, stop, _ = examples.indices(self.num_samples)
        mine_L = (self.owners_L >= start) & (self.owners_L < stop)
        grads_LD = wide(self.grads_LD[mine_L])
        result = grads_LD.new_zeros(stop - start, self.num_rows, grads_LD.shape[1])
        # Row v of example b is row b * V + v of all of them, one behind another.
        rows_L = (self.owners_L[mine_L] - start) * self.num_rows
        flat = result.flatten(0, 1)
        flat.index_add_(0, rows_L + self.indices_L[mine_L], grads_LD)
        return result

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        grads_LD = self.grads_LD.to(total.dtype)
        weighted_LD = grads_LD * factors_B.to(total.dtype)[self.owners_L, None]
        if not beta:
            total.zero_()
        total.index_add_(0, self.indices_L, weighted_LD)

    def owned_by(self, unit_B: Tensor, num_units: int) -> GradPart:
        owners_L = unit_B[self.owners_L]
        kept_K = (owners_L >= 0).nonzero()[:, 0]
        return EmbeddingGrads(
            self.indices_L[kept_K],
            owners_L[kept_K],
            self.grads_LD[kept_K],
            num_rows=self.num_rows,
            num_samples=num_units,
        )

    def mask_examples(self, mask_B: Tensor) -> GradPart:
        return EmbeddingGrads(
            self.indices_L,
            self.owners_L,
            zeroed(self.grads_LD, mask_B[self.owners_L]),
            num_rows=self.num_rows,
            num_samples=self.num_samples,
        )


def _at_rows(left_BTV: Tensor, examples_u: Tensor, rows_ul: Tensor) -> Tensor:
    """Return [u, T, l] the entries of some examples in the rows of their lookups."""
    B, T, _ = left_BTV.shape
    device = left_BTV.device
    # All examples in their order, as of sequences of one length, need no index for each
    # entry: gathering takes a fifth of the time.
    if len(examples_u) == B and torch.equal(examples_u, torch.arange(B, device=device)):
        return left_BTV.gather(2, rows_ul[:, None].expand(-1, T, -1))
    positions_T1 = torch.arange(T, device=device)[:, None]
    return left_BTV[examples_u[:, None, None], positions_T1, rows_ul[:, None]]


def join_tables(uses: Sequence[EmbeddingGrads]) -> EmbeddingGrads:
    """Return several uses of one table as one."""
    if len(uses) == 1:
        return uses[0]
    return EmbeddingGrads(
        torch.cat([use.indices_L for use in uses]),
        torch.cat([use.owners_L for use in uses]),
        torch.cat([use.grads_LD for use in uses]),
        num_rows=uses[0].num_rows,
        num_samples=uses[0].num_samples,
    )
