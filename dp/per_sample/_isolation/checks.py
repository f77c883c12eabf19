"""What is refused before owners are followed, and what no graph shows the origin of.

Shapes: none are fixed.
"""

from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Final

import torch
from torch import Tensor

from dp.exceptions import SampleMixingError, UnsupportedOperationError
from dp.per_sample._compile_backend import is_compiled, is_opaque
from dp.per_sample._graph.nodes import name_of, output_shape, saved
from dp.per_sample._graph.uses import Graph, Use, shapes_of
from dp.per_sample._isolation.analysis import REMEDY
from dp.per_sample._isolation.owners import MIXED, meet_over
from dp.per_sample._isolation.rule_table import ATTENTION


__all__ = (
    "Fingerprints",
    "check_above",
    "check_coupling",
    "check_dense",
    "check_opaque",
    "check_shared",
)

# Of what all units share, by position and shape.
Fingerprints = MutableMapping[Hashable, Sequence[float]]

# By a part of their name, nodes that hide where parameters are used.
_HIDING: Final = {
    "CheckpointFunction": (
        "a reentrant checkpoint hides the operations inside it; call"
        " torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
    ),
}
# By a part of their name, nodes whose outputs are sparse.
_MAKING_SPARSE: Final = ("Coalesce", "Sparse")
_COMPILED: Final = (
    "a compiled function{holding} is one operation that shows nothing of what happens"
    " inside it, so mixed examples could not be told; compile it by"
    " torch.compile(..., backend=dp.compile_backend), and where parameters are computed"
    " of others, compile that together with their use"
)


def check_opaque(graph: Graph) -> None:
    """Refuse what hides operations on parameters."""
    for use in graph.uses:
        if is_opaque(use.operation):
            holding = f" with parameters of shape {shapes_of(use.parameters)}"
            raise UnsupportedOperationError(_COMPILED.format(holding=holding))
    for node in graph.nodes:
        name = name_of(node)
        # Torch's own operations end in a number, as MulBackward0, and hide nothing.
        if name[-1].isdigit():
            continue
        for part, reason in _HIDING.items():
            if part in name:
                raise UnsupportedOperationError(reason)
        if is_opaque(name) and not is_compiled(node):
            raise UnsupportedOperationError(_COMPILED.format(holding=""))


def check_dense(uses: Iterable[Use]) -> None:
    """Refuse data that meets a sparse weight, whose gradient is sparse as well."""
    operands = [(use, operand) for use in uses for operand in use.operands.values()]
    for use, operand in operands:
        name = name_of(operand.edge[0])
        # Either the weight itself is sparse, or it was made so on the way to its use.
        is_sparse = any(part in name for part in _MAKING_SPARSE) or any(
            parameter.layout != torch.strided for parameter in operand.parameters
        )
        if is_sparse:
            raise UnsupportedOperationError(
                f"{use.operation} takes a sparse weight, of parameters of shape"
                f" {shapes_of(operand.parameters)}, whose gradients for each example"
                " would be sparse; make it dense, as by weight.to_dense()"
            )


def check_coupling(use: Use, owners: Callable[[], Tensor]) -> None:
    """Refuse a use that computes entries of several units of one another's data.

    Where it meets the data itself, no use behind it would show that.

    Args:
        use: A use that no rule serves.
        owners: Returns the unit of each entry of its output, in a shape that broadcasts
            to it.

    Raises:
        SampleMixingError: If entries that it couples are of several units.
    """
    operation = use.operation.rstrip("0123456789").removesuffix("Backward")
    axes_of = _COUPLED_AXES.get(operation)
    if axes_of is None:
        return
    shape = output_shape(use.node, 0)
    axes = axes_of(use, len(shape))
    # layer_norm(x, [B, D]) divides each of B rows by a deviation of all of them; over
    # [D] alone, all entries that meet are of one row.
    if bool((meet_over(owners().expand(shape), axes) == MIXED).any()):
        raise SampleMixingError(
            f"units meet in {use.operation}: examples are mixed on the way from the"
            f" losses to {use.operation} with parameters of shape"
            f" {shapes_of(use.parameters)}: one example's loss depends on another's"
            f" data. {REMEDY}"
        )


def _normalized_axes(use: Use, rank: int) -> Sequence[int]:
    return range(rank - len(saved(use.node, "normalized_shape")), rank)


def _all_but_channels(_use: Use, rank: int) -> Sequence[int]:
    return [axis for axis in range(rank) if axis != 1]


def _behind_the_first(_use: Use, rank: int) -> Sequence[int]:
    return range(1, rank)


def _behind_the_heads(_use: Use, rank: int) -> Sequence[int]:
    return range(2, rank)


# By operation, the axes of the output along which an entry is computed of all others.
_COUPLED_AXES: Final[Mapping[str, Callable[[Use, int], Sequence[int]]]] = {
    **dict.fromkeys(
        ("CudnnBatchNorm", "MiopenBatchNorm", "NativeBatchNorm"), _all_but_channels
    ),
    **dict.fromkeys(("FusedRmsNorm", "NativeLayerNorm"), _normalized_axes),
    "NativeGroupNorm": _behind_the_first,
    **dict.fromkeys(ATTENTION, _behind_the_heads),
}


def check_above(graph: Graph) -> None:
    """Refuse a tensor of one element that scales the losses."""
    for node, constant in graph.constants:
        # losses / mask.sum(): the count is over the whole batch, so that a new example
        # makes all other gradients smaller, although no gradient says so.
        if node in graph.above and constant.numel() == 1:
            raise SampleMixingError(
                f"{name_of(node)} scales the losses by a tensor of one element, which"
                " nobody can tell from a sum or count over the batch. Pass a public"
                " number as a Python float, or declare the tensor:"
                " DPOptimizer(..., public=[tensor]). Scale a private_loss, not its"
                f" losses. {REMEDY}"
            )


def check_shared(known: Fingerprints, graph: Graph) -> None:
    """Refuse what all units share, if it depends on the batch.

    Raises:
        SampleMixingError: If it is not what it was in another batch. Releases before
            may have been of mixed examples.
    """
    for position, (node, constant) in enumerate(graph.constants):
        # By shape too: positions of sequences of 7 tokens are other ones than those of
        # 9.
        key = (position, tuple(constant.shape))
        fingerprint = _fingerprint(constant)
        if known.setdefault(key, fingerprint) != fingerprint:
            error = SampleMixingError(
                f"{name_of(node)} meets a tensor of shape {tuple(constant.shape)} that"
                " all examples share and that is not the same in every batch, so it"
                " may be computed from all of them. Give a number that changes as a"
                " Python float, what depends on examples an axis of them, and declare"
                " what is public: DPOptimizer(..., public=[tensor]). A mask of dropout is"
                " such a tensor where it falls on what examples share: expand that to"
                f" every example first. {REMEDY}"
            )
            error.began_earlier = True
            raise error


def _fingerprint(constant: Tensor) -> Sequence[float]:
    numbers = constant.detach().double().flatten()
    # A sum sees any other number, and the weighted one sees that they changed places.
    # This finds what changes by itself, not what somebody made to have equal sums.
    weights = torch.linspace(1, 2, len(numbers), dtype=numbers.dtype).to(numbers)
    return [float(numbers.sum()), float(numbers @ weights)]
