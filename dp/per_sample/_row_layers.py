"""Serve linear layers that meet one row of each example, all of them at once.

In a multilayer perceptron the gradient of a weight is an outer product of two vectors
an example, and all that norms and sums need are these vectors. For small layers and
batches most of a step's time goes into calls, so the layers of a graph that are known to
be of this kind take one short way: no hook, no operand, no part for each of them.

For a layer ``y = x @ w.T + b`` with ``g``, the gradient of ``y``:

    |dw|^2 + |db|^2 = |x|^2 |g|^2 + |g|^2
    sum of f dw     = (f g).T @ x
    sum of f db     = g.T @ f

Shapes: ``B`` examples, ``I`` inputs, ``O`` outputs, ``L`` layers, ``G`` groups.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Node, is_checkpointed, name_of
from dp.per_sample._graph.uses import Graph, Operand, Use
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import (
    GradPart,
    MaterializedGrads,
    loses_small_factors,
    may_lose_unseen,
    rounded_up,
    zeroed,
)
from dp.per_sample._rules.context import RuleContext


__all__ = ("OuterProducts", "RowLayer", "RowLayers", "find_row_layers", "row_layer")

# What nodes keep of their data, and the input positions of the weight and the bias.
_KINDS: Final[Mapping[str, tuple[str, int, int | None]]] = {
    "AddmmBackward0": ("_saved_mat1", 2, 0),
    "MmBackward0": ("_saved_self", 1, None),
}
_MATRIX: Final = 2
# The longest rows that are reduced in float32 in one go: see _parts.part.
_MOST_COLUMNS: Final = 4096


@final
@dataclass(frozen=True, slots=True)
class RowLayer:
    """A linear layer of a known graph, each of whose rows is one example's.

    Attributes:
        position: Which of the graph's uses it is.
        weight: The index of its weight, which the use takes transposed.
        bias: The index of its bias; None if it has none that is trained.
        saved: The name under which its node keeps the data.
        width: The length of an output's row.
        dtype: Of the weight.
    """

    position: int
    weight: int
    bias: int | None
    saved: str
    width: int
    dtype: torch.dtype


def find_row_layers(
    graph: Graph,
    layouts: Sequence[Mapping[int, Layout] | None],
    parameters: Sequence[Tensor],
    *,
    num_samples: int,
    batched: Collection[int] = (),
) -> list[RowLayer]:
    """Return the layers that may take the short way, in graphs like this one.

    Args:
        graph: The graph.
        layouts: By use and output, how the examples lie in it.
        parameters: Those it was walked for.
        num_samples: The number of examples.
        batched: The positions of layers that are served in another way.
    """
    times_used = Counter(id(p) for use in graph.uses for p in use.parameters)
    index_of = {id(p): i for i, p in enumerate(parameters) if times_used[id(p)] == 1}
    found: list[RowLayer] = []
    for position, (use, layout) in enumerate(zip(graph.uses, layouts, strict=True)):
        if position not in batched and layout is not None and [*layout] == [0]:
            context = RuleContext(use, layout, num_samples)
            layer = row_layer(position, context, index_of)
            found += [] if layer is None else [layer]
    # Norms are put together, which takes one dtype on one device.
    return [
        one for one in found if _kind(one, parameters) == _kind(found[0], parameters)
    ]


def _kind(layer: RowLayer, parameters: Sequence[Tensor]) -> object:
    return layer.dtype, parameters[layer.weight].device


def row_layer(
    position: int, context: RuleContext, index_of: Mapping[int, int]
) -> RowLayer | None:
    """Return a use as a layer that meets one row of each example; None if it is none.

    Args:
        position: Which of the graph's uses it is.
        context: The use.
        index_of: The index of each parameter that may be one of the layer's, by its
            identity.
    """
    use = context.use
    if use.operation not in _KINDS or not context.examples_lead:
        return None
    saved, at_weight, at_bias = _KINDS[use.operation]
    weight = _index(use.operands.get(at_weight), ["TBackward0"], index_of)
    bias = None if at_bias is None else _index(use.operands.get(at_bias), [], index_of)
    num_found = (weight is not None) + (bias is not None)
    # Of each parameter one use, and of the use no other operand: x @ (w + v).T, x = w.
    if weight is None or num_found != len(use.operands) or not _is_plain(context):
        return None
    width, dtype = use.shape[1], use.operands[at_weight].parameters[0].dtype
    return RowLayer(position, weight, bias, saved, width, dtype)


def _is_plain(context: RuleContext) -> bool:
    """Whether outputs are [B, O], and rows so short that norms are found in one go."""
    (rows, width), use = context.use.shape, context.use
    weight = max(use.operands.items())[1].parameters[0]
    biases = [o for o in use.operands.values() if not o.chain]
    return (
        rows == context.num_samples
        and max(weight.shape) <= _MOST_COLUMNS
        and weight.dtype in (torch.float32, torch.float64)
        # A bias [1, O] or [1] is broadcast over more than the batch.
        and all(tuple(bias.shape) == (width,) for bias in biases)
    )


def _index(
    operand: Operand | None, views: Sequence[str], index_of: Mapping[int, int]
) -> int | None:
    """Return the index of an operand's parameter, if it is taken by these views alone."""
    if operand is None or operand.chain is None:
        return None
    if [name_of(node) for node, _ in operand.chain] != views:
        return None
    return index_of.get(id(operand.parameters[0]))


