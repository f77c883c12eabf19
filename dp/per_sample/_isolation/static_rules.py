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

from torch import Tensor

from dp.per_sample._graph.nodes import Node, output_shape, signed
from dp.per_sample._isolation.owner_moves import broadcast_from, reshaped
from dp.per_sample._isolation.owners import meet, meet_over


__all__ = (
    "Answers",
    "OutputRule",
    "RowsRule",
    "Shapes",
    "along",
    "axis_of",
    "batch_norm",
    "couples",
    "ctc",
    "distances",
    "each_reduction",
    "expand",
    "first_shape",
    "images",
    "leading",
    "mv",
    "nll",
    "normalized",
    "permute",
    "pointwise",
    "product",
    "reduction",
    "sequences",
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
    new = first_shape(shapes)
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
    shape = first_shape(shapes)
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
    """Convolutions, pools, attention: all but the first axes are coupled.

    Args:
        num_axes: How many are not; negative, how many of the last are.
    """

    def rule(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
        num_apart = num_axes if num_axes > 0 else rows.dim() + num_axes
        whole = meet_over(rows, range(num_apart, rows.dim()))
        # Inputs may have other lengths behind, and even another number of axes: what is
        # left of the owners has length 1 there, and fits all of them.
        lead = whole.shape[:num_apart]
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
    shape = first_shape(shapes)
    # Without a reduction each row has a loss, and classes lie along a second axis.
    by_row = node._saved_reduction == 0 and len(shape) > 1  # noqa: SLF001 -- as above
    data = rows.unsqueeze(1) if by_row else rows.view([1] * len(shape))
    return [data, *[None] * (len(shapes) - 1)]


def ctc(_node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Losses of sequences that lie along the second axis."""
    rank = len(first_shape(shapes))
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


def first_shape(shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the first input that is asked for."""
    return next(s for s in shapes if s is not None)
