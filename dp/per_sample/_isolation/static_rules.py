"""How owners pass the operations that move no rows, or move them by shapes alone.

A rule takes the owners of a node's output and returns those of its inputs. It knows
what could flow, not what flows in this batch: gates (a clamp, a mask, dropout) count
as open, and a maximum counts as if any entry could be it. That is why a penalty over
the batch is refused at the first step and not when its gate opens.

Every rule is compared with the node's own backward, unit by unit, in
``tests/dp/per_sample/test_rules_of_owners.py``.

Shapes: none are fixed; ``rows`` broadcast to the shape of the node's output.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Node, edge_shape, output_shape, signed
from dp.per_sample._isolation.owner_moves import broadcast_from, moved_along, reshaped
from dp.per_sample._isolation.owners import NOBODY, meet, meet_over


__all__ = (
    "Answers",
    "OutputRule",
    "RowsRule",
    "Shapes",
    "along",
    "axis_of",
    "batch_norm",
    "cat",
    "couples",
    "ctc",
    "distances",
    "each_reduction",
    "expand",
    "flip",
    "images",
    "leading",
    "mv",
    "nll",
    "normalized",
    "pad",
    "permute",
    "pieces",
    "pointwise",
    "product",
    "reduction",
    "repeat",
    "roll",
    "select",
    "sequences",
    "slices",
    "stack",
    "t",
    "transpose",
    "view",
    "view_as_complex",
    "view_as_real",
    "with_weights",
)

Shapes = Sequence[tuple[int, ...] | None]  # Of the inputs that are asked for.
Answers = list[Tensor | None]
# None if a rule does not know: the node's own backward is asked then.
RowsRule = Callable[[Node, Tensor, Shapes], Answers | None]
# The same for any output, by its number.
OutputRule = Callable[[Node, Tensor, Shapes, int], Answers]
_Axes = Callable[[Node, int], Sequence[int]]


def axis_of(number: int, rank: int) -> int:
    """Return a saved axis, counted from the front."""
    return signed(number) % max(rank, 1)


def along(node: Node, rank: int) -> list[int]:
    """Return the axes that a node works along."""
    dim: Any = node._saved_dim  # noqa: SLF001 -- see _graph.nodes
    dims = dim if isinstance(dim, tuple) else (dim,)
    return sorted({axis_of(d, rank) for d in dims})


def pointwise(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Operations on each element alone, of inputs that are spread over the output."""
    return [None if s is None else broadcast_from(rows, s) for s in shapes]


expand = pointwise


