"""Find where parameters enter an autograd graph.

A *use* is a node that takes data of examples and, beside it, a parameter or something
computed from parameters alone: an *operand*. Between a parameter and its operand lie
views and casts, through which a part can be seen, or any other computation, which has
a backward pass of its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set as AbstractSet
from typing import Final

from torch import Tensor

from dp.exceptions import SampleMixingError
from dp.per_sample._graph.nodes import Node, check_has_shape, name_of
from dp.per_sample._graph.public import PublicTensors
from dp.per_sample._graph.untracked_inputs import (
    LOOKUPS,
    SUMS,
    WITH_FACTOR,
    signature,
    unexplained,
)
from dp.per_sample._graph.uses import Edge, Graph, Operand, Signature, Use
from dp.per_sample._graph.views import VIEWS


__all__ = ("find_uses",)

Edges = Sequence[tuple[Node | None, int]]

_NONE: Final[Sequence[Tensor]] = ()


def find_uses(
    root: Edge,
    parameters: Sequence[Tensor],
    *,
    constants: AbstractSet[Signature | Node] = frozenset(),
    public: PublicTensors,
) -> Graph:
    """Find every use of *parameters* in the graph below *root*.

    Args:
        root: The node and output of the losses.
        parameters: Leaves of the graph.
        constants: Of uses that might be constant, those that are taken to be: by what
            names them, or themselves.
        public: Tensors that were declared to be no data.
    """
    walk = _Walk({id(p): p for p in parameters}, constants, public)
    walk.run(root[0])
    return walk.graph(root)


class _Walk:
    """What is known of the nodes below the losses, inputs before outputs."""

    def __init__(
        self,
        parameters: Mapping[int, Tensor],
        constants: AbstractSet[Signature | Node],
        public: PublicTensors,
    ) -> None:
        self._parameters = parameters
        self._constants = constants
        self._public = public
        self._edges: dict[Node, Edges] = {}
        self._parameters_below: dict[
            Node, Sequence[Tensor]
        ] = {}  # Of parameters alone.
        self._reaches_use: dict[Node, bool] = {}
        self._with_constants: set[Node] = set()  # Of parameters, but not alone.
        self._uses: dict[Node, Signature | None] = {}
        self._nodes: list[Node] = []
        self._followed: list[Node] = []
        self._assumed: list[tuple[Node, Signature]] = []
        self._constant: list[tuple[Node, Tensor]] = []
        self._hiding: list[tuple[Node, Sequence[int] | None]] = []
        self._times: Counter[Signature] = Counter()

    def run(self, root: Node) -> None:
        edges, behind = self._edges, self._parameters_below
        # Inputs before outputs, by a stack of its own: a recurrent graph of 1000 steps
        # is deeper than Python recurses. A node with two consumers may be on the stack
        # twice; the second time it is known already.
        pending = [root]
        while pending:
            node = pending[-1]
            if node in behind:
                pending.pop()
                continue
            children = edges.get(node)
            if children is None:
                children = edges[node] = node.next_functions
                unseen = [c for c, _ in children if c is not None and c not in behind]
                if unseen:
                    pending.extend(unseen)
                    continue
            pending.pop()
            self._add(node, children)

    def _add(self, node: Node, children: Edges) -> None:
        """Decide what a node is, once all of its inputs are known."""
        if not children:
            self._add_leaf(node)
            return
        check_has_shape(node)
        # Example: losses = (relu(addmm(b, x, w)) @ v).sum(1), where x has no graph.
        # Addmm has inputs of parameters alone, b and w, but kept x: a use. Relu has no
        # parameters of its own: data. The second product takes data and v: a use. The
        # sum is data again.
        inputs = [child for child, _ in children if child is not None]
        below = [self._parameters_below[child] for child in inputs]
        name, sign = name_of(node), None
        if any(below) and all(below):
            # Of parameters alone, as far as the graph shows. What the node keeps says
            # whether data or a constant is beside them, which has no edge.
            parameters = tuple(
                {id(p): p for of_input in below for p in of_input}.values()
            )
            sign = self._signature(node, name, parameters)
            if sign is None or {sign, node} & self._constants:
                self._add_of_parameters(node, children, parameters, sign)
                return
        # Data times 0.5, or data / count: of which kind the factor is, a number of the program or
        # a tensor, is compared again when a graph is recognised.
        elif name in WITH_FACTOR and len(inputs) < len(children):
            self._hiding.append((node, None))
        self._add_of_data(node, name, inputs)
        if any(below):
            self._uses[node] = sign
            self._reaches_use[node] = True

    def _add_leaf(self, node: Node) -> None:
        # A leaf that is none of ours (a weight of another optimizer, an input that
        # requires a gradient) counts as data: nothing is asked of it.
        known = self._parameters.get(id(getattr(node, "variable", None)))
        self._parameters_below[node] = _NONE if known is None else (known,)
        self._reaches_use[node] = False

    def _add_of_data(self, node: Node, name: str, inputs: Sequence[Node]) -> None:
        """Add a node through which gradients of units pass."""
        if name in WITH_FACTOR:
            # A factor with several elements may be the examples' own; one of a single
            # element may be a count over the batch, which scales all losses.
            factors = unexplained(node, name, self._public)
            self._constant += [(node, one) for one in factors if one.numel() == 1]
        self._parameters_below[node] = _NONE
        self._reaches_use[node] = any(self._reaches_use[child] for child in inputs)
        self._nodes.append(node)
        self._followed.append(node)

    def _signature(
        self, node: Node, name: str, behind: Sequence[Tensor]
    ) -> Signature | None:
        ids = tuple(map(id, behind))
        # What has to be looked at again in a graph that is taken for this one: whether
        # these nodes are of parameters alone depends on what they kept, not on the
        # graph's form.
        is_known_by_name = name in SUMS or name in LOOKUPS or name in WITH_FACTOR
        if is_known_by_name or self._public or not name[-1].isdigit():
            self._hiding.append((node, ids))
        sign = signature(node, name, ids, self._public)
        if not sign:
            return sign
        # Several lookups of one table may have one shape, and not all be constant.
        self._times[sign] += 1
        return (*sign, self._times[sign])

    def _add_of_parameters(
        self,
        node: Node,
        children: Edges,
        behind: Sequence[Tensor],
        assumed: Signature | None,
    ) -> None:
        """Add a node of parameters alone, or of what all units are taken to share."""
        self._parameters_below[node], self._reaches_use[node] = behind, False
        # A mask that prunes a weight, the positions of a table: constants as far as
        # anybody can tell. They are compared from batch to batch (checks.check_shared).
        shared = unexplained(node, name_of(node), self._public)
        self._constant += [(node, one) for one in shared]
        if assumed:
            self._assumed.append((node, assumed))
        # What is computed of such a constant has to be followed too: if one unit alone
        # sends a gradient there, it was that unit's data, and the guess is withdrawn.
        if assumed or any(child in self._with_constants for child, _ in children):
            self._with_constants.add(node)
            self._followed.append(node)

    def graph(self, root: Edge) -> Graph:
        # As of a penalty on weights that is every example's loss,
        # (w**2).sum().expand(B): it is served as a use, unless data may be in it.
        if self._parameters_below[root[0]]:  # The losses are of parameters alone.
            if root[0] in self._with_constants:
                raise SampleMixingError(
                    "examples' data and parameters meet only where examples are mixed:"
                    " one example's loss depends on another's data"
                )
            self._uses[root[0]] = ()
            self._nodes.append(root[0])
            self._followed.append(root[0])
        outputs = self._outputs(root)
        uses = [
            self._use(node, signature, sorted(outputs[node]))
            for node, signature in self._uses.items()
            if node in outputs  # Not of a chain that turned out to be constant.
        ]
        above = self._above(root[0]) if self._constant else frozenset()
        return Graph(
            uses,
            self._nodes,
            self._followed,
            self._assumed,
            self._constant,
            self._hiding,
            above,
        )

    def _use(
        self, node: Node, signature: Signature | None, outputs: Sequence[int]
    ) -> Use:
        operands: dict[int, Operand] = {}
        data: list[Node] = []
        for position, (child, index) in enumerate(self._edges[node]):
            if child is None:
                continue
            behind = self._parameters_below[child]
            if behind:
                # Of two parameters, as weight norm's g and v, no part of the operand is
                # a part of one of them: gradients go back through autograd.
                chain = self._chain(child, index) if len(behind) == 1 else None
                operands[position] = Operand((child, index), behind, chain)
            else:
                data.append(child)
        is_last = not any(self._reaches_use[child] for child in data)
        return Use(node, lambda: operands, outputs, is_last, signature or ())

    def _chain(self, node: Node, index: int) -> Sequence[Edge] | None:
        """Return the views between a parameter and an operand, if that is all."""
        chain: list[Edge] = []
        while self._edges[node]:
            # A cast to complex numbers drops the imaginary part on the way back, so the
            # operand's gradient is not a part of the parameter's.
            is_complex = node._input_metadata[index].dtype.is_complex  # noqa: SLF001 -- see nodes
            if name_of(node) not in VIEWS or is_complex:
                return None
            chain.append((node, index))
            node, index = self._edges[node][0]
        return chain

    def _outputs(self, root: Edge) -> Mapping[Node, set[int]]:
        # Nearly every node has one output. Of the three of an LSTM (outputs, h, c) only
        # those matter that something takes: no gradient arrives at the others.
        outputs = {node: {0} for node in self._uses}
        several = {node for node in self._uses if len(node._input_metadata) > 1}  # noqa: SLF001
        if several:
            for node in several:
                outputs[node] = set()
            for children in (((root),), *self._edges.values()):
                for child, index in children:
                    if child in several:
                        outputs[child].add(index)
        return outputs

    def _above(self, root: Node) -> frozenset[Node]:
        # Up to the uses and not beyond: a factor of one element above all of them
        # scales every loss, as 1 / count does; one behind a use is data like any other.
        seen, pending = {root}, [root]
        while pending:
            node = pending.pop()
            if node in self._uses:
                continue
            unseen = {c for c, _ in self._edges[node] if c is not None} - seen
            seen |= unseen
            pending.extend(unseen)
        return frozenset(seen)
