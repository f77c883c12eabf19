"""Where parameters enter an autograd graph: what a walk over it finds.

A *use* is a node that takes data of examples and, beside it, a parameter or something
computed from parameters alone: an *operand*.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dp.per_sample._graph.nodes import Node, name_of, output_shape
from dp.per_sample._graph.views import VIEWS


__all__ = ("Edge", "Graph", "Operand", "Signature", "Use", "shapes_of")

Edge = tuple[Node, int]  # A node and which of its outputs.
Signature = tuple[Hashable, ...]


def shapes_of(parameters: Iterable[Tensor]) -> str:
    """Return the shapes of parameters, for a message."""
    return ", ".join(str(tuple(parameter.shape)) for parameter in parameters)


@final
@dataclass(frozen=True, slots=True)
class Operand:
    """What a use takes of parameters at one of its inputs.

    Attributes:
        edge: Where autograd continues from the use.
        parameters: What it is computed from.
        chain: The views between a single parameter and the operand, nearest to the
            operand first; None if something else lies between them.
    """

    # Example: in addmm(b, x, w.t()[:2]) with w [O, I] the operand at input 2 has the edge
    # (SliceBackward0, 0), the parameters [w] and the chain [slice, T].
    edge: Edge
    parameters: Sequence[Tensor]
    chain: Sequence[Edge] | None

    @property
    def shape(self) -> Sequence[int]:
        """Return the operand's shape."""
        node, index = self.edge
        if name_of(node) == "AccumulateGrad":
            return self.parameters[0].shape
        return output_shape(node, index)

    def seen_in(self, tensor: Tensor) -> Tensor:
        """Return the operand's view of a tensor of the parameter's shape."""
        # From the parameter to the operand, so the chain's end comes first: T, then the
        # slice.
        for node, index in reversed(self.chain or ()):
            tensor = VIEWS[name_of(node)][2](node, index, tensor)
        return tensor


@final
class Use:
    """A node that meets examples' data with parameters.

    Args:
        node: The autograd node.
        bound: Returns what it takes of parameters, by input position.
        outputs: Which of its outputs matter for the losses.
        is_last: Whether no other use lies behind it.
        might_be_constant: What tells it from others, if instead of data of examples
            it may hold something that all of them share.
    """

    __slots__ = (
        "_bound",
        "_operands",
        "is_last",
        "might_be_constant",
        "node",
        "outputs",
    )

    def __init__(
        self,
        node: Node,
        bound: Callable[[], Mapping[int, Operand]],
        outputs: Sequence[int],
        is_last: bool,  # noqa: FBT001 -- a record's field
        might_be_constant: Signature = (),
    ) -> None:
        self.node = node
        self._bound = bound
        self._operands: Mapping[int, Operand] | None = None
        self.outputs = outputs
        self.is_last = is_last
        self.might_be_constant = might_be_constant

    @property
    def operands(self) -> Mapping[int, Operand]:
        """What the node takes of parameters, by input position."""
        # Found when it is asked for: of layers that are served as one, only the first
        # is.
        if self._operands is None:
            self._operands = self._bound()
        return self._operands

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter of the use."""
        return [p for operand in self.operands.values() for p in operand.parameters]

    @property
    def operation(self) -> str:
        """The name of the node, such as ``AddmmBackward0``."""
        return name_of(self.node)

    @property
    def shape(self) -> Sequence[int]:
        """The shape of the first output."""
        return output_shape(self.node, 0)


@final
@dataclass(frozen=True, slots=True)
class Graph:
    """What a walk over a graph found.

    Attributes:
        uses: Every use of the parameters.
        nodes: Every node of data, inputs before outputs.
        followed: The same, and those of parameters alone that lie between a use and
            something of :attr:`assumed`.
        assumed: The nodes of parameters and of something without a graph that were
            taken for shared by all units, and what names each.
        constants: What no graph says the origin of and no axis gives to units: single
            factors, and what parameters alone are multiplied or indexed by.
        hiding: The nodes that hold what decides what they are, and, of those whose
            inputs are of parameters alone, what identifies the parameters.
        above: The nodes that no use lies above.
    """

    # Inputs before outputs, both: the last use is the one nearest to the losses.
    uses: Sequence[Use]
    nodes: Sequence[Node]
    followed: Sequence[Node]
    assumed: Sequence[tuple[Node, Signature]]
    constants: Sequence[tuple[Node, Tensor]]
    hiding: Sequence[tuple[Node, Sequence[int] | None]]
    above: frozenset[Node]
