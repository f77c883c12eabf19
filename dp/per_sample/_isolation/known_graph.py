"""Recognise a graph that is like one that was walked before.

A walk decides of every node what it is. The graphs of a training are nearly always the
same again, for other examples; to see that one is costs a fraction of a walk, and
everything that a walk would look at is looked at: the kind of every node, what it is
connected to, the parameters at its leaves, and what it keeps that no graph shows.

What is left to compare are sizes and arguments: equal sizes have equal owners, as far
as owners follow from shapes. Those of nodes that move rows are followed again.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final, final

from torch import Tensor

from dp.per_sample._graph.nodes import Node, name_of
from dp.per_sample._graph.public import PublicTensors
from dp.per_sample._graph.untracked_inputs import (
    LOOKUPS,
    constant_factor,
    facts,
    looked_up,
)
from dp.per_sample._graph.uses import Edge, Graph, Operand, Use
from dp.per_sample._isolation.rule_table import arguments_reader


__all__ = (
    "BROADCASTING",
    "FOLLOWING",
    "FOLLOWING_ARGUMENTS",
    "FOLLOWING_SOME",
    "Template",
)

# Operations of one tensor whose output has the shape of that tensor.
FOLLOWING: Final = frozenset(
    f"{name}Backward0"
    for name in (
        *(
            "Elu",
            "Exp",
            "Gelu",
            "Hardswish",
            "Hardtanh",
            "LeakyRelu",
            "Log",
            "LogSoftmax",
        ),
        *(
            "Mish",
            "Neg",
            "Relu",
            "Sigmoid",
            "Silu",
            "Sin",
            "Softmax",
            "Softplus",
            "Tanh",
        ),
    )
)

# Operations of two tensors whose output has the shape that theirs are broadcast to.
BROADCASTING: Final = frozenset(
    f"{name}Backward0" for name in ("Add", "Div", "Mul", "Sub")
)

# Operations whose outputs have shapes that follow from those of these inputs alone: a
# product of two matrices, and a norm over the axes of its weight.
FOLLOWING_SOME: Final[Mapping[str, Sequence[int]]] = {
    "AddmmBackward0": (1, 2),
    "MmBackward0": (0, 1),
    "NativeLayerNormBackward0": (0, 1),
}

# Operations whose outputs have shapes that follow from that of their input and from the
# arguments that are compared, of those nodes whose arguments are.
FOLLOWING_ARGUMENTS: Final = frozenset(
    f"{name}Backward0"
    for name in ("Permute", "Select", "Slice", "Split", "Transpose", "UnsafeSplit")
)

_NOBODY: Final = 0  # The place of an input that has no graph.
_Places = Sequence[tuple[int, int]]  # Of edges: the place of a node, and its output.
_Step = tuple[int, Any, _Places]  # A place, the kind of its node, and its inputs.
_Leaf = tuple[int, type, int | None]  # With what identifies its parameter.


@final
class Template:
    """What a graph looks like, every node by its place in a fixed order.

    Args:
        graph: One that was walked.
        root: The node and output of its losses.
        parameters: Those it was walked for.
        public: Tensors that were declared to be no data.
    """

    def __init__(
        self,
        graph: Graph,
        root: Edge,
        parameters: Sequence[Tensor],
        public: PublicTensors,
    ) -> None:
        self._parameters = dict.fromkeys(map(id, parameters))
        self._public = public
        place_of = _places(root[0])
        self._output = root[1]
        self._steps, self._leaves = _steps_and_leaves(place_of, self._parameters)
        self._arguments = [
            (place_of[node], read)
            for node in graph.followed
            for read in [arguments_reader(node)]
            if read is not None
        ]
        own = {place for place, _, owner in self._leaves if owner is not None}
        compared = {place for place, _ in self._arguments}
        self._sized = [
            place
            for node, place in place_of.items()
            if place and place not in own
            if not (_follows(node, place_of, own) or _is_told(node, place in compared))
        ]
        self._nodes = [place_of[node] for node in graph.nodes]
        self._followed = [place_of[node] for node in graph.followed]
        self._assumed = [(place_of[node], sign) for node, sign in graph.assumed]
        self._hiding = [
            (place_of[n], behind, facts(n, behind, public))
            for n, behind in graph.hiding
        ]
        self._constants = _placed_constants(graph, place_of, public)
        index_of = {id(p): i for i, p in enumerate(parameters)}
        self._uses = [_Placed(use, place_of, index_of) for use in graph.uses]

    def matched(self, root: Edge, parameters: Sequence[Tensor]) -> list[Node] | None:
        """Return the nodes by their places, or None if the graph is not like this one."""
        if [*map(id, parameters)] != [*self._parameters]:
            return None
        # First the cheap comparison, of kinds and edges; what nodes keep is read only then.
        nodes = self._connected(root)
        return nodes if nodes is not None and self._is_alike(nodes) else None

    def sizes(self, nodes: Sequence[Node], parameters: Sequence[Tensor]) -> Hashable:
        """Return what owners follow from, in a graph of this form.

        Args:
            nodes: By their places.
            parameters: As for :meth:`matched`.
        """
        # A leaf has its parameter's shape, which is read in a third of the time, and what
        # follows from the shape of an input needs no look.
        shapes: list[tuple[int, ...]] = [parameter.shape for parameter in parameters]
        shapes += [
            tuple(output.shape)
            for place in self._sized
            for output in nodes[place]._input_metadata  # noqa: SLF001 -- see _graph.nodes
        ]
        # Shapes alone are not enough: owners behind x.sum(0) and x.sum(1) of a square differ.
        arguments = [read(nodes[place]) for place, read in self._arguments]
        return (*shapes, *map(_hashable, arguments))

    def bound(
        self, nodes: Sequence[Node], parameters: Sequence[Tensor]
    ) -> Graph | None:
        """Return what a walk would find; None if more is kept than was.

        Args:
            nodes: By their places.
            parameters: As for :meth:`matched`.
        """
        constants: list[tuple[Node, Tensor]] = []
        for place, which, count in self._constants:
            kept = _constants_of(nodes[place], self._public)
            # Constants are data until they are known to be the same in every batch, so one that
            # the walk did not see must not be passed over.
            if len(kept) != count:
                return None
            constants.append((nodes[place], kept[which]))
        return Graph(
            [placed.bound(nodes, parameters) for placed in self._uses],
            [nodes[place] for place in self._nodes],
            [nodes[place] for place in self._followed],
            [(nodes[place], sign) for place, sign in self._assumed],
            constants,
            (),
            frozenset(),
        )

    def _connected(self, root: Edge) -> list[Node] | None:
        """Return the nodes by their places, if they are connected in the same way."""
        nodes: list[Node] = [None, root[0]]
        # Nodes are numbered in the order of a walk by breadth. A child with the next free
        # number must be new, and any other must be the very node that has its number.
        # Example: a tied weight, whose leaf has two parents, is number 3 for both; two
        # weights instead of one would give it numbers 3 and 4, and are another graph.
        count = len(nodes)
        for place, kind, inputs in self._steps:
            node = nodes[place]
            if type(node) is not kind:
                return None
            edges = node.next_functions
            if len(edges) != len(inputs):
                return None
            for (child, output), (expected, same) in zip(edges, inputs):  # noqa: B905 -- fast
                if expected == count:
                    nodes.append(child)
                    count += 1
                elif nodes[expected] is not child:
                    return None
                if output != same:
                    return None
        # A node that is met twice where two were known would pass the loop above.
        is_same = root[1] == self._output and len({*nodes}) == count
        return nodes if is_same else None

    def _is_alike(self, nodes: Sequence[Node]) -> bool:
        # A leaf is a parameter of this optimizer, or of nobody here: frozen, or another's.
        for place, kind, owner in self._leaves:
            leaf = nodes[place]
            # Of a kind that has a parameter, as nearly all are: one call less for each.
            is_same = type(leaf) is kind and owner == (
                _owner(leaf, self._parameters)
                if owner is None
                else id(nodes[place].variable)
            )
            if not is_same:
                return False
        return all(
            facts(nodes[place], behind, self._public) == expected
            for place, behind, expected in self._hiding
        )


@final
class _Placed:
    """A use, by the places of its nodes."""

    def __init__(
        self, use: Use, place_of: Mapping[Node, int], index_of: Mapping[int, int]
    ) -> None:
        self._place = place_of[use.node]
        self._operands = {
            position: (
                (place_of[operand.edge[0]], operand.edge[1]),
                [index_of[id(p)] for p in operand.parameters],
                operand.chain
                and [(place_of[node], index) for node, index in operand.chain],
            )
            for position, operand in use.operands.items()
        }
        self._rest = use.outputs, use.is_last, use.might_be_constant

    def bound(self, nodes: Sequence[Node], parameters: Sequence[Tensor]) -> Use:
        """Return the same use of other nodes."""
        operands = partial(self._bound_operands, nodes, parameters)
        return Use(nodes[self._place], operands, *self._rest)

    def _bound_operands(
        self, nodes: Sequence[Node], parameters: Sequence[Tensor]
    ) -> Mapping[int, Operand]:
        return {
            position: Operand(
                (nodes[place], output),
                tuple([parameters[i] for i in indices]),
                chain and [(nodes[place], output) for place, output in chain],
            )
            for position, (
                (place, output),
                indices,
                chain,
            ) in self._operands.items()
        }


def _places(root: Node) -> dict[Node | None, int]:
    """Return the places of a graph's nodes, those nearest to the root first."""
    # Inputs without a graph all share one place, and are not followed.
    place_of: dict[Node | None, int] = {None: _NOBODY, root: 1}
    nodes = [root]
    for node in nodes:
        for child, _ in node.next_functions:
            if child not in place_of:
                place_of[child] = len(place_of)
                nodes.append(child)
    return place_of


