"""How owners pass the operations that move rows by what they kept: indices and masks.

Where rows go differs from batch to batch in graphs of the same shape, so these rules
run at every step. A node's index costs as many whole numbers as it has rows.

Shapes: ``rows`` broadcast to the shape of the node's output; ``N`` rows moved.
"""

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Node, output_shape, saved, size
from dp.per_sample._isolation.owner_moves import broadcast_from, moved_along
from dp.per_sample._isolation.owners import NOBODY, meet, scattered
from dp.per_sample._isolation.static_rules import (
    Answers,
    Shapes,
    axis_of,
    product,
)


__all__ = (
    "embedding",
    "gather",
    "index",
    "index_put",
    "index_select",
    "masked_scatter",
    "masked_select",
    "mm",
    "pack_padded",
    "scatter",
    "sparse_addmm",
    "with_source",
)


def index(node: Node, rows: Tensor, shapes: Shapes) -> Answers | None:
    """Serve ``x[i]``, ``x[i, j]``, ``x[mask]``, ``x[:, i]``: one run of indices."""
    (shape,) = shapes
    assert shape is not None  # noqa: S101 -- the node's only input
    # Example: x[i] of [4, D] with i = 2, 0, 2 and owners 0, 1, 1 of the result. Row 0
    # of x is unit 1's, row 2 was taken for both, so it is mixed, and the rest is
    # nobody's.
    given = saved(node, "indices")
    first = next(k for k, one in enumerate(given) if one is not None)
    run = [one is not None for one in given[first:]]
    # x[i, :, j] brings the indexed axes to the front: its own backward is asked.
    if not all(run[: sum(run)]):
        return None
    numbers = torch.broadcast_tensors(*_numbers(given))
    sizes = shape[first : first + len(numbers)]
    # Several indices side by side are one index into their axes taken as one: x[i, j] of
    # [3, 4, ...] is row 4 * i + j of [12, ...]. Negative ones count from the end.
    flat = numbers[0] % max(sizes[0], 1)
    for one, length in zip(numbers[1:], sizes[1:], strict=True):
        flat = flat * length + one % max(length, 1)
    behind = first + flat.dim()
    lead, rest = rows.shape[:first], rows.shape[behind:]
    if all(n == 1 for n in rows.shape[first:behind]):
        rows = rows.reshape([*lead, 1, *rest])
    else:
        rows = rows.expand([*lead, *flat.shape, *rest]).reshape([*lead, -1, *rest])
    inner = [*[1] * first, size(sizes), *[1] * len(rest)]
    moved = moved_along(rows, inner, first, flat.reshape(-1))
    return [moved.reshape([*moved.shape[:first], *sizes, *moved.shape[first + 1 :]])]


