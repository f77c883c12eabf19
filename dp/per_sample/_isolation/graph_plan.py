"""What is found out once for graphs of one shape.

Shapes: ``B`` examples.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import torch
from torch import Tensor

from dp.exceptions import SampleMixingError, UnsupportedOperationError
from dp.per_sample._compile_backend import is_compiled, is_opaque
from dp.per_sample._graph.nodes import VIEWS, Node, name_of, size
from dp.per_sample._graph.uses import Graph, Signature, Use, shapes_of
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.nan_probe import owned, probed


__all__ = ("Plan", "check_norm", "check_opaque", "check_shared", "planned")

_REMEDY: Final = (
    "Use GroupNorm or LayerNorm for BatchNorm, and losses with reduction='none' that"
    " are not divided by anything of the whole batch"
)
# Operations by which parametrizations make weights of parameters and of buffers, and
# hardly anybody else meets examples' data.
_OF_PARAMETRIZATIONS: Final = frozenset(
    {
        "DotBackward0",
        "LinalgHouseholderProductBackward0",
        "LinalgMatrixExpBackward0",
        "LinalgSolveExBackward0",
        "MvBackward0",
    }
)
_APART: Final = (
    ". Or each has elements of its own, but along no axis, or in another order than the"
    " losses, as where sequences are packed, which is not supported: give padded"
    " sequences, and leave the padding out of the losses by a mask"
)
_PARAMETRIZED: Final = (
    ". Or nothing is mixed, but weights are computed with buffers, which have no graph"
    " that would tell them from data, as by the parametrizations spectral_norm and"
    " orthogonal; these are not supported: use weight_norm, or remove them by"
    " torch.nn.utils.parametrize.remove_parametrizations"
)
# By a part of their name, nodes that hide where parameters are used.
_HIDING: Final = {
    "CheckpointFunction": (
        "a reentrant checkpoint hides the operations inside it; call"
        " torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
    ),
}
_COMPILED: Final = (
    "a compiled function{holding} is one operation that shows nothing of what happens"
    " inside it, so mixed examples could not be told; compile it by"
    " torch.compile(..., backend=dp.compile_backend), and where parameters are computed"
    " of others, compile that together with their use"
)


@final
@dataclass(slots=True)
class Plan:
    """How the uses of a graph are served.

    Attributes:
        layouts: Of every use, where the examples are in its outputs; None where this
            batch does not show it.
        freed: Bytes an example that the backward pass has freed when it reaches each
            use, more than at the use before.
        constants: Fingerprints of what examples share, by position and shape.
    """

    layouts: Sequence[Mapping[int, Layout] | None]
    bytes_freed: Sequence[float]
    constants: dict[Hashable, Sequence[float]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> float:
        """Return about how much an example's activations take."""
        return sum(self.bytes_freed)


def planned(
    losses_B: Tensor, graph: Graph
) -> tuple[Plan | None, bool, frozenset[Signature]]:
    """Probe a graph.

    Returns:
        The plan, and whether it holds for other batches too. If there is none, the
        uses that are constant.

    Raises:
        SampleMixingError: If examples are mixed on the way to a use.
    """
    if len(losses_B) == 1:  # Everything is the one example's.
        alone = [dict.fromkeys(use.outputs, Layout(-1)) for use in graph.uses]
        return Plan(alone, _freed(graph, 1)), False, frozenset()
    _check_above(graph)
    places = [(use, output) for use in graph.uses for output in use.outputs]
    if not places:
        return Plan([], []), True, frozenset()
    found, silent = probed(losses_B, places)
    constants: set[Signature] = set()
    layouts: dict[int, dict[int, Layout] | None] = {}
    for (use, output), candidates, nothing in reversed(
        [*zip(places, found, silent, strict=True)]
    ):
        if not candidates:
            if not use.might_be_constant:
                raise _mixing(use, apart=owned(losses_B, (use, output)))
            constants.add(use.might_be_constant)
            continue
        known = layouts.setdefault(id(use), {})
        if known is not None and (len(candidates) == 1 or nothing):
            known[output] = candidates[0]
        else:
            layouts[id(use)] = None
    if constants:
        return None, False, frozenset(constants)
    by_use = [layouts[id(use)] for use in graph.uses]
    certain = all(len(candidates) == 1 for candidates in found)
    return Plan(by_use, _freed(graph, len(losses_B))), certain, frozenset()


