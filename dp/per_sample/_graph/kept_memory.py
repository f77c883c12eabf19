"""What the nodes of a graph keep for the backward pass, and when that is freed.

A tensor that several nodes keep is there once, and is freed with the last of them.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from dp.per_sample._graph.nodes import Node


__all__ = ("freed_before",)

_KEPT: Final = "_raw_saved_"

_names_of: Final[dict[type, Sequence[str]]] = {}


def freed_before(
    nodes: Sequence[Node], uses: Collection[Node], parameters: Collection[Tensor]
) -> dict[Node, float]:
    """Return the bytes that the backward pass frees before each use, and after the last.

    Args:
        nodes: The nodes of a graph, inputs before outputs.
        uses: Those that are asked about.
        parameters: What stays in memory, although nodes keep it.
    """
    owned = {_address(parameter) for parameter in parameters}
    sizes: dict[int, int] = {}
    last: dict[int, int] = {}
    backwards = [*reversed(nodes)]
    for place, node in enumerate(backwards):
        for tensor in _kept_results(node):
            address = _address(tensor)
            if address not in owned:
                sizes[address] = tensor.untyped_storage().nbytes()
                last[address] = place
    freed_by = [0.0] * len(backwards)
    for address, place in last.items():
        freed_by[place] += sizes[address]
    freed: dict[Node, float] = {}
    total = 0.0
    for node, num_bytes in zip(backwards, freed_by, strict=True):
        if node in uses:
            # What this node keeps is there while it runs, and is free at the next use.
            freed[node], total = total, 0.0
        total += num_bytes
    return freed


def _kept_results(node: Node) -> Iterator[Tensor]:
    """Yield what a node keeps of what others computed.

    Inputs of the model have no graph: whoever made them still has them. What was packed
    by hooks, as a checkpoint does, takes no memory here.
    """
    for one in _kept(node):
        if (
            isinstance(one, Tensor)
            and not one.is_leaf
            and one.layout == torch.strided
            and type(one) is Tensor
        ):
            yield one


def _kept(node: Node) -> list[Any]:
    if isinstance(node, BackwardCFunction):
        return [] if _is_packed(node._raw_saved_tensors) else [*node.saved_tensors]  # noqa: SLF001
    return [
        value
        for name in _names(type(node))
        if not _is_packed(getattr(node, _KEPT + name))
        for value in tree_leaves(getattr(node, f"_saved_{name}"))
    ]


def _names(kind: type) -> Sequence[str]:
    """Return the names under which nodes of a kind keep tensors."""
    if kind not in _names_of:
        _names_of[kind] = [
            name.removeprefix(_KEPT) for name in dir(kind) if name.startswith(_KEPT)
        ]
    return _names_of[kind]


def _is_packed(raw: Any) -> bool:
    """Whether hooks packed some of what is kept, so that reading it would unpack it."""
    return any(
        getattr(one, "unpack_hook", None) is not None for one in tree_leaves(raw)
    )


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())