def _numbers(given: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Return indices and masks as numbers."""
    numbers: list[Tensor] = []
    for one in given:
        if one is not None:
            is_mask = one.dtype in (torch.bool, torch.uint8)
            numbers += one.nonzero(as_tuple=True) if is_mask else [one.long()]
    return numbers


def index_select(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Serve ``x.index_select``."""
    (shape,) = shapes
    assert shape is not None  # noqa: S101 -- the node's only input
    axis = axis_of(node._saved_dim, len(shape))  # noqa: SLF001 -- see _graph.nodes
    if not shape:
        return [meet(rows, 0)[0] if rows.dim() else rows]
    return [moved_along(rows, shape, axis, saved(node, "index"))]


def embedding(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Rows of a table that is computed of data."""
    (shape,) = shapes
    assert shape is not None  # noqa: S101 -- the node's only input
    indices = saved(node, "indices")
    # [B, T, D] as [B * T, D], one row for each lookup.
    flat = rows.expand([*indices.shape, rows.shape[-1]]).reshape(-1, rows.shape[-1])
    return [moved_along(flat, shape, 0, indices.reshape(-1))]


def gather(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Serve ``x.gather``, ``take_along_dim``."""
    shape = shapes[0]
    assert shape is not None  # noqa: S101 -- the node's only input
    where = saved(node, "index")
    if rows.dim() == 0:
        return [rows.reshape([1] * len(shape))]
    axis = axis_of(node._saved_dim, len(shape))  # noqa: SLF001 -- as above
    # An index that is shorter on another axis leaves the rest of it nobody's.
    same = all(
        where.shape[k] == shape[k]
        for k in range(len(shape))
        if k != axis and rows.shape[k] > 1
    )
    if rows.shape[axis] == 1 and same:
        return [rows]  # Entries trade places among one unit's.
    return [scattered(rows.expand(where.shape), shape, axis, where)]


def with_source(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Serve ``x.index_add``, ``index_copy``, ``index_reduce``."""
    into, source = shapes
    if rows.dim() == 0:
        return [None if s is None else rows.reshape([1] * len(s)) for s in shapes]
    axis = axis_of(node._saved_dim, rows.dim())  # noqa: SLF001 -- as above
    # Row k of the source went to row index[k]. Example: messages along three edges to
    # the nodes 1, 1, 0 of units 0, 1 (one graph each) are of the units 1, 1, 0.
    sent = rows if rows.shape[axis] == 1 else rows.index_select(axis, _index(node))
    return [
        # What was overwritten of the target gets no gradient; to call it its row's is
        # harmless.
        None if into is None else rows,
        None if source is None else broadcast_from(sent, source),
    ]


def _index(node: Node) -> Tensor:
    where: Tensor = saved(node, "index")
    return where


def scatter(node: Node, rows: Tensor, shapes: Shapes) -> Answers | None:
    """Serve ``x.scatter``, ``scatter_add``, ``scatter_reduce``."""
    answers: Answers = [None if shapes[0] is None else rows]
    if len(shapes) == 1 or shapes[1] is None:
        return [*answers, *[None] * (len(shapes) - 1)]
    where = _index(node)
    if tuple(where.shape) != tuple(shapes[1]) or rows.dim() == 0:
        return None  # Only a part of the source is used.
    if rows.numel() > 1:
        axis = axis_of(node._saved_dim, rows.dim())  # noqa: SLF001 -- as above
        # Entry k of the source went to place where[k] of the axis, all else unchanged.
        full = rows.expand(output_shape(node, 0))
        rows = full.gather(axis, where)
    return [*answers, rows]


def index_put(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Serve ``x[i] = values``."""
    into, values = shapes  # The node has both inputs, with a graph or without.
    answers: Answers = [None if into is None else rows]
    if values is None:
        return [*answers, None]
    full = rows.expand(output_shape(node, 0))
    given = saved(node, "indices")
    # The owners are read as the values were written: by the same indices.
    written = full[tuple(slice(None) if i is None else i for i in given)]
    return [*answers, broadcast_from(written, values)]


def masked_scatter(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Serve ``x.masked_scatter``: the first entries of a source, one after another."""
    into, source = shapes
    answers: Answers = [None if into is None else broadcast_from(rows, into)]
    if source is None:
        return [*answers, None]
    shape = output_shape(node, 0)
    written = rows.expand(shape)[saved(node, "mask").expand(shape)]
    sent = rows.new_full([size(source)], NOBODY)
    # The source is read in order; what was not needed of it sends no gradient.
    sent[: len(written)] = written
    return [*answers, sent.view(source)]


def masked_select(node: Node, rows: Tensor, shapes: Shapes) -> Answers | None:
    """Serve ``x.masked_select``."""
    (shape,) = shapes
    assert shape is not None  # noqa: S101 -- the node's only input
    mask = saved(node, "mask")
    # A mask that spreads the input makes copies of its entries: its own backward is
    # asked.
    if torch.broadcast_shapes(shape, mask.shape) != torch.Size(shape):
        return None
    # What was not selected sends no gradient, and is nobody's.
    owners = rows.new_full(shape, NOBODY)
    mask = mask.expand(shape)
    owners[mask] = rows.expand(int(mask.sum()))
    return [owners]


def pack_padded(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Serve ``pack_padded_sequence``: the first steps of all sequences, then the second."""
    (shape,) = shapes
    assert shape is not None  # noqa: S101 -- the node's only input
    is_batch_first = node._saved_batch_first  # noqa: SLF001 -- as above
    T, B = shape[1::-1] if is_batch_first else shape[:2]
    # Example: sequences of 3, 2 and 1 steps lie as a a a, b b, c in [T, B]; packed, the
    # sizes are 3, 2, 1 and the rows a0 b0 c0 a1 b1 a2. Padding is not read.
    sizes_T = saved(node, "result1")
    is_read_TB = torch.arange(B) < sizes_T[:, None]
    owners = rows.new_full([T, B, *rows.shape[1:]], NOBODY)
    written = rows.expand([int(sizes_T.sum()), *rows.shape[1:]])
    owners[: len(sizes_T)][is_read_TB.to(rows.device)] = written
    return [owners.transpose(0, 1) if is_batch_first else owners]


def mm(node: Node, rows: Tensor, shapes: Shapes) -> Answers | None:
    """Serve ``a @ h``, where a may be sparse: a message along every entry."""
    if shapes[-1] is None or not hasattr(node, "_saved_self"):
        return _dense(node, rows, shapes)
    # A graph convolution: row j of h goes to every row i with an entry a[i, j].
    matrix = saved(node, "self")
    if matrix is None or matrix.layout == torch.strided:
        return _dense(node, rows, shapes)
    return [None if shapes[0] is None else meet(rows, -1), _sent(matrix, rows)]


_dense = product(0, 1)


def sparse_addmm(node: Node, rows: Tensor, shapes: Shapes) -> Answers:
    """Serve ``torch.sparse.addmm`` and ``torch.sparse.mm``."""
    into, _, source = shapes  # A sparse matrix with a gradient has no answer.
    return [
        None if into is None else broadcast_from(rows, into),
        None,
        None if source is None else _sent(saved(node, "mat1"), rows),
    ]


def _sent(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return whose row j is that a sparse matrix sends to its rows i."""
    pairs = matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()
    i, j = pairs.coalesce().indices()
    # Example: entries (0, 1) and (1, 1) of a 2 x 2 matrix send row 1 to both rows.
    # Their owners 0 and 1 meet in it: mixed. Row 0 is sent nowhere, and is nobody's.
    sent = meet(rows, -1).expand(matrix.shape[0], 1)[i]
    return scattered(sent, [matrix.shape[1], 1], 0, j[:, None])