def view(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Another shape of the same elements in the same order."""
    new = _first(shapes)
    return [reshaped(rows, output_shape(node, 0), new)]


def view_as_real(_node: Node, rows: Tensor, _shapes: Shapes) -> Answers:
    """Complex numbers as pairs, on a new last axis."""
    # Both numbers of a pair are of one complex number: [3, 2] with owners 0, 0 | 1, 1 |
    # 2, 2 is [3] with 0, 1, 2.
    return [meet(rows, -1).squeeze(-1)]


def view_as_complex(_node: Node, rows: Tensor, _shapes: Shapes) -> Answers:
    """Pairs as complex numbers."""
    return [rows.unsqueeze(-1)]


def permute(node: Node, rows: Tensor, _shapes: Shapes) -> Answers:
    """Other axes first."""
    dims = [axis_of(d, rows.dim()) for d in node._saved_dims]  # noqa: SLF001 -- as above
    # Output axis k was input axis dims[k], so the owners go back by the inverse.
    back = sorted(range(len(dims)), key=dims.__getitem__)
    return [rows.permute(back)]


def transpose(node: Node, rows: Tensor, _shapes: Shapes) -> Answers:
    """Two axes exchanged."""
    dims = signed(node._saved_dim0), signed(node._saved_dim1)  # noqa: SLF001 -- as above
    return [rows.transpose(*dims) if rows.dim() else rows]


def t(_node: Node, rows: Tensor, _shapes: Shapes) -> Answers:
    """A matrix, transposed."""
    return [rows.t()]


def reduction(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Sums, norms, maxima: what is reduced belongs to who owns the result."""
    shape = _first(shapes)
    if rows.dim() < len(shape):
        # The axes that were dropped come back with length 1: whoever owns the result owns
        # every entry that was summed into it. Example: owners [B] of x.sum(1) are [B, 1].
        axes = along(node, len(shape)) if rows.dim() else range(len(shape))
        for axis in axes:
            rows = rows.unsqueeze(axis)
    return [rows]


def each_reduction(node: Node, rows: Tensor, shapes: Shapes, _output: int) -> Answers:
    """Two reductions at once."""
    return reduction(node, rows, shapes)


def couples(axes_of: _Axes) -> RowsRule:
    """Operations in which entries along some axes depend on one another."""

    def rule(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
        rank = rows.dim()
        # A softmax over an axis gives each entry a gradient of all others on it.
        whole = meet_over(rows, [a % rank for a in axes_of(node, rank)] if rank else ())
        return pointwise(node, whole, shapes)

    return rule


def leading(num_axes: int) -> RowsRule:
    """Convolutions, pools, attention: all but the first axes are coupled."""

    def rule(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
        whole = meet_over(rows, range(num_axes, rows.dim()))
        # Inputs may have other lengths behind, and even another number of axes: what is
        # left of the owners has length 1 there, and fits all of them.
        lead = whole.shape[:num_axes]
        return [
            None
            if s is None
            else broadcast_from(whole.reshape([*lead, *[1] * (len(s) - len(lead))]), s)
            for s in shapes
        ]

    return rule


def with_weights(rule: Callable[[Node, Tensor], Tensor]) -> RowsRule:
    """Operations of data and weights: the weights' gradients sum over everything."""

    def answers(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
        data = None if shapes[0] is None else rule(node, rows)
        return [data, *_sums(rows, shapes[1:])]

    return answers


def _sums(rows: Tensor, shapes: Shapes) -> Answers:
    if all(s is None for s in shapes):
        return [None] * len(shapes)
    whole = meet_over(rows, range(rows.dim()))
    return [None if s is None else whole.reshape([1] * len(s)) for s in shapes]


def images(_node: Node, rows: Tensor) -> Tensor:
    """Couple all but the first axis."""
    return meet_over(rows, range(1, rows.dim()))


def normalized(node: Node, rows: Tensor) -> Tensor:
    """Couple the last axes, which a layer norm takes together."""
    return meet_over(rows, range(-len(node._saved_normalized_shape), 0))  # noqa: SLF001 -- as above


def batch_norm(node: Node, rows: Tensor) -> Tensor:
    """Couple all axes but the channels', unless the statistics are fixed."""
    if not getattr(node, "_saved_training", True):
        return rows
    return meet_over(rows, [axis for axis in range(rows.dim()) if axis != 1])


def product(left: int, right: int) -> RowsRule:
    """Matrix products: the gradient of one side is summed over the other's rows."""

    def rule(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
        # d(a @ b) / da = grad @ b.T sums over the columns of the output, d / db over its rows:
        # for a batch in the rows of a, a row of a's gradient is its own unit's, and b's
        # gradient is everybody's.
        sides = {left: -1, right: -2}
        return [
            None
            if s is None
            else meet(rows, sides[i])
            if i in sides
            else broadcast_from(rows, s)
            for i, s in enumerate(shapes)
        ]

    return rule


def mv(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """A matrix times a vector, or two vectors."""
    matrix, vector = shapes
    if rows.dim() == 0:  # A product of two vectors.
        return [None if s is None else rows.view(1) for s in shapes]
    return [
        None if matrix is None else rows[:, None],
        None if vector is None else meet(rows, 0),
    ]


def distances(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """All distances between two sets of points."""
    left, right = shapes
    return [
        None if left is None else broadcast_from(meet(rows, -1), left),
        None if right is None else broadcast_from(meet(rows, -2).mT, right),
    ]


def nll(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """A loss of each row, or one of all."""
    shape = _first(shapes)
    # Without a reduction each row has a loss, and classes lie along a second axis.
    by_row = node._saved_reduction == 0 and len(shape) > 1  # noqa: SLF001 -- as above
    data = rows.unsqueeze(1) if by_row else rows.view([1] * len(shape))
    return [data, *[None] * (len(shapes) - 1)]


def ctc(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Losses of sequences that lie along the second axis."""
    rank = len(_first(shapes))
    of_batch = rows.dim() == 1 and rank == 3  # noqa: PLR2004 -- [T, B, C]
    return [rows[None, :, None] if of_batch else rows.view([1] * rank)]


def sequences(_node: Node, rows: Tensor, shapes: Shapes, _output: int) -> Answers:
    """A recurrent layer: outputs [T, N, H] and states [N, H] of N sequences."""
    steps = rows if rows.dim() == 3 else rows[None]  # noqa: PLR2004 -- as said
    # A sequence couples all of its steps and features; sequences are apart.
    along_N = meet_over(steps, [0, 2])
    weights = [None if s is None else meet(along_N, 1)[0] for s in shapes[1:]]
    states: Answers = [None if s is None else along_N[0] for s in shapes[5:7]]
    return [
        None if shapes[0] is None else along_N,
        *weights[:4],
        *states,
        *weights[6:],
    ]


# Parts of tensors, at places that arguments give.


def pieces(node: Node, rows: Tensor, shapes: Shapes, output: int) -> Answers:
    """Several outputs, one behind another on an axis: split, chunk, unbind."""
    shape = _first(shapes)
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
    shape = _first(shapes)
    axis = axis_of(node._saved_dim, len(shape))  # noqa: SLF001 -- as above
    start, end = signed(node._saved_start), signed(node._saved_end)  # noqa: SLF001 -- as above
    every = torch.arange(shape[axis], device=rows.device)
    index = every[start : min(end, shape[axis]) : node._saved_step]  # noqa: SLF001 -- as above
    return [moved_along(rows, shape, axis, index)]


def select(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """One entry of an axis."""
    shape = _first(shapes)
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
    shape = _first(shapes)
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
    shape = _first(shapes)
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


def _first(shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the first input that is asked for."""
    return next(s for s in shapes if s is not None)
