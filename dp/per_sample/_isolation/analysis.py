"""Whose the rows of every use are, and that no row is several units'.

Shapes: ``U`` units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import torch

from dp.exceptions import SampleMixingError
from dp.per_sample._graph.kept_memory import freed_before
from dp.per_sample._graph.nodes import Node, output_shape
from dp.per_sample._graph.untracked_inputs import kept_without_graph
from dp.per_sample._graph.uses import Edge, Graph, Signature, Use, shapes_of
from dp.per_sample._isolation.attention_rules import BY_ZEROS, reads_along_rows
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.following import Followed, Moved, follow, meeting_of
from dp.per_sample._isolation.owners import NOBODY, Owners, regularized
from dp.per_sample._isolation.rule_table import rule_for_owners


__all__ = ("REMEDY", "Analysis", "Plan", "analysed", "neither")

REMEDY: Final = (
    "Use GroupNorm or LayerNorm for BatchNorm, and losses with reduction='none' that"
    " are not divided by anything of the whole batch"
)


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """How the uses of a graph are served.

    Attributes:
        owners: Of every use, whose each of its outputs is.
        layouts: The same as an axis; None where the units lie along none.
        bytes_freed: Bytes that the backward pass has freed when it reaches each use,
            more than at the use before.
        narrowest: The dtype of the graph that underflows first.
        coarsest: The largest relative rounding of a dtype of the graph.
        is_by_zeros: Whether some units are apart by weights of zero alone, which keep
            them apart as long as everything is finite.
    """

    owners: Sequence[Mapping[int, Owners]]
    layouts: Sequence[Mapping[int, Layout] | None]
    bytes_freed: Sequence[float]
    narrowest: torch.dtype
    coarsest: float
    is_by_zeros: bool = False

    @property
    def num_bytes(self) -> float:
        """Return about how much the activations take."""
        return sum(self.bytes_freed)


@final
@dataclass(frozen=True, slots=True)
class Analysis:
    """What one look at a graph found.

    Attributes:
        plan: How its uses are served; None if something has to be looked at again.
        followed: The owners at every node; None for one unit alone.
        shared: Uses that turned out to be shared by all units, as constants are.
        not_shared: What was taken for such, and is not.
        refusal: Why the uses cannot be served, unless the next look says otherwise.
    """

    plan: Plan | None
    followed: Followed | None = None
    shared: Mapping[Signature, Use] = field(default_factory=dict)
    not_shared: frozenset[Signature] = frozenset()
    refusal: SampleMixingError | None = None


def analysed(graph: Graph, root: Edge, units: Owners, num_units: int) -> Analysis:
    """Follow owners to the uses of a graph.

    Args:
        graph: What a walk found.
        root: The node and the output of the losses.
        units: Whose each loss is.
        num_units: How many units there are.
    """
    if num_units == 1:
        return _of_one_unit(graph)
    followed = _followed(graph, root, units, num_units)
    # The walk took some tensors for constants, so that what is computed of them and of
    # parameters counts as a parameter. If one unit alone sends a gradient to such a
    # tensor, it is that unit's data, and the graph is walked again without the guess.
    not_shared = [sign for node, sign in graph.assumed if _is_by_unit(followed, node)]
    if not_shared:
        return Analysis(None, not_shared=frozenset(not_shared))
    # A mixed use is refused, unless it may be such a constant, which everybody shares.
    # Example: table[positions] + x has owners along the batch in x, and a table that all
    # examples look up by the same positions: mixed, and rightly so.
    mixed = [use for use in graph.uses if _is_mixed(followed, use)]
    if mixed:
        return _refused(followed, graph, mixed)
    owners = [_owners(followed, use, num_units) for use in graph.uses]
    layouts = [
        _layouts(use, of_use) for use, of_use in zip(graph.uses, owners, strict=True)
    ]
    by_zeros = {n for n, moved in followed.moved if _is_by_zeros(n, moved)}
    # Example: eye(T) @ values, with a matrix that is trained. Its zeros have a gradient.
    if learning := [u for u in graph.uses if u.node in by_zeros and 0 in u.operands]:
        return Analysis(None, refusal=_learning(learning[-1]))
    plan = Plan(owners, layouts, _freed(graph), *_precision(graph), bool(by_zeros))
    return Analysis(plan, followed)


def _is_by_zeros(node: Node, moved: Moved) -> bool:
    """Whether rows of several units read something, and each has one reader's unit."""
    given = moved.given[0]
    if (
        rule_for_owners(node).rows not in BY_ZEROS
        or given is None
        or given.rows is None
    ):
        return False
    return reads_along_rows(given.rows) and any(
        one.axis != NOBODY and not one.has_mixed() for one in moved.answers[1:]
    )


def _learning(use: Use) -> SampleMixingError:
    return SampleMixingError(
        f"units meet in {use.operation}: weights of shape {shapes_of(use.parameters)} that"
        " are trained are zero between units, and each has a gradient of what it would"
        f" weigh, another unit's values. {REMEDY}"
    )


def _of_one_unit(graph: Graph) -> Analysis:
    """Return the analysis where everything is the one unit's."""
    alone = [dict.fromkeys(use.outputs, Owners.regular(0)) for use in graph.uses]
    layouts = [dict.fromkeys(use.outputs, Layout(-1)) for use in graph.uses]
    return Analysis(Plan(alone, layouts, _freed(graph), *_precision(graph)))


