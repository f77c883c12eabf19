"""How owners pass the operations that put parts of tensors at places of arguments.

Slices, pieces, copies and padding: what a part's owner is follows from where the
arguments put it. The rules are as those of :mod:`.static_rules`, and tested with them.
"""

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Node, edge_shape, output_shape, signed
from dp.per_sample._isolation.owner_moves import broadcast_from, moved_along
from dp.per_sample._isolation.owners import NOBODY, meet, meet_over
from dp.per_sample._isolation.static_rules import Answers, Shapes, axis_of, first_shape


__all__ = (
    "cat",
    "flip",
    "pad",
    "pieces",
    "repeat",
    "roll",
    "select",
    "slices",
    "stack",
)


def pieces(node: Node, rows: Tensor, shapes: Shapes, output: int) -> Answers:
    """Several outputs, one behind another on an axis: split, chunk, unbind."""
    shape = first_shape(shapes)
    axis = axis_of(node._saved_dim, len(shape))  # noqa: SLF001 -- as above
    lengths = [1] * shape[axis]
    if len(output_shape(node, 0)) < len(shape):
        rows = rows.unsqueeze(axis)
    else:
        count = len(node._input_metadata)  # noqa: SLF001 -- as above
        lengths = [output_shape(node, i)[axis] for i in range(count)]
    # Each output says only whose its own piece is; the rest is nobody's, by this output.
    # Otherwise x[:2] and x[2:] would contradict each other.
    start = sum(lengths[:output])
    index = torch.arange(start, start + lengths[output], device=rows.device)
    return [moved_along(rows, shape, axis, index)]


def slices(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """A slice; the rest is nobody's."""
    shape = first_shape(shapes)
    axis = axis_of(node._saved_dim, len(shape))  # noqa: SLF001 -- as above
    start, end = signed(node._saved_start), signed(node._saved_end)  # noqa: SLF001 -- as above
    every = torch.arange(shape[axis], device=rows.device)
    index = every[start : min(end, shape[axis]) : node._saved_step]  # noqa: SLF001 -- as above
    return [moved_along(rows, shape, axis, index)]


def select(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """One entry of an axis."""
    shape = first_shape(shapes)
    axis = axis_of(node._saved_dim, len(shape))  # noqa: SLF001 -- as above
    number = signed(node._saved_index) % shape[axis]  # noqa: SLF001 -- as above
    index = torch.tensor([number], device=rows.device)
    return [moved_along(rows.unsqueeze(axis), shape, axis, index)]


def cat(node: Node, rows: Tensor, shapes: Shapes) -> Answers | None:
    """Inputs behind one another; of those without a graph the length is not known."""
    axis = axis_of(node._saved_dim, rows.dim())  # noqa: SLF001 -- as above
    if rows.shape[axis] == 1:
        return [None if s is None else rows for s in shapes]
    edges = node.next_functions
    lengths = [None if c is None else edge_shape(c, i)[axis] for c, i in edges]
    # Example: cat([h, zeros(2, 4)]) with owners of 5 rows and h of 3: the one input
    # without a graph takes the 2 that are missing. Of two such inputs nobody knows.
    if lengths.count(None) > 1:
        return None
    missing = output_shape(node, 0)[axis] - sum(filter(None, lengths))
    lengths = [missing if n is None else n for n in lengths]
    pieces = rows.split(lengths, axis)
    return [None if s is None else p for s, p in zip(shapes, pieces, strict=True)]


def stack(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Inputs behind one another on an axis of their own."""
    axis = axis_of(node._saved_dim, rows.dim())  # noqa: SLF001 -- as above
    lengths = [len(shapes) if k == axis else n for k, n in enumerate(rows.shape)]
    each = rows.expand(lengths).unbind(axis)
    return [None if s is None else one for s, one in zip(shapes, each, strict=True)]


def repeat(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Copies along axes."""
    shape = first_shape(shapes)
    extra = rows.dim() - len(shape)
    rows = meet_over(rows, range(extra)).reshape(rows.shape[extra:])
    for axis, length in enumerate(shape):
        if rows.shape[axis] > 1:
            # All copies of an entry send gradients to it, and may be of several units.
            copies = rows.unflatten(axis, (rows.shape[axis] // length, length))
            rows = meet(copies, axis).squeeze(axis)
    return [rows]


def flip(node: Node, rows: Tensor, _shapes: Shapes) -> Answers:
    """Axes the other way round."""
    return [rows.flip([axis_of(d, rows.dim()) for d in node._saved_dims])]  # noqa: SLF001 -- as above


def roll(node: Node, rows: Tensor, _shapes: Shapes) -> Answers:
    """Axes shifted around."""
    shape, shifts = output_shape(node, 0), node._saved_shifts  # noqa: SLF001 -- as above
    dims = node._saved_dims  # noqa: SLF001 -- as above
    if not dims:
        # Without axes a shift runs over the flat order, so owners must be written out.
        flat = rows.expand(shape).flatten()
        return [flat.roll(-signed(shifts[0])).view(shape)]
    for shift, dim in zip(shifts, dims, strict=True):
        axis = axis_of(dim, rows.dim())
        if rows.shape[axis] > 1:
            rows = rows.roll(-signed(shift), axis)
    return [rows]


def pad(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """More entries at the ends of axes, or fewer."""
    shape = first_shape(shapes)
    amounts = [signed(n) for n in node._saved_pad]  # noqa: SLF001 -- as above
    for k in range(len(amounts) // 2):
        axis = rows.dim() - 1 - k
        if rows.shape[axis] == 1:
            continue
        before, after = amounts[2 * k : 2 * k + 2]
        # What was added has no input, and is dropped. A negative amount cut entries off,
        # which send no gradient, and are nobody's.
        kept = rows.narrow(axis, max(before, 0), _kept(rows.shape[axis], before, after))
        cut = [n for j, n in enumerate(kept.shape) if j < axis]
        ends = [
            kept.new_full([*cut, max(-n, 0), *kept.shape[axis + 1 :]], NOBODY)
            for n in (before, after)
        ]
        rows = torch.cat([ends[0], kept, ends[1]], axis)
    return [broadcast_from(rows, shape)]


def _kept(length: int, before: int, after: int) -> int:
    return length - max(before, 0) - max(after, 0)
