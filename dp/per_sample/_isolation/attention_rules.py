"""How owners pass attention over packed sequences, whose weights are zero between units.

In one row of tokens of several units, a mask keeps each unit to itself: every weight
between two units is zero, exactly. A weight of zero sends no gradient on, neither to the
value that it weighs nor to the score that it came from. So whom a token is read by is
read off the weights, or off the mask of a fused kernel, at every step.

The weight itself has a gradient: of how it would do if it were not zero, and so of the
other unit's value. A softmax multiplies that by the weight, by zero. A parameter that is
zero, as a gate at the start of a training, does not: it would learn of both.

Example: tokens of the units 0, 0, 1 under a causal mask of blocks have the weights ::

    a . .        rows: who reads; columns: who is read
    b c .        value 0 is read by rows 0 and 1, which are unit 0's: it is unit 0's
    . . d        value 2 is read by row 2 alone: it is unit 1's

Zero times what is not finite is not zero: then nothing is apart, and it is refused.

Shapes: ``T`` tokens that read, ``S`` that are read, ``[..]`` of images and heads.
"""

import math
from typing import Final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Node, saved
from dp.per_sample._isolation.owners import MIXED, NOBODY, meet
from dp.per_sample._isolation.static_rules import (
    Answers,
    Shapes,
    along,
    couples,
    leading,
    product,
)


__all__ = ("BY_ZEROS", "bmm", "fused_attention", "reads_along_rows", "softmax")

_HEADS: Final = 2  # Axes before the positions: [B, H, T, D].
# What a mask adds where nothing is to be read: minus infinity, or the least number of
# float32, bfloat16 and float64. Scores of up to the bound change neither to a weight.
_CLOSED: Final = -1e38
_LARGEST_SCORE: Final = 1e30


def softmax(node: Node, rows: Tensor, shapes: Shapes) -> Answers | None:
    """Serve a softmax over keys: a score whose weight is zero gets no gradient."""
    answers = _coupled(node, rows, shapes)
    is_last = along(node, rows.dim()) == [rows.dim() - 1]
    if not is_last or not reads_along_rows(rows):
        return answers
    is_read = saved(node, "result") != 0  # As NaN is.
    reached = torch.where(_in_any(is_read, rows), rows, NOBODY)
    whole = meet(reached, -1)
    sent = torch.where(_in_any(is_read, whole), whole, NOBODY)
    # Of classes, each is every row's, whatever is zero: it stays short.
    return answers if bool((meet(sent, -2) == MIXED).any()) else [sent]


def bmm(node: Node, rows: Tensor, shapes: Shapes) -> Answers | None:
    """Serve ``weights @ values`` and ``queries @ keys.mT`` of several heads."""
    answers = _product(node, rows, shapes)
    read_by = None if answers is None else answers[1]
    if read_by is None or not bool((read_by == MIXED).any()):
        return answers
    weights, values = saved(node, "self"), saved(node, "mat2")
    if weights is None or (values is not None and not bool(values.isfinite().all())):
        return answers
    whole = meet(rows, -1)
    reads = _in_any(weights != 0, whole)
    sent = meet(torch.where(reads, whole, NOBODY), -2).mT
    is_own = reads | (_owner_of_values(sent, whole) == whole.mT).mT
    return [
        None if shapes[0] is None else torch.where(is_own, whole, MIXED),
        torch.where(read_by == MIXED, sent, read_by),
    ]


def _owner_of_values(sent: Tensor, whole: Tensor) -> Tensor:
    """Return whose the values are; where nothing reads one, that of the row beside it."""
    # Example: dropout left nothing that reads a unit's only token. That tokens are in the
    # same places on both sides is believed where no other token denies it.
    is_beside = sent.shape == whole.shape
    is_denied = not is_beside or bool(((sent != whole) & (sent != NOBODY)).any())
    return sent if is_denied else whole


def fused_attention(node: Node, rows: Tensor, shapes: Shapes) -> Answers | None:
    """Serve ``scaled_dot_product_attention`` under a mask."""
    answers = _of_heads(node, rows, shapes)
    whole = meet(rows, -1) if rows.dim() > _HEADS else rows
    # Of the type: to ask the node would be to read what it kept, which can be done once.
    if not reads_along_rows(whole) or not hasattr(type(node), "_saved_attn_mask"):
        return answers
    mask = saved(node, "attn_mask")
    if mask is None:
        return answers
    query, key, value = (saved(node, name) for name in ("query", "key", "value"))
    are_alike = query.shape[:_HEADS] == key.shape[:_HEADS]  # Heads may share keys.
    if not are_alike or any(s is not None for s in shapes[3:]):
        return answers
    if not all(bool(one.isfinite().all()) for one in (query, key, value)):
        return answers
    is_closed = mask <= _closed(node, query, key)
    # Where a row may read nothing, a finite mask makes it read everything alike.
    is_open = ~is_closed | is_closed.all(-1, keepdim=True)
    is_open = is_open.expand(*[1] * (whole.dim() - is_open.dim()), *is_open.shape)
    read_by = meet(torch.where(_in_any(is_open, whole), whole, NOBODY), -2).mT
    return [
        None if shape is None else one
        for shape, one in zip(shapes, (whole, read_by, read_by, None), strict=False)
    ]


def _closed(node: Node, query: Tensor, key: Tensor) -> float:
    """Return what a mask adds at most where nothing is read, for scores of this size."""
    scale = node._saved_scale or query.shape[-1] ** -0.5  # noqa: SLF001 -- see _graph.nodes
    largest = [float(one.abs().amax()) for one in (query, key)]
    is_small = math.prod(largest) * query.shape[-1] * abs(scale) < _LARGEST_SCORE
    return _CLOSED if is_small else -math.inf


def reads_along_rows(rows: Tensor) -> bool:
    """Whether tokens that read, along the last axis but one, are several units'."""
    return rows.dim() > 1 and rows.shape[-2] > 1


def _in_any(reads: Tensor, whole: Tensor) -> Tensor:
    """Return which rows read which columns, in any head that the owners do not name."""
    axes = [k for k in range(whole.dim() - 2) if whole.shape[k] == 1]
    return reads.any(axes, keepdim=True) if axes else reads


_coupled: Final = couples(along)
_product: Final = product(0, 1)
_of_heads: Final = leading(_HEADS)
BY_ZEROS: Final = (bmm, fused_attention)
"""The rules by which values are apart that rows of several units are summed from."""
