"""Gradients of a stack of matrices of which every row meets one.

A layer of routed experts multiplies each token by the matrix of its expert. A unit's
gradient is a stack of E matrices, of which most may be zero, and its squared norm is
the sum of theirs. So the rows of unit u at expert e are grouped as those of a virtual
unit ``u * E + e``, and norms come from the same buckets as for ragged units.

Shapes: ``R`` rows, ``U`` units, ``E`` experts, ``I`` by ``O`` a matrix.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import GradPart, wide, zeroed
from dp.per_sample._parts.ragged import RaggedGrads
from dp.per_sample._parts.row_groups import RowGroups


__all__ = ("GroupedGrads",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGrads(GradPart):
    """Gradients of a stack of matrices.

    Args:
        left: [R, I], the rows.
        right: [R, O], the gradients of what they became.
        experts: [R], the matrix that each row met; a negative number if it met none.
        units: [R], the unit of each row; a negative number if it is nobody's.
        num_experts: E.
        num_units: U.
    """

    left: Tensor
    right: Tensor
    experts: Tensor
    units: Tensor
    num_experts: int
    num_units: int

    def squared_norms(self) -> Tensor:
        norms = self._by_unit_and_expert().squared_norms()
        # [U * E] to [U]: a stack's squared norm is the sum of its matrices'.
        return norms.view(self.num_units, self.num_experts).sum(1)

    def gradients(self, examples: slice) -> Tensor:
        start, stop, _ = examples.indices(self.num_units)
        virtual = slice(start * self.num_experts, stop * self.num_experts)
        grads = self._by_unit_and_expert().gradients(virtual)
        return grads.view(stop - start, self.num_experts, *grads.shape[1:])

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        if not beta:
            total.zero_()
        used = ((self.units >= 0) & (self.experts >= 0)).nonzero()[:, 0]
        units, experts = self.units[used], self.experts[used]
        factors = factors_B.to(total.device, total.dtype)[units, None]
        left = self.left[used].to(total.dtype)
        right = self.right[used].to(total.dtype) * factors
        # An expert without rows is not looked at: its sum stays as it was.
        for expert in experts.unique().tolist():
            rows = (experts == expert).nonzero()[:, 0]
            total[expert].addmm_(left[rows].T, right[rows])

    def mask_examples(self, mask_B: Tensor) -> GradPart:
        # A row of nobody, at the end, is not masked: it is left out anyway.
        mask_R = torch.cat([mask_B, mask_B.new_zeros(1)])[self.units]
        return replace(
            self, left=zeroed(self.left, mask_R), right=zeroed(self.right, mask_R)
        )

    def owned_by(self, unit_B: Tensor, num_units: int) -> GradPart:
        return replace(self, units=unit_B[self.units], num_units=num_units)

    def _by_unit_and_expert(self) -> RaggedGrads:
        """Return the gradients of single matrices, of U * E virtual units."""
        # Example: 3 experts, and rows of unit 1 at the experts 2, 0, 2: virtual units
        # 5, 3, 5.
        virtual = self.units * self.num_experts + self.experts
        is_used = (self.units >= 0) & (self.experts >= 0)
        virtual = torch.where(is_used, virtual, -1)
        groups = RowGroups(virtual, self.num_units * self.num_experts)
        left, right = wide(self.left), wide(self.right)
        if groups.owned_r is not None:
            left, right = left[groups.owned_r], right[groups.owned_r]
        return RaggedGrads(FactoredGrads(left[:, None], right[:, None]), groups)
