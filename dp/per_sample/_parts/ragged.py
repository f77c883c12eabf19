"""Gradients of units whose rows lie along no axis.

A rule is run as if every row were an example of its own, which it always may be: the
gradient of a unit is the sum over its rows. What it returns is then grouped by owner:

* a weighted sum needs no grouping: each row is scaled by its unit's factor;
* rows of sums (a bias, a norm's weight) are added up by unit;
* of a matrix product, each unit's rows are the positions of one example, so buckets of
  units go through the norms of :mod:`dp.per_sample._parts.factored` (materialized, or
  by Gram matrices), and convolutions through theirs;
* lookups carry their owner anyway.

The uses of one parameter are joined before its norm is taken, since a unit's norm is
that of the sum over all its rows, wherever they are.

Shapes: ``R`` rows, ``r`` rows that are a unit's, ``U`` units, ``P`` elements of a
parameter, ``N`` products, ``I`` by ``O`` the operand, ``u`` units of a bucket, ``T``
rows of a unit.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias, final

import torch
from torch import Tensor

from dp.per_sample._parts.convolution import ConvolutionGrads
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import GradPart, MaterializedGrads, wide
from dp.per_sample._parts.reparametrized import SlicedGrads
from dp.per_sample._parts.row_groups import Bucket, RowGroups


__all__ = ("RaggedGrads", "by_unit", "join_ragged")

_Rows: TypeAlias = MaterializedGrads | FactoredGrads | ConvolutionGrads


@final
class RaggedGrads(GradPart):
    """Gradients of units that each own some rows.

    Args:
        rows: The gradients of the rows that are a unit's, as a part of r examples of
            one position each.
        groups: The units of the rows.
    """

    def __init__(self, rows: _Rows, groups: RowGroups) -> None:
        # Example: rows of the units 2, 0, 2, 1, -, 2 of 3 units. The row that is
        # nobody's was dropped, and what is left has the owners 2, 0, 2, 1, 2: r = 5.
        # Units 0 and 1 are in a bucket [2, 1, ...], unit 2 is in one of [1, 3, ...].
        self.rows = rows
        self.groups = groups

    def squared_norms(self) -> Tensor:
        if isinstance(self.rows, MaterializedGrads):
            # Rows of one unit are added before anything is squared.
            return self.materialized().squared_norms()
        # A unit without a row keeps a norm of zero.
        norms_U = _zeros(self.rows, [self.groups.num_units])
        for bucket in self.groups.buckets:
            squares_u = _of_bucket(self.rows, bucket).squared_norms()
            # Of small factors a bucket has them in float64.
            norms_U = norms_U.to(torch.promote_types(norms_U.dtype, squares_u.dtype))
            norms_U[bucket.units_u] = squares_u.to(norms_U.dtype)
        return norms_U

    def gradients(self, examples: slice) -> Tensor:
        mine, groups = self.groups.within(examples)
        rows = _select(self.rows, mine)
        if isinstance(rows, MaterializedGrads):
            return RaggedGrads(rows, groups).materialized().grads_BP
        grads = _zeros(rows, [groups.num_units, *_operand_shape(rows)])
        for bucket in groups.buckets:
            of_bucket = _of_bucket(rows, bucket).gradients(slice(None))
            grads[bucket.units_u] = of_bucket
        return grads

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        # [U] to [r].
        factors_r = factors_B[self.groups.owner_r.to(factors_B.device)]
        self.rows.add_weighted_sum(factors_r, total, beta=beta)

    def mask_examples(self, mask_B: Tensor) -> GradPart:
        owner_r = self.groups.owner_r
        mask_r = mask_B.to(owner_r.device)[owner_r]
        return RaggedGrads(self.rows.mask_examples(mask_r), self.groups)

    def materialized(self) -> MaterializedGrads:
        """Return rows that are held in full as one row for each unit."""
        return _added_up([self], self.groups.num_units)

    def factors_of_transposed(self) -> GradPart | None:
        if not isinstance(self.rows, FactoredGrads):
            return None
        return RaggedGrads(self.rows.transposed(), self.groups)


def by_unit(part: GradPart, groups: RowGroups) -> GradPart:
    """Return the gradients of units, given those of R rows.

    Args:
        part: The gradients of every row, as those of an example. Those of a row that
            is nobody's are zero.
        groups: The units of the rows.
    """
    owned = part.owned_by(groups.unit_R, groups.num_units)
    if owned is not None:
        return owned
    if isinstance(part, SlicedGrads):
        return _put_in_place(part, groups)
    rows, repeats = _one_position_each(part)
    # A row of several positions: all of them are of the row's unit.
    if repeats > 1:
        unit_R = groups.unit_R.repeat_interleave(repeats)
        groups = RowGroups(unit_R, groups.num_units)
    # Rows of nobody are dropped, not multiplied by zero: they may hold infinity.
    if groups.owned_r is not None:
        rows = _select(rows, groups.owned_r)
    return RaggedGrads(rows, groups)


def _put_in_place(part: SlicedGrads, groups: RowGroups) -> MaterializedGrads:
    """Return each unit's gradient of a whole operand of which every row has a slice.

    It is zero but for the slices of the unit's own rows.
    """
    slices = part.inner.gradients(slice(None)).movedim(1 + part.axis, 1)  # [R, L, ...]
    shape = [n for axis, n in enumerate(part.shape) if axis != part.axis]
    whole = slices.new_zeros(groups.num_units, *slices.shape[:2], *shape)
    row_r = groups.owned_r
    if row_r is None:
        row_r = torch.arange(len(slices), device=slices.device)
    # [U, R, L, ...]: row r of unit u goes to its own place, and no two to one.
    whole[groups.owner_r, row_r] = slices[row_r]
    return MaterializedGrads(whole.flatten(1, 2).movedim(1, 1 + part.axis))


def _one_position_each(part: GradPart) -> tuple[_Rows, int]:
    """Return a part with every position as a row, and how many each row had before."""
    if isinstance(part, MaterializedGrads):
        return part, 1
    if isinstance(part, FactoredGrads):
        # [R, T, I] becomes [R * T, 1, I], and [R, N, T, I] becomes [R * T, N, 1, I].
        left, right = (
            side.movedim(-2, 1).flatten(0, 1).unsqueeze(-2)
            for side in (part.left, part.right)
        )
        return FactoredGrads(left, right), part.left.shape[-2]
    assert isinstance(part, ConvolutionGrads)  # noqa: S101 -- there is no other kind
    # [R, T, C, ...] becomes [R * T, 1, C, ...]: every image is a row.
    inputs, grads = (x.flatten(0, 1)[:, None] for x in (part.inputs, part.grads))
    return replace(part, inputs=inputs, grads=grads), part.inputs.shape[1]


def _select(rows: _Rows, index: Tensor) -> _Rows:
    if isinstance(rows, MaterializedGrads):
        return MaterializedGrads(rows.grads_BP[index])
    if isinstance(rows, FactoredGrads):
        return FactoredGrads(rows.left[index], rows.right[index])
    return replace(rows, inputs=rows.inputs[index], grads=rows.grads[index])


def _of_bucket(rows: FactoredGrads | ConvolutionGrads, bucket: Bucket) -> GradPart:
    """Return the part of a bucket's units, with their rows as positions."""
    if isinstance(rows, ConvolutionGrads):
        inputs, grads = rows.inputs[:, 0], rows.grads[:, 0]
        return replace(rows, inputs=bucket.gather(inputs), grads=bucket.gather(grads))
    left, right = (
        bucket.gather(side.squeeze(-2)).movedim(1, -2)
        for side in (rows.left, rows.right)
    )
    return FactoredGrads(left, right)


