"""How regular owners pass operations: three integers, and no tensor is touched.

The owners of an ordinary batch are regular at nearly every node. Following them costs
some microseconds a node, once for every combination of sizes. A rule that answers None
leaves a node to the rules on rows; one that answers :data:`EVERYBODYS` has answer units
that meet.

Shapes: none are fixed.
"""

import math
from collections.abc import Callable, Sequence

from dp.per_sample._graph.nodes import Node, output_shape, saved
from dp.per_sample._isolation.owners import EVERYBODYS, Owners
from dp.per_sample._isolation.static_rules import Shapes, along, axis_of


__all__ = (
    "IntegerAnswers",
    "IntegerRule",
    "batch_norm",
    "convolution",
    "couples",
    "ctc",
    "elsewhere",
    "index",
    "layer_norm",
    "leading",
    "mm",
    "nll",
    "pad",
    "permute",
    "pointwise",
    "product",
    "reduction",
    "scatter",
    "select",
    "stack",
    "t",
    "transpose",
    "unless_moved",
    "view",
)

IntegerAnswers = list[Owners | None]
IntegerRule = Callable[[Node, Owners, Shapes], IntegerAnswers | None]


def pointwise(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
    """Inputs that are spread over the output; axes are counted from the last."""
    rank = len(output_shape(node, 0))
    return [None if s is None else _spread(owners, s, rank) for s in shapes]


def _spread(owners: Owners, shape: Sequence[int], rank: int) -> Owners:
    # Broadcasting counts axes from the last. Example: [3] under an output of [5, 3] whose
    # owners lie along axis 0 has no such axis: all 5 units meet in it.
    axis = owners.axis - rank + len(shape)
    if axis < 0 or shape[axis] == 1:
        return EVERYBODYS  # Summed over the units.
    return Owners(axis, owners.outer, owners.inner)


def view(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers | None:
    """Another shape: the axis that holds a whole round of the units, if one does."""
    old, (new,) = output_shape(node, 0), shapes
    assert new is not None  # noqa: S101 -- the node's only input
    axis, outer, inner, _ = owners
    if new[: axis + 1] == old[: axis + 1]:
        return [owners]
    total = math.prod(old)
    if total == 0:
        return None
    # Example: 3 units along axis 1 of [2, 3, 4], one entry each, as a view of [6, 4]. In
    # the flat order a unit has runs of 4 entries, and a round of all units is 12 long.
    # Axis 0 of the new shape steps by 4 and holds 24 entries, two rounds: outer 2.
    inner *= math.prod(old[axis + 1 :])  # In the flat order, with all that is behind.
    round_length = old[axis] // (outer * owners.inner) * inner
    behind, k = total // new[0], 0
    while inner < behind and new[k] * behind >= round_length:
        k += 1  # The units are behind this axis, or some of them.
        behind //= new[k]
    if inner < behind or inner % behind or new[k] * behind % round_length:
        return None  # The units' axis is cut.
    return [Owners(k, new[k] * behind // round_length, inner // behind)]


def permute(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
    """Other axes first."""
    dims = [axis_of(d, len(_first(shapes))) for d in node._saved_dims]  # noqa: SLF001 -- see _graph.nodes
    return [owners._replace(axis=dims[owners.axis])]


def transpose(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
    """Two axes exchanged."""
    rank = len(_first(shapes))
    one, other = axis_of(node._saved_dim0, rank), axis_of(node._saved_dim1, rank)  # noqa: SLF001 -- as above
    axis = {one: other, other: one}.get(owners.axis, owners.axis)
    return [owners._replace(axis=axis)]


def t(_node: Node, owners: Owners, _shapes: Shapes) -> IntegerAnswers:
    """A matrix, transposed."""
    return [owners._replace(axis=1 - owners.axis)]


def reduction(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
    """Sums and the like over other axes than the units'."""
    axis, shape = owners.axis, _first(shapes)
    if len(output_shape(node, 0)) < len(shape):
        # Each reduced axis before the units' moves them one further back.
        for dim in along(node, len(shape)):
            axis += dim <= axis
    return [owners._replace(axis=axis)]


def couples(axes_of: Callable[[Node, int], Sequence[int]]) -> IntegerRule:
    """Operations in which entries along some axes depend on one another."""

    def rule(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
        rank = len(output_shape(node, 0))
        meets = owners.axis in [a % rank for a in axes_of(node, rank)]
        answer = EVERYBODYS if meets else owners
        return [None if s is None else answer for s in shapes]

    return rule


def leading(num_axes: int) -> IntegerRule:
    """Operations in which all but the first axes are coupled, or some of the last."""

    def rule(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
        rank = len(output_shape(node, 0))
        num_apart = num_axes if num_axes > 0 else rank + num_axes
        answer = EVERYBODYS if owners.axis >= num_apart else owners
        return [None if s is None else answer for s in shapes]

    return rule


def _with_weights(free_axes: Callable[[Node, Shapes, int], bool]) -> IntegerRule:
    """Operations of data and weights: the weights' gradients sum over everything."""

    def rule(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
        # Whether the units lie along an axis that the operation does not couple.
        is_free = free_axes(node, shapes, owners.axis)
        weights = [None if s is None else EVERYBODYS for s in shapes[1:]]
        return [owners if is_free else EVERYBODYS, *weights]

    return rule


def _before_normalized(node: Node, _shapes: Shapes, axis: int) -> bool:
    return axis < len(output_shape(node, 0)) - len(node._saved_normalized_shape)  # noqa: SLF001 -- as above


def _with_fixed_statistics(node: Node, _shapes: Shapes, axis: int) -> bool:
    return axis == 1 or not getattr(node, "_saved_training", True)


convolution = _with_weights(lambda _node, _shapes, axis: axis == 0)
layer_norm = _with_weights(_before_normalized)
batch_norm = _with_weights(_with_fixed_statistics)


def product(left: int, right: int) -> IntegerRule:
    """Matrix products: the gradient of one side is summed over the other's rows."""

    def rule(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
        rank = len(output_shape(node, 0))
        # As static_rules.product: the axis that the gradient of a side is summed over.
        summed = {left: rank - 1, right: rank - 2}
        return [
            None
            if s is None
            else _spread(owners, s, rank)
            if i not in summed
            else EVERYBODYS
            if owners.axis == summed[i]
            else owners
            for i, s in enumerate(shapes)
        ]

    return rule


_dense = product(0, 1)


def mm(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers | None:
    """A product whose left side may be sparse, and then moves the right one's rows."""
    # A sparse matrix takes rows of its right side to other rows, by its own entries.
    if shapes[-1] is not None and owners.axis == 0:
        return None
    return _dense(node, owners, shapes)


def nll(_node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
    """A loss of each row; the classes' axis comes second."""
    # The classes were axis 1 of the input, and are missing in the output.
    axis = owners.axis + (owners.axis >= 1)
    return [owners._replace(axis=axis), *[None] * (len(shapes) - 1)]


def ctc(_node: Node, owners: Owners, _shapes: Shapes) -> IntegerAnswers:
    """Losses of sequences that lie along the second axis."""
    return [owners._replace(axis=1)]


def elsewhere(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers | None:
    """Slices, splits and lookups along another axis than the units'."""
    rank = max(len(_first(shapes)), len(output_shape(node, 0)))
    if owners.axis in along(node, rank):
        return None
    return [None if s is None else owners for s in shapes]


def scatter(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers | None:
    """A whole source that goes to other entries of another axis than the units'."""
    if len(shapes) > 1 and tuple(saved(node, "index").shape) != shapes[1]:
        return None
    return elsewhere(node, owners, shapes)


def unless_moved(name: str) -> IntegerRule:
    """Flips and shifts of other axes than the units'."""
    saved_name = f"_saved_{name}"

    def rule(node: Node, owners: Owners, _shapes: Shapes) -> IntegerAnswers | None:
        rank, dims = len(output_shape(node, 0)), getattr(node, saved_name)
        if not dims or owners.axis in [axis_of(d, rank) for d in dims]:
            return None
        return [owners]

    return rule


def pad(node: Node, owners: Owners, _shapes: Shapes) -> IntegerAnswers | None:
    """More entries at the ends of other axes."""
    behind = len(output_shape(node, 0)) - 1 - owners.axis
    amounts = node._saved_pad[2 * behind : 2 * behind + 2]  # noqa: SLF001 -- as above
    return None if any(amounts) else [owners]


def select(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers:
    """One entry of another axis."""
    axis = axis_of(node._saved_dim, len(_first(shapes)))  # noqa: SLF001 -- as above
    return [owners._replace(axis=owners.axis + (axis <= owners.axis))]


def stack(node: Node, owners: Owners, shapes: Shapes) -> IntegerAnswers | None:
    """Inputs behind one another on an axis of their own."""
    axis = axis_of(node._saved_dim, len(output_shape(node, 0)))  # noqa: SLF001 -- as above
    if axis == owners.axis:
        return None
    answer = owners._replace(axis=owners.axis - (axis < owners.axis))
    return [None if s is None else answer for s in shapes]


def index(node: Node, owners: Owners, _shapes: Shapes) -> IntegerAnswers | None:
    """Serve ``x[:, i]``, by indices on later axes than the units'."""
    # x[:, i, j] leaves axis 0 alone; indices that are not side by side, x[i, :, j], put
    # their own axes first, which is left to the rule that writes owners out.
    given = saved(node, "indices")
    first = next(k for k, one in enumerate(given) if one is not None)
    run = [one is not None for one in given[first:]]
    if owners.axis >= first or not all(run[: sum(run)]):
        return None
    return [owners]


def _first(shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the first input that is asked for."""
    return next(s for s in shapes if s is not None)
