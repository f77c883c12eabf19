"""Rules of indexing: rows of a table that are picked by number.

Shapes: ``B`` examples, ``T`` positions of an example, ``D`` entries of a row.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import leaf
from dp.per_sample._parts.embedding import EmbeddingGrads
from dp.per_sample._rules.context import Parts, Rule, RuleContext


__all__ = ("INDEX_RULES",)

_MATRIX: Final = 2
_WHOLE_NUMBERS: Final = frozenset({torch.int64, torch.int32})


def _index(context: RuleContext, grad: Tensor) -> Parts:
    (indices,) = context.saved("indices")
    return _rows(context, indices, grad)


def _index_select(context: RuleContext, grad: Tensor) -> Parts:
    return _rows(context, context.saved("index"), grad)


def _rows(context: RuleContext, indices: Tensor, grad: Tensor) -> Parts:
    """Return the parts of ``table[indices]``, [..., D] of [...]."""
    # Example: table [5, D] and indices [[0, 3], [3, -1]] of two examples. The lookups
    # are rows 0, 3, 3, 4 of examples 0, 0, 1, 1: a row may be looked up by both, and by
    # one twice.
    g_BTD = context.rows(grad)
    num_rows = context.operands[0].shape[0]
    # With a last axis of length 1, so that examples are found in them as in the
    # gradient.
    indices_BT1 = context.rows(indices.long().remainder(num_rows)[..., None])
    B, T, D = g_BTD.shape
    owners_B1 = torch.arange(B, device=grad.device)[:, None]
    part = EmbeddingGrads(
        indices_BT1.flatten(),
        owners_B1.expand(B, T).flatten(),
        g_BTD.reshape(B * T, D),
        num_rows=num_rows,
        num_samples=B,
    )
    return {0: part}


def _takes_rows(context: RuleContext) -> bool:
    """Whether whole rows of a matrix are picked, with the examples on an index's axis."""
    is_matrix = len(context.operands[0].shape) == _MATRIX
    # Not on the last axis, where the entries of a row lie, which all examples share.
    return is_matrix and context.axis < len(context.use.shape) - 1


def _takes_rows_by_number(context: RuleContext) -> bool:
    indices = context.saved("indices")
    is_single = len(indices) == 1 and indices[0].dtype in _WHOLE_NUMBERS
    return is_single and _takes_rows(context)


def _selects_rows(context: RuleContext) -> bool:
    # index_select(1, i) picks columns.
    return context.saved("dim") == 0 and _takes_rows(context)


INDEX_RULES: Final[Mapping[str, Rule]] = {
    "IndexBackward0": Rule(
        parts=_index,
        reads=("indices",),
        example=lambda: leaf(2, 1)[torch.zeros(1, dtype=torch.long, device="cpu")],
        applies=_takes_rows_by_number,
        spreads=_takes_rows_by_number,
    ),
    "IndexSelectBackward0": Rule(
        parts=_index_select,
        reads=("dim", "index"),
        example=lambda: leaf(2, 1).index_select(
            0, torch.zeros(1, dtype=torch.long, device="cpu")
        ),
        applies=_selects_rows,
        spreads=_selects_rows,
    ),
}