def _followed(graph: Graph, root: Edge, units: Owners, num_units: int) -> Followed:
    """Return the owners at every node, found again another way if uses are mixed."""
    assumed = {*graph.followed}.difference(graph.nodes)
    followed = follow(root, graph.followed, units, num_units, assumed=assumed)
    if not any(_is_mixed(followed, use) for use in graph.uses):
        return followed
    # Three integers cannot say that a slice leaves the rest nobody's, and count it as its
    # neighbours'. Written out, such a use may turn out not to be mixed.
    return follow(
        root, graph.followed, units, num_units, assumed=assumed, by_integers=False
    )


def _refused(followed: Followed, graph: Graph, mixed: Sequence[Use]) -> Analysis:
    """Return which mixed uses may be constants; of the others, why they are refused."""
    # Named by what tells uses apart, so that the next walk finds them again.
    shared = {u.might_be_constant: u for u in mixed if u.might_be_constant}
    definite = [use for use in mixed if not use.might_be_constant]
    refusal = _mixing(followed, graph, definite) if definite else None
    return Analysis(None, shared=shared, refusal=refusal)


def _owners(followed: Followed, use: Use, num_units: int) -> dict[int, Owners]:
    return {
        output: regularized(
            followed.at(use.node, output), output_shape(use.node, output), num_units
        )
        for output in use.outputs
    }


def _is_mixed(followed: Followed, use: Use) -> bool:
    return any(followed.at(use.node, output).has_mixed() for output in use.outputs)


def _is_by_unit(followed: Followed, node: Node) -> bool:
    """Whether something taken for shared is reached by one unit alone somewhere."""
    owners = followed.at(node, 0)
    if owners.rows is None:
        return owners.is_regular
    return bool((owners.rows >= 0).any())


def _layouts(use: Use, owners: Mapping[int, Owners]) -> dict[int, Layout] | None:
    layouts: dict[int, Layout] = {}
    for output, one in owners.items():
        layout = Layout.of(one, len(output_shape(use.node, output)))
        if layout is None:
            return None
        layouts[output] = layout
    return layouts


def neither(use: Use) -> SampleMixingError:
    """Return why parameters and a tensor without a graph can be served in no way.

    Args:
        use: Where they meet: some rows of it are one unit's and others are several's.
    """
    kept = ", ".join(str(tuple(one.shape)) for one in kept_without_graph(use.node))
    return SampleMixingError(
        f"examples are mixed on the way to parameters of shape {shapes_of(use.parameters)}, where"
        f" {use.operation} takes a tensor of shape {kept or 'unknown'}: part of what it"
        f" gives is one example's, and part is shared. {_declared(kept or 'unknown')}"
    )


def _declared(shapes: str) -> str:
    """Return how to say that a tensor is no data."""
    return (
        f"Only if the tensor of shape {shapes} is a constant of the program, no input"
        " and nothing that was computed from inputs, declare it:"
        " DPOptimizer(..., public=[tensor])"
    )


def _mixing(
    followed: Followed, graph: Graph, mixed: Sequence[Use]
) -> SampleMixingError:
    # Uses come inputs first, so the last one is where units met first on the way back.
    use = mixed[-1]  # Nearest to the losses.
    hints = [hint for other in reversed(mixed) if (hint := _hint_of_constants(other))]
    return SampleMixingError(
        f"units meet in {meeting_of(followed, graph.followed)}: examples are mixed on the"
        f" way from the losses to {use.operation} with parameters of shape"
        f" {shapes_of(use.parameters)}: one example's loss depends on another's data."
        f" {REMEDY}{hints[0] if hints else ''}"
    )


def _hint_of_constants(use: Use) -> str:
    """Return what else it may be, if the use computes weights with a tensor."""
    children = [child for child, _ in use.node.next_functions if child is not None]
    kept = kept_without_graph(use.node)
    if len(children) > len(use.operands) or not kept:
        return ""
    shapes = ", ".join(dict.fromkeys(str(tuple(one.shape)) for one in kept))
    return (
        f". Or nothing is mixed, but {use.operation} computes weights with a tensor of"
        f" shape {shapes} that has no graph, as a buffer of a parametrization, and may"
        f" be data. {_declared(shapes)}"
    )


def _freed(graph: Graph) -> list[float]:
    """Return what the backward pass frees between the uses."""
    uses = {use.node for use in graph.uses}
    parameters = [parameter for use in graph.uses for parameter in use.parameters]
    bytes_freed = freed_before(graph.nodes, uses, parameters)
    return [bytes_freed[use.node] for use in graph.uses]


def _precision(graph: Graph) -> tuple[torch.dtype, float]:
    """Return which dtype of a graph's gradients underflows first, and how they round."""
    dtypes = {
        output.dtype
        for node in graph.nodes
        for output in node._input_metadata  # noqa: SLF001 -- see _graph.nodes
        if output.dtype.is_floating_point
    } or {torch.float32}
    narrowest = max(dtypes, key=lambda dtype: torch.finfo(dtype).tiny)
    return narrowest, max(torch.finfo(dtype).eps for dtype in dtypes)
