"""What a node holds that the graph does not show.

Autograd lists the inputs of a node that have a graph. Data, constants, indices and
conditions have none; only what the node keeps of them tells that they are there.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from dp.per_sample._graph.nodes import (
    Node,
    is_checkpointed,
    is_number,
    name_of,
    output_shape,
    saved,
)
from dp.per_sample._graph.public import PublicTensors


__all__ = (
    "LOOKUPS",
    "SUMS",
    "WITH_FACTOR",
    "constant_factor",
    "facts",
    "kept_without_graph",
    "looked_up",
    "signature",
    "unexplained",
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


def signature(
    node: Node, name: str, behind: Sequence[int], public: PublicTensors
) -> tuple[Hashable, ...] | None:
    """Return None for a node of parameters alone, else what names the use.

    An empty name is that of a use that cannot be constant.

    Args:
        node: A node whose inputs that have a graph are all of parameters.
        name: Of its operation.
        behind: What identifies these parameters.
        public: What was declared to be no data.
    """
    if not _meets_data(node, name) or _keeps_only_public(node, public):
        return None
    shape = output_shape(node, 0)
    if name in SUMS or name in WITH_FACTOR:
        edges = node.next_functions
        shapes = [_shape_of(child, index) for child, index in edges if child]
        # A result larger than the operand has an axis that the parameter does not: bias
        # [D] plus x [B, D] meets data. A table [T, D] plus something of [T, D] may be
        # the sum with a constant, and is named so that the analysis can try that.
        if shape not in shapes:
            return ()
    elif name not in LOOKUPS:
        return ()
    return (name, *behind, shape)


def facts(node: Node, behind: Sequence[int] | None, public: PublicTensors) -> Hashable:
    """Return all that decides what a node is besides its name and its inputs.

    Args:
        node: One that may hold something that the graph does not show.
        behind: If its inputs are of parameters alone, what identifies these.
        public: What was declared to be no data.
    """
    name = name_of(node)
    factor = _kind_of_factor(node) if name in WITH_FACTOR else None
    sign = None if behind is None else signature(node, name, behind, public)
    return factor, sign is None, bool(sign)


def _kind_of_factor(node: Node) -> Hashable:
    constant = constant_factor(node)
    if constant is None or is_number(constant):
        # True stands for what a checkpoint would have to compute again, False for a
        # number of the program: the value of 0.5 does not matter, that it is one does.
        return constant is None
    return "one" if constant.numel() == 1 else "several"


def _shape_of(node: Node, index: int) -> Sequence[int]:
    if node.next_functions:
        return output_shape(node, index)
    return tuple(node.variable.shape)


def _meets_data(node: Node, name: str) -> bool:
    """Whether a node may hold data of examples that the graph does not show."""
    if isinstance(node, BackwardCFunction):
        # Function.apply(w, x) and Function.apply(w) look the same on the graph, where x
        # has none.
        return not _takes_nothing_else(node)
    # Autograd lists no index and no condition among the inputs, and what an unknown
    # function kept may be anything.
    if not name[-1].isdigit() or any(word in name for word in _INDEXING):
        return True
    # weight * gain, where both are parameters: nothing is beside them.
    if all(child is not None for child, _ in node.next_functions):
        return False
    if name not in WITH_FACTOR:
        return True
    constant = constant_factor(node)
    return constant is None or not is_number(constant)


def _takes_nothing_else(node: Node) -> bool:
    """Whether a custom function took and kept nothing but what has a graph."""
    inputs = [child for child, _ in node.next_functions if child is not None]
    return (
        # Flags are of all arguments, numbers too, and inputs of tensors with a graph
        # alone: apply(w, 3) has two flags and one input, and is not trusted.
        len(node.needs_input_grad) == len(inputs)
        and all(kept.requires_grad for kept in node.saved_tensors)
        and not any(isinstance(one, Tensor) for one in tree_leaves(vars(node)))
    )


def _keeps_only_public(node: Node, public: PublicTensors) -> bool:
    """Whether all that a node keeps and that has no graph was declared public."""
    if not public:
        return False
    # A sum keeps neither side, so that one with a declared tensor cannot be told from
    # one with data: what keeps nothing is not excused.
    kept = kept_without_graph(node)
    return bool(kept) and all(public.has(one) for one in kept)


def kept_without_graph(node: Node) -> list[Tensor]:
    """Return what a node keeps for its backward pass and that has no graph."""
    if isinstance(node, BackwardCFunction):
        kept = [*node.saved_tensors, *tree_leaves(vars(node))]
    else:
        names = [name for name in dir(node) if name.startswith("_saved_")]
        kept = tree_leaves([getattr(node, name) for name in names])
    return [one for one in kept if isinstance(one, Tensor) and not one.requires_grad]


def constant_factor(node: Node) -> Tensor | None:
    """Return what a product or quotient of something with a graph took besides it.

    None is what a checkpoint would have to compute again.
    """
    # Each side needs the other for its gradient: w * c keeps c as "other", c * w keeps
    # it as "self".
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


def unexplained(node: Node, name: str, public: PublicTensors) -> list[Tensor]:
    """Return the factor, indices or conditions of a node that may be data or shared.

    Left out are numbers of the program and what was declared public. Example: in
    ``weight * scale[i]``, where neither ``scale`` nor ``i`` has a graph, the product
    keeps ``scale[i]``, of which nobody can tell whether it is the batch's.
    """
    if name in WITH_FACTOR:
        has_factor = any(child is None for child, _ in node.next_functions)
        factor = constant_factor(node) if has_factor else None
        kept = [] if factor is None or is_number(factor) else [factor]
    else:
        kept = looked_up(node, name) if name in LOOKUPS else []
    return [one for one in kept if not public.has(one)]
