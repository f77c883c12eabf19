"""How owners pass changes of shape, broadcasts, selections and several consumers.

Example: rows of units 0, 0, 1, 1 that came from a tensor of shape [2, 2] by a reshape
are units 0 and 1 along its first axis; if they came from one of length 1 by a
broadcast, gradients of both meet there, and it is mixed.

Shapes: none are fixed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dp.per_sample._isolation.owners import (
    EVERYBODYS,
    MIXED,
    NOBODY,
    Owners,
    meet,
    meet_over,
    scattered,
    shortened,
)


__all__ = ("broadcast_from", "joined", "moved_along", "reshaped")


def joined(
    one: Owners, other: Owners, *, rank: int, num_units: int, device: torch.device
) -> Owners:
    """Return the owners of a tensor to which two consumers send gradients."""
    if other.axis == NOBODY or one.is_same(other):
        return one
    if one.axis == NOBODY:
        return other
    if MIXED in (one.axis, other.axis):
        return EVERYBODYS  # More than is mixed, and refused as well.
    left, right = (owners.as_rows(rank, num_units, device) for owners in (one, other))
    return Owners.irregular(shortened(_joined_rows(left, right), range(rank)))


def _joined_rows(left: Tensor, right: Tensor) -> Tensor:
    return torch.where(
        (left == right) | (right == NOBODY),
        left,
        torch.where(left == NOBODY, right, MIXED),
    )


def broadcast_from(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the owners of an input of *shape* that was spread over the output."""
    while rows.dim() > len(shape):
        # A bias [3] under an output [5, 3] of 5 units has lost the first axis: their
        # gradients are added, and meet.
        rows = meet(rows, 0)[0]
    if rows.dim() < len(shape):  # The output has fewer axes: it is a sum.
        rows = rows.view([1] * (len(shape) - rows.dim()) + list(rows.shape))
    return meet_over(rows, [axis for axis, length in enumerate(shape) if length == 1])


def reshaped(rows: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Return the owners behind a change of shape in row-major order.

    Both shapes are cut into blocks of equal products. Nothing is written out along a
    block in which nothing differs: only the units' own axes are.
    """
    if 0 in old or 0 in new:
        return rows.new_full([1] * len(new), NOBODY)
    written: list[int] = []
    sizes: list[int] = []
    changed: list[int] = []
    # Example: [2, 3, 4] as [6, 4], with owners [2, 1, 1]. The first block is [2, 3] and
    # [6]: written out, 0 0 0 1 1 1. The second is [4] and [4], and stays of length 1.
    for before, after in _blocks(old, new):
        if all(rows.shape[k] == 1 for k in before):
            written += [1] * len(before)
            sizes += [1] * len(after)
            continue
        written += [old[k] for k in before]
        if len(after) > 1:
            changed += range(len(sizes), len(sizes) + len(after))
        sizes += [new[k] for k in after]
    return shortened(rows.expand(written).reshape(sizes), changed)


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Return runs of the axes of two shapes, in order, that have equal products."""
    blocks = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = range(i, min(i + 1, len(old))), range(j, min(j + 1, len(new)))
        # The shorter side takes one more axis until both products are equal; [2, 3] and
        # [6] are one block, [2, 3] and [2, 3] are two.
        size, other = (
            math.prod(old[k] for k in before),
            math.prod(new[k] for k in after),
        )
        while size != other:
            if size < other:
                size, before = size * old[before.stop], range(i, before.stop + 1)
            else:
                other, after = other * new[after.stop], range(j, after.stop + 1)
        blocks.append((before, after))
        i, j = before.stop, after.stop
    return blocks


def moved_along(
    rows: Tensor, shape: Sequence[int], axis: int, index_N: Tensor
) -> Tensor:
    """Return the owners of an input whose entries *index_N* of *axis* are the output.

    Entries that were not taken are nobody's; those taken for two units are mixed.

    Args:
        rows: The owners of the output.
        shape: Of the input; only its length along *axis* counts.
        axis: Along which entries were taken.
        index_N: Which, by number.
    """
    # Example: rows 2 and 0 of 4 were taken for units 0 and 1: the owners of the input
    # are 1, nobody, 0, nobody.
    length = index_N.numel()
    lengths = [length if k == axis else n for k, n in enumerate(rows.shape)]
    full = [shape[axis] if k == axis else n for k, n in enumerate(rows.shape)]
    where = index_N.reshape([-1 if k == axis else 1 for k in range(len(full))])
    return scattered(rows.expand(lengths), full, axis, where.expand(lengths))