def _steps_and_leaves(
    place_of: Mapping[Node | None, int], parameters: Collection[int]
) -> tuple[list[_Step], list[_Leaf]]:
    """Return the nodes that have inputs, and those that have none, by their places."""
    steps: list[_Step] = []
    leaves: list[_Leaf] = []
    for node, place in place_of.items():
        if node is None:
            continue
        inputs = [(place_of[child], i) for child, i in node.next_functions]
        if inputs:
            steps.append((place, type(node), inputs))
        else:
            leaves.append((place, type(node), _owner(node, parameters)))
    return steps, leaves


def _follows(
    node: Node, place_of: Mapping[Node | None, int], own: Collection[int]
) -> bool:
    """Whether the shape of a node's output is known where those of its inputs are."""
    name, inputs = name_of(node), node.next_functions
    if name in FOLLOWING:
        return len(inputs) == 1
    if name in BROADCASTING:  # What has no graph has a shape of its own.
        return all(child is not None for child, _ in inputs)
    if name in FOLLOWING_SOME:
        return all(inputs[at][0] is not None for at in FOLLOWING_SOME[name])
    # Of a parameter itself, a matrix: the shape is that of the parameter, turned round.
    return name == "TBackward0" and place_of[inputs[0][0]] in own


def _is_told(node: Node, is_compared: bool) -> bool:  # noqa: FBT001 -- one of two
    """Whether arguments that are compared tell the shapes of a node's outputs."""
    return is_compared and name_of(node) in FOLLOWING_ARGUMENTS


def _placed_constants(
    graph: Graph, place_of: Mapping[Node | None, int], public: PublicTensors
) -> list[tuple[int, int, int]]:
    """Return where constants are: at which node, which of its, and of how many."""
    return [
        (place_of[node], which, len(kept))
        for node in dict.fromkeys(map(itemgetter(0), graph.constants))
        for kept in [_constants_of(node, public)]
        for which in range(len(kept))
    ]


def _owner(leaf: Node, parameters: Collection[int]) -> int | None:
    """Return what identifies a leaf's parameter; None if it is nobody's."""
    owner = id(getattr(leaf, "variable", None))
    return owner if owner in parameters else None


def _constants_of(node: Node, public: PublicTensors) -> list[Tensor]:
    name = name_of(node)
    if name in LOOKUPS:
        kept = looked_up(node, name)
    else:
        factor = constant_factor(node)
        kept = [] if factor is None else [factor]
    return [one for one in kept if not public.has(one)]


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, list) else value