@final
class RowLayers:
    """The layers of one batch that take the short way, with the data that they keep.

    Args:
        uses: The uses of the graph.
        layers: Those of its layers that may.
    """

    def __init__(self, uses: Sequence[Use], layers: Sequence[RowLayer]) -> None:
        self.layers: list[RowLayer] = []
        self.nodes: list[Node] = []
        self.inputs: list[Tensor] = []
        for layer in layers:
            node = uses[layer.position].node
            # Whatever a graph's form and sizes do not show is looked at in every batch.
            if is_checkpointed(node, layer.saved.removeprefix("_saved_")):
                continue
            data = getattr(node, layer.saved)
            is_sum = layer.bias is None or node._saved_beta == 1  # noqa: SLF001 -- torch's
            is_product = layer.saved == "_saved_self" or node._saved_alpha == 1  # noqa: SLF001
            if is_sum and is_product and data.dtype is layer.dtype:
                self.layers.append(layer)
                self.nodes.append(node)
                self.inputs.append(data.detach())

    def bytes_freed(self, freed: Sequence[float]) -> Sequence[float]:
        """Return what is freed before each use, where these are passed over.

        Args:
            freed: The same where every use is served in its turn.
        """
        if len(self.layers) == len(freed):
            return freed  # Nobody else is there to make use of it.
        freed = [*freed]
        for layer, data in zip(
            reversed(self.layers), reversed(self.inputs), strict=True
        ):
            # The pass comes to the use before it next; what is held is not free.
            if layer.position:
                held = data.nbytes + layer.width * len(data) * data.itemsize
                freed[layer.position - 1] += freed[layer.position] - held
        return freed

    def gradients(self, grads: Sequence[Tensor | None]) -> "OuterProducts":
        """Return the layers' gradients, given those of their outputs.

        Args:
            grads: None for a layer that no loss depends on: its gradients are zero.
        """
        reached = [
            (layer, data, grad)
            for layer, data, grad in zip(self.layers, self.inputs, grads, strict=True)
            if grad is not None
        ]
        return OuterProducts(*([*column] for column in zip(*reached, strict=True)))


