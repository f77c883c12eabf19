"""What a node holds that the graph does not show.

Autograd lists the inputs of a node that have a graph. Data, constants, indices and
conditions have none; only what the node keeps of them tells that they are there.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Final

from torch import Tensor

from dp.per_sample._graph.nodes import (
    Node,
    is_checkpointed,
    is_number,
    name_of,
    output_shape,
    saved,
    size,
)


__all__ = (
    "LOOKUPS",
    "SUMS",
    "WITH_FACTOR",
    "arguments_of",
    "axes_of",
    "batch_axes",
    "constant_factor",
    "facts",
    "has_room",
    "looked_up",
    "signature",
)

# Operations of a parameter and of something else that has no graph, data or a constant,
# and what they keep of it.
WITH_FACTOR: Final = frozenset({"DivBackward0", "MulBackward0"})
SUMS: Final = frozenset({"AddBackward0", "SubBackward0"})
LOOKUPS: Final[Mapping[str, str]] = {
    "EmbeddingBackward0": "indices",
    "GatherBackward0": "index",
    "IndexBackward0": "indices",
    "IndexSelectBackward0": "index",
    "MaskedFillBackward0": "mask",
    "WhereBackward0": "condition",
}
# Operations that pick by indices or conditions, which autograd does not list as inputs.
# Custom functions, whose nodes' names end in no digit, may hide anything.
_INDEXING: Final = ("Embedding", "Gather", "Index", "Mask", "Scatter", "Take", "Where")

# Arguments that decide which examples meet under shapes that stay the same. Sizes and
# positions are left out: they follow the lengths of a batch.
_ARGUMENTS: Final = (
    "axis",
    "batch_first",
    "dim",
    "dim0",
    "dim1",
    "dim2",
    "dimension",
    "dims",
    "scale_grad_by_freq",
    "shifts",
    "source_dim",
    "train",
    "training",
)


@cache
def arguments_of(kind: type) -> Callable[[Node], Hashable] | None:
    """Return what reads a kind of nodes' arguments; None if there are none to read."""
    names = [
        f"_saved_{name}"
        for name in _ARGUMENTS
        if hasattr(kind, f"_saved_{name}") and not hasattr(kind, f"_raw_saved_{name}")
    ]
    return attrgetter(*names) if names else None


def signature(
    node: Node, name: str, behind: Sequence[int]
) -> tuple[Hashable, ...] | None:
    """Return None for a node of parameters alone, else what names the use.

    An empty name is that of a use that cannot be constant.

    Args:
        node: A node whose inputs that have a graph are all of parameters.
        name: Of its operation.
        behind: What identifies these parameters.
    """
    if not _meets_data(node, name):
        return None
    shape = output_shape(node, 0)
    if name in SUMS or name in WITH_FACTOR:
        edges = node.next_functions
        shapes = [_shape_of(child, index) for child, index in edges if child]
        if shape not in shapes:
            return ()
    elif name not in LOOKUPS:
        return ()
    return (name, *behind, shape)


def facts(
    node: Node,
    behind: Sequence[int] | None,
    num_samples: int,
    constants: Collection[Hashable],
) -> Hashable:
    """Return all that decides what a node is besides its name and its inputs.

    Args:
        node: One that may hold something that the graph does not show.
        behind: If its inputs are of parameters alone, what identifies these.
        num_samples: The number of examples.
        constants: Of uses that might be constant, those that are.
    """
    name = name_of(node)
    factor = _kind_of_factor(node) if name in WITH_FACTOR else None
    found = None if behind is None else signature(node, name, behind)
    if not found:
        return factor, found
    room = has_room(output_shape(node, 0), num_samples)
    return factor, not room or found in constants, room


def _kind_of_factor(node: Node) -> Hashable:
    constant = constant_factor(node)
    if constant is None or is_number(constant):
        return constant is None
    return "one" if constant.numel() == 1 else "several"


def _shape_of(node: Node, index: int) -> Sequence[int]:
    if node.next_functions:
        return output_shape(node, index)
    return tuple(node.variable.shape)


def _meets_data(node: Node, name: str) -> bool:
    """Whether a node may hold data of examples that the graph does not show."""
    if not name[-1].isdigit() or any(word in name for word in _INDEXING):
        return True
    if all(child is not None for child, _ in node.next_functions):
        return False
    if name not in WITH_FACTOR:
        return True
    constant = constant_factor(node)
    return constant is None or not is_number(constant)


def constant_factor(node: Node) -> Tensor | None:
    """Return what a product or quotient of something with a graph took besides it.

    None is what a checkpoint would have to compute again.
    """
    with_graph = node.next_functions[0][0] is not None
    name = "other" if with_graph else "self"
    factor: Tensor | None = None if is_checkpointed(node, name) else saved(node, name)
    return factor


def looked_up(node: Node, name: str) -> list[Tensor]:
    """Return the indices or conditions of a node of :data:`LOOKUPS`."""
    kept = saved(node, LOOKUPS[name])
    return [
        one for one in (kept if isinstance(kept, tuple) else (kept,)) if one is not None
    ]


def has_room(shape: Sequence[int], num_samples: int) -> bool:
    """Whether a tensor may hold something of every example."""
    return size(shape) == 0 or any(length % num_samples == 0 for length in shape)


def axes_of(node: Node, num_samples: int) -> Hashable:
    """Return which axes of a node's outputs may hold the examples."""
    metadata = node._input_metadata  # noqa: SLF001 -- see _nodes
    return tuple([batch_axes(output.shape, num_samples) for output in metadata])


def batch_axes(shape: Sequence[int], num_samples: int) -> Hashable:
    """Return which axes may hold the examples, alone or with positions."""
    return tuple(
        [
            0 if size % num_samples else 2 if size == num_samples else size > 0
            for size in shape
        ]
    )