def _zeros(rows: FactoredGrads | ConvolutionGrads, shape: Sequence[int]) -> Tensor:
    like = rows.grads if isinstance(rows, ConvolutionGrads) else rows.right
    # In the dtype in which norms and sums are computed, whatever rows are held in.
    return wide(like[:0]).new_zeros(*shape)


def _operand_shape(rows: FactoredGrads | ConvolutionGrads) -> Sequence[int]:
    if isinstance(rows, ConvolutionGrads):
        return rows.kernel.shape
    return (*rows.left.shape[1:-2], rows.left.shape[-1], rows.right.shape[-1])


def _added_up(parts: Sequence[RaggedGrads], num_units: int) -> MaterializedGrads:
    """Return the sum of uses whose rows are held, one row for each unit."""
    total_UP: Tensor | None = None
    for part in parts:
        assert isinstance(part.rows, MaterializedGrads)  # noqa: S101 -- by its callers
        rows_rP = wide(part.rows.grads_BP)
        if total_UP is None:
            total_UP = rows_rP.new_zeros(num_units, *rows_rP.shape[1:])
        total_UP.index_add_(0, part.groups.owner_r, rows_rP)
    assert total_UP is not None  # noqa: S101 -- there is at least one
    return MaterializedGrads(total_UP)


def join_ragged(uses: Sequence[GradPart]) -> Sequence[GradPart]:
    """Return the uses of one parameter with ragged ones joined by kind.

    A packed recurrent layer uses its weight once a step, each time for the sequences
    that are that long; all of it is one product over all rows.
    """
    ragged = [use for use in uses if isinstance(use, RaggedGrads)]
    if not ragged:
        return uses
    num_units = ragged[0].groups.num_units
    others = [use for use in uses if not isinstance(use, RaggedGrads)]
    held, products, convolutions = _by_kind(ragged)
    joined: list[GradPart] = [_added_up(held, num_units)] if held else []
    joined += convolutions
    if products:
        regular = [use for use in others if isinstance(use, FactoredGrads)]
        others = [use for use in others if not isinstance(use, FactoredGrads)]
        # A weight that is used by packed rows and by a batch as well: |a + b|^2 has a
        # cross term. As one product it comes with the rest; apart, both gradients would
        # have to be written out for it.
        as_ragged = _as_ragged(regular, products[0].groups)
        joined += _join_products([*products, *as_ragged])
    return [*others, *joined]