def check_opaque(graph: Graph) -> None:
    """Refuse what hides operations on parameters."""
    for use in graph.uses:
        if is_opaque(use.operation):
            holding = f" with parameters of shape {shapes_of(use.parameters)}"
            raise UnsupportedOperationError(_COMPILED.format(holding=holding))
    for node in graph.nodes:
        name = name_of(node)
        if name[-1].isdigit():
            continue
        for part, reason in _HIDING.items():
            if part in name:
                raise UnsupportedOperationError(reason)
        if is_opaque(name) and not is_compiled(node):
            raise UnsupportedOperationError(_COMPILED.format(holding=""))


def check_norm(use: Use) -> None:
    """Refuse a batch norm over data, which has no use behind it that would show it."""
    if "BatchNorm" in use.operation:
        raise _mixing(use)


def check_shared(plan: Plan, graph: Graph) -> None:
    """Refuse what examples share, if it depends on the batch.

    Raises:
        SampleMixingError: If it is not what it was in another batch.
    """
    for position, (node, constant) in enumerate(graph.constants):
        key = (position, tuple(constant.shape))
        found = _fingerprint(constant)
        if plan.constants.setdefault(key, found) != found:
            raise SampleMixingError(
                f"{name_of(node)} meets a tensor of shape {tuple(constant.shape)} that"
                " all examples share and that is not the same in every batch, so it"
                " may be computed from all of them. Give a number that changes as a"
                f" Python float, and what depends on examples an axis of them. {_REMEDY}"
            )


def _check_above(graph: Graph) -> None:
    for node, constant in graph.constants:
        if node in graph.above and constant.numel() == 1:
            raise SampleMixingError(
                f"{name_of(node)} scales the losses by a tensor of one element, which"
                " nobody can tell from a sum or count over the batch. Pass a public"
                " number as a Python float, and scale a private_loss, not its losses."
                f" {_REMEDY}"
            )


def _fingerprint(constant: Tensor) -> Sequence[float]:
    numbers = constant.detach().double().flatten()
    weights = torch.linspace(1, 2, len(numbers), dtype=numbers.dtype).to(numbers)
    return [float(numbers.sum()), float(numbers @ weights)]


def _freed(graph: Graph, num_samples: int) -> list[float]:
    """Return what lies between the uses in the order of the backward pass."""
    bytes_freed: dict[Node, float] = {}
    total = 0.0
    uses = {use.node for use in graph.uses}
    for node in reversed(graph.nodes):
        if name_of(node) not in VIEWS:
            for output in node._input_metadata:  # noqa: SLF001 -- see _nodes
                total += size(output.shape) * output.dtype.itemsize
        if node in uses:
            bytes_freed[node], total = total / num_samples, 0.0
    return [bytes_freed[use.node] for use in graph.uses]


def _mixing(use: Use, *, apart: bool = False) -> SampleMixingError:
    hint = _APART if apart else ""
    if not _OF_PARAMETRIZATIONS.isdisjoint(map(name_of, _below(use.node))):
        hint += _PARAMETRIZED
    return SampleMixingError(
        f"examples are mixed on the way from the losses to {use.operation} with"
        f" parameters of shape {shapes_of(use.parameters)}: one example's loss depends on another's"
        f" data. {_REMEDY}{hint}"
    )


def _below(node: Node) -> set[Node]:
    seen, pending = {node}, [node]
    while pending:
        unseen = {child for child, _ in pending.pop().next_functions} - seen - {None}
        seen |= unseen
        pending.extend(unseen)
    return seen
