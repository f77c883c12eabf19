"""Find where parameters enter an autograd graph.

A *use* is a node that takes data of examples and, beside it, a parameter or something
computed from parameters alone. What lies between a parameter and its use is a chain:
a direct one only transposes or casts, so that a rule can see the parameter through it.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from torch import Tensor


__all__ = ("Graph", "Use", "output_shape", "saved", "walked")

Node = Any  # torch.autograd.graph.Node has no types for its attributes.

_TRANSPOSING: Final = frozenset(
    {"PermuteBackward0", "TBackward0", "TransposeBackward0"}
)
# Operations that pick by indices or conditions, which autograd does not list as inputs.
# Custom functions, whose nodes' names end in no digit, may hide anything.
_INDEXING: Final = ("Embedding", "Gather", "Index", "Mask", "Scatter", "Take", "Where")
_MATRIX: Final = 2  # Axes that transposing exchanges.
_SAME_SHAPE: Final = frozenset({"AliasBackward0", "ToCopyBackward0"})


@final
@dataclass(frozen=True, slots=True)
class Use:
    """A node that meets examples' data with parameters.

    Attributes:
        node: The autograd node.
        direct: Parameter and whether it is transposed, by input position.
        derived: Parameters that reach the node through some computation of their own.
    """

    node: Node
    direct: Mapping[int, tuple[Tensor, bool]]
    derived: tuple[Tensor, ...]

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter of the use, direct and derived."""
        return [*(parameter for parameter, _ in self.direct.values()), *self.derived]

    @property
    def operation(self) -> str:
        """The name of the node, such as ``AddmmBackward0``."""
        return type(self.node).__name__


@final
@dataclass(frozen=True, slots=True)
class Graph:
    """What a walk over a graph found.

    Attributes:
        uses: Every use of the parameters.
        shape: Equal for graphs of the same operations on the same parameters, with
            the batch on the same axes; sizes of other axes make no difference.
    """

    uses: Sequence[Use]
    shape: Hashable


def walked(root: Node, parameters: Iterable[Tensor], *, num_samples: int) -> Graph:
    """Find every use of *parameters* in the graph below *root*."""
    chains = _Chains({id(p): p for p in parameters})
    uses: list[Use] = []
    shape: list[Hashable] = []
    seen: set[Node] = {root}
    pending = [root]
    while pending:
        node = pending.pop()
        use, others = _divided(node, chains)
        shape.append((type(node).__name__, _batch_axes(node, num_samples)))
        if use is not None:
            uses.append(use)
            shape.append(tuple(map(id, use.parameters)))
        unseen = [child for child in others if child not in seen]
        seen.update(unseen)
        pending.extend(unseen)
    return Graph(uses, tuple(shape))


def _divided(node: Node, chains: "_Chains") -> tuple[Use | None, list[Node]]:
    """Return what a node takes of parameters, and its other inputs."""
    direct: dict[int, tuple[Tensor, bool]] = {}
    derived: dict[int, Tensor] = {}
    others: list[Node] = []
    for position, (child, _) in enumerate(node.next_functions):
        if child is None:
            continue
        found = chains.direct(child)
        behind = chains.parameters(child)
        if found is not None:
            direct[position] = found
        elif behind:
            derived.update((id(p), p) for p in behind)
        else:
            others.append(child)
    used = bool(direct or derived)
    return Use(node, direct, tuple(derived.values())) if used else None, others


def _batch_axes(node: Node, num_samples: int) -> Hashable:
    """Which axes of a node's outputs may hold the examples, alone or with positions."""
    return tuple(
        tuple(
            (size >= num_samples) + (size == num_samples)
            if size % num_samples == 0
            else 0
            for size in metadata.shape
        )
        for metadata in _outputs(node)
    )


def _transposes(node: Node) -> bool:
    """Whether a node that turns a matrix exchanges its axes, or leaves them."""
    name = type(node).__name__
    if name == "PermuteBackward0":
        return [axis % _MATRIX for axis in saved(node, "dims")] == [1, 0]
    if name == "TransposeBackward0":
        return bool((saved(node, "dim0") - saved(node, "dim1")) % _MATRIX)
    return True


class _Chains:
    """What nodes are computed from parameters alone, remembered node by node."""

    def __init__(self, parameters: Mapping[int, Tensor]) -> None:
        self._parameters = parameters
        self._behind: dict[Node, Sequence[Tensor]] = {}

    def direct(self, node: Node) -> tuple[Tensor, bool] | None:
        """Return the parameter behind a direct chain, and whether it is transposed."""
        turned = transposed = False
        while True:
            variable = getattr(node, "variable", None)
            if variable is not None:
                known = self._parameters.get(id(variable))
                if known is None or (turned and known.dim() != _MATRIX):
                    return None
                return known, transposed
            name = type(node).__name__
            if name in _TRANSPOSING:
                turned = True
                transposed ^= _transposes(node)
            elif name not in _SAME_SHAPE:
                return None
            node = node.next_functions[0][0]

    def parameters(self, node: Node) -> Sequence[Tensor]:
        """Return the parameters that *node* is computed from, if from nothing else."""
        pending = [node]
        while pending:
            current = pending[-1]
            if current in self._behind:
                pending.pop()
                continue
            children = [
                child for child, _ in current.next_functions if child is not None
            ]
            unknown = [child for child in children if child not in self._behind]
            if unknown:
                pending.extend(unknown)
                continue
            self._behind[pending.pop()] = self._of(current, children)
        return self._behind[node]

    def _of(self, node: Node, children: Sequence[Node]) -> Sequence[Tensor]:
        variable = getattr(node, "variable", None)
        if variable is not None:
            known = self._parameters.get(id(variable))
            return () if known is None else (known,)
        behind = [self._behind[child] for child in children]
        if not behind or not all(behind) or _meets_data(node):
            return ()
        return tuple({id(p): p for found in behind for p in found}.values())


def _meets_data(node: Node) -> bool:
    """Whether a node may hold data of examples that the graph does not show."""
    name = type(node).__name__
    if not name[-1].isdigit() or any(word in name for word in _INDEXING):
        return True
    if all(child is not None for child, _ in node.next_functions):
        return False
    if name != "MulBackward0":
        return True
    factors = (saved(node, "self"), saved(node, "other"))
    return all(factor is None or factor.numel() > 1 for factor in factors)


def output_shape(node: Node) -> Sequence[int]:
    """Return the shape of a node's first output."""
    return tuple(_outputs(node)[0].shape)


def _outputs(node: Node) -> Any:
    return node._input_metadata  # noqa: SLF001 -- torch has no public name for it


def saved(node: Node, name: str) -> Any:
    """Return what *node* kept under *name* for its backward, without its graph."""
    value = getattr(node, f"_saved_{name}")
    return value.detach() if isinstance(value, Tensor) else value