def _by_kind(
    uses: Sequence[RaggedGrads],
) -> tuple[list[RaggedGrads], list[RaggedGrads], list[RaggedGrads]]:
    """Return the uses whose rows are held, are products, and are convolutions'."""
    held = [use for use in uses if isinstance(use.rows, MaterializedGrads)]
    products = [use for use in uses if isinstance(use.rows, FactoredGrads)]
    convolutions = [use for use in uses if isinstance(use.rows, ConvolutionGrads)]
    return held, products, convolutions


def _as_ragged(uses: Sequence[FactoredGrads], like: RowGroups) -> list[GradPart]:
    """Return uses whose units lie along an axis as ragged ones, which they are too."""
    # Row u is unit u's.
    index_U = torch.arange(like.num_units, device=like.owner_r.device)
    groups = RowGroups(index_U, like.num_units)
    return [by_unit(use, groups) for use in uses]


def _join_products(uses: Sequence[GradPart]) -> list[GradPart]:
    # [r, 1, I] and [r, N, 1, I] cannot lie in one tensor.
    by_axes: dict[int, list[tuple[FactoredGrads, RowGroups]]] = {}
    for use in uses:
        assert isinstance(use, RaggedGrads)  # noqa: S101 -- as by_unit returns them
        assert isinstance(use.rows, FactoredGrads)  # noqa: S101 -- by the caller
        same = by_axes.setdefault(use.rows.left.dim(), [])
        same.append((use.rows, use.groups))
    return [_join_same(same) for same in by_axes.values()]


def _join_same(uses: Sequence[tuple[FactoredGrads, RowGroups]]) -> RaggedGrads:
    if len(uses) == 1:
        return RaggedGrads(*uses[0])
    left = torch.cat([rows.left for rows, _ in uses])
    right = torch.cat([rows.right for rows, _ in uses])
    unit_R = torch.cat([groups.owner_r for _, groups in uses])
    groups = RowGroups(unit_R, uses[0][1].num_units)
    return RaggedGrads(FactoredGrads(left, right), groups)
