"""Flags by which a node's gradient depends on the rest of the batch, or has no rows.

The graph shows what a node is connected to, not that its backward divides a row by how
often the whole batch looked it up. All backward formulas of torch 2.13 (its
``derivatives.yaml``) were read for this once. What else reads the batch in them is no
flag, but an axis that a rule of owners couples (torch 2.14 changed none of this):

* batch norms that train: all axes but the channels';
* losses with ``reduction="mean"`` or ``"sum"``: their one output belongs to all;
* maxima and minima, which spread a gradient evenly over ties: the axis they reduce;
* means of ``index_reduce``, ``scatter_reduce`` and ``segment_reduce``, which divide by
  how many rows came: rows that go to one place belong to one unit;
* weighted means of ``nll_loss``: only with a reduction.

``grad_factor`` of ``fake_quantize_learnable`` is a number that the program gives.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from dp.exceptions import SampleMixingError, UnsupportedOperationError
from dp.per_sample._graph.nodes import Node, is_nested, name_of, nested_error


__all__ = ("check_flags", "flags_of")

_BY_FREQUENCY: Final = "scale_grad_by_freq"
_SPARSE: Final = {
    "sparse": "sparse gradients; create the layer with sparse=False",
    "sparse_grad": "sparse gradients; call torch.gather with sparse_grad=False",
}
_FLAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "EmbeddingBackward0": (_BY_FREQUENCY, "sparse"),
    "EmbeddingBagBackward0": (_BY_FREQUENCY, "sparse"),
    "GatherBackward0": ("sparse_grad",),
}
_NESTED: Final = ("NestedTensor", "NestedView", "NestedGet", "NestedFrom")


def flags_of(name: str) -> tuple[str, ...]:
    """Return the flags of a kind of nodes that have to be looked at."""
    return _FLAGS.get(name, ())


def check_flags(nodes: Iterable[Node]) -> None:
    """Refuse nodes whose gradient is scaled by the batch, or lies in no rows.

    Raises:
        SampleMixingError: If it is scaled by how often the batch looks a row up.
        UnsupportedOperationError: If it is sparse or nested.
    """
    for node in nodes:
        _check_node(node)


def _check_node(node: Node) -> None:
    name = name_of(node)
    for flag in flags_of(name):
        if not getattr(node, f"_saved_{flag}"):
            continue
        if flag == _BY_FREQUENCY:
            raise SampleMixingError(
                f"{name} has scale_grad_by_freq=True, which divides a row's gradient by"
                " how often the whole batch looks it up: examples are mixed. Create the"
                " layer with scale_grad_by_freq=False"
            )
        raise UnsupportedOperationError(f"{name} has {_SPARSE[flag]}")
    # Also operations between, whose names say nothing, and what leads out of them.
    if is_nested(node) or any(part in name for part in _NESTED):
        raise nested_error(name)