@final
class OuterProducts:
    """The gradients of layers that meet one row of each example.

    Args:
        layers: The layers.
        inputs: [B, I] of each.
        grads: [B, O] of each: the gradients of its outputs.
    """

    def __init__(
        self,
        layers: Sequence[RowLayer] = (),
        inputs: list[Tensor] | None = None,
        grads: list[Tensor] | None = None,
    ) -> None:
        self._layers = layers
        self._inputs = inputs or []
        self._grads = grads or []
        of_weights = [layer.weight for layer in layers]
        self._place_of = {index: place for place, index in enumerate(of_weights)}
        of_biases = {layer.bias: i for i, layer in enumerate(layers)}
        self._place_of |= {i: place for i, place in of_biases.items() if i is not None}

    @property
    def indices(self) -> Collection[int]:
        """The parameters of these layers, by their indices."""
        return self._place_of.keys()

    def part(self, index: int) -> GradPart:
        """Return the gradients of one parameter by themselves."""
        place = self._place_of[index]
        inputs_BI, grads_BO = self._inputs[place], self._grads[place]
        if index == self._layers[place].bias:
            return MaterializedGrads(grads_BO)
        return FactoredGrads(grads_BO[:, None], inputs_BI[:, None])

    def add_squared_norms(self, norms: list[Tensor], group_of: Sequence[int]) -> None:
        """Add the squared norms of every example's gradients, by group.

        Args:
            norms: [B] of each group.
            group_of: The group of each parameter.
        """
        if not self._layers:
            return
        factors = (*self._inputs, *self._grads)
        squares = _squared_norms(factors)
        if loses_small_factors(squares):
            squares = _squared_norms([factor.double() for factor in factors])
        if may_lose_unseen(squares):
            squares = rounded_up(squares, max(factor.shape[1] for factor in factors))
        of_inputs_LB, of_grads_LB = squares.chunk(2)
        groups = {group_of[index] for index in self._place_of}
        has_bias = [layer.bias is not None for layer in self._layers]
        if len(groups) == 1 and all(has_bias):
            (group,) = groups
            norms_LB = of_inputs_LB.add_(1).mul_(of_grads_LB)  # Of weight and bias.
            norms[group] += norms_LB.sum(0).to(norms[group].device)
            return
        of_weights_LB = of_inputs_LB.mul_(of_grads_LB)
        for layer, weight_B, bias_B in zip(
            self._layers, of_weights_LB, of_grads_LB, strict=True
        ):
            group = group_of[layer.weight]
            norms[group] += weight_B.to(norms[group].device)
            if layer.bias is not None:
                group = group_of[layer.bias]
                norms[group] += bias_B.to(norms[group].device)

    def add_weighted_sums(
        self,
        factors: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        group_of: Sequence[int],
        sums: Sequence[Tensor],
        *,
        beta: int,
        consumes: bool,
    ) -> None:
        """Set each layer's sums to *beta* times themselves plus the weighted gradients.

        Args:
            factors: [B] of each group.
            masks: [B] of each group: whose gradients count as zero; None for nobody's.
            group_of: The group of each parameter.
            sums: One tensor for each parameter of the model.
            beta: 0 or 1. With 0 sums may hold anything.
            consumes: Whether to free gradients once their sum is there.
        """
        if not self._layers:
            return
        # Layers have one dtype and device, and so have their sums.
        like = sums[self._layers[0].weight]
        groups = {group_of[index] for index in self._place_of}
        factors_of = {group: factors[group].to(like) for group in groups}
        column_of = {group: one_B[:, None] for group, one_B in factors_of.items()}
        # From the end, so that pop() lets go of what has been added.
        inputs, grads = self._inputs, self._grads
        if not consumes:
            inputs, grads = [*inputs], [*grads]
        for layer in reversed(self._layers):
            rows_BI, rows_BO = inputs.pop().to(like), grads.pop().to(like)
            group = group_of[layer.weight]
            left_BO, right_BI, mask_B = rows_BO, rows_BI, masks[group]
            if mask_B is not None:
                # A product of zero and what is not finite is not zero, on either side.
                left_BO, right_BI = zeroed(rows_BO, mask_B), zeroed(rows_BI, mask_B)
            # The thinner one is scaled: fewer multiplications, and a smaller copy.
            if left_BO.shape[1] < right_BI.shape[1]:
                left_BO = left_BO * column_of[group]
            else:
                right_BI = right_BI * column_of[group]
            sums[layer.weight].addmm_(left_BO.t(), right_BI, beta=beta)
            if layer.bias is not None:
                group = group_of[layer.bias]
                if (mask_B := masks[group]) is not None:
                    rows_BO = zeroed(rows_BO, mask_B)
                sums[layer.bias].addmv_(rows_BO.t(), factors_of[group], beta=beta)


def _squared_norms(factors: Sequence[Tensor]) -> Tensor:
    """Return the squared norms of every row of every factor, of shape [2 L, B]."""
    return torch.stack([torch.linalg.vector_norm(f, dim=1) for f in factors]).square_()
