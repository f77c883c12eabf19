"""The graphs of a training: walked once, recognised, and followed as far as needed.

A graph is walked once for its form, and owners are followed once for its sizes, in
integers where they are regular. What may move rows (an index, a mask, a custom
function) is followed at every step: if each such node answers as before, everything
behind it does; if one does not, the whole graph is followed.

Shapes: ``U`` units.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from dp import _tuning
from dp.exceptions import (
    SampleMixingError,
    UnsupportedOperationError,
    WrongGradientError,
)
from dp.per_sample._graph.nodes import Node
from dp.per_sample._graph.public import PublicTensors
from dp.per_sample._graph.uses import Edge, Graph, Signature
from dp.per_sample._graph.walk import find_uses
from dp.per_sample._isolation.analysis import Analysis, Plan, analysed, neither
from dp.per_sample._isolation.checks import (
    Fingerprints,
    check_above,
    check_dense,
    check_opaque,
    check_shared,
)
from dp.per_sample._isolation.data_rows import check_data, check_order
from dp.per_sample._isolation.following import Moved
from dp.per_sample._isolation.known_graph import Template
from dp.per_sample._isolation.mixing_flags import check_flags
from dp.per_sample._isolation.units import Units
from dp.per_sample._shortcuts import Shortcuts, find_shortcuts


__all__ = ("Found", "KnownGraphs")


@final
@dataclass(frozen=True, slots=True)
class Found:
    """A graph, and whose its rows are.

    Attributes:
        graph: The uses of the parameters.
        plan: How they are served.
        shortcuts: Which of them are served together, once the graph is known.
        was_walked: Whether it was walked itself, and not taken for one that was.
    """

    graph: Graph
    plan: Plan
    shortcuts: Shortcuts = field(default_factory=Shortcuts)
    was_walked: bool = False


@final
@dataclass(frozen=True, slots=True)
class _OfSizes:
    """What was found of a graph of some sizes, and by which nodes it may be another."""

    plan: Plan
    moved: Sequence[tuple[int, Moved]]
    shortcuts: Shortcuts = field(default_factory=Shortcuts)

    def is_as_before(self, nodes: Sequence[Node], num_units: int) -> bool:
        """Whether all that may move rows moves them as it did."""
        # Example: h[index], where the next batch has an index of the same length that
        # names rows of other examples: equal sizes, and other owners behind the node.
        return all(
            moved.is_as_before(nodes[place], num_units) for place, moved in self.moved
        )


@final
@dataclass(slots=True)
class _Known:
    """A graph that was walked."""

    template: Template
    fingerprints: Fingerprints
    by_sizes: dict[Hashable, _OfSizes] = field(default_factory=dict)
    by_units: dict[Hashable, _OfSizes] = field(default_factory=dict)

    def found(
        self,
        root: Edge,
        parameters: Sequence[Tensor],
        units: Units,
    ) -> Found | None:
        """Return what is known of a graph; None if it is not of this form.

        Raises:
            SampleMixingError: If a use has a row of several units.
        """
        nodes = self.template.matched(root, parameters)
        graph = None if nodes is None else self.template.bound(nodes, parameters)
        if nodes is None or graph is None:
            return None
        # Given units may own other rows in every batch: owners are those of before only if
        # every loss is of the same unit as it was.
        sizes = self.template.sizes(nodes, parameters), units.key
        by_sizes = self.by_units if units.are_given else self.by_sizes
        known = by_sizes.get(sizes)
        # Equal sizes have equal owners but for what moves rows by an index or a mask: each
        # such node is asked again, and only one that answers otherwise costs a new analysis.
        if known is None or not known.is_as_before(nodes, units.num_units):
            check_flags(graph.nodes)
            analysis = analysed(graph, root, units.owners, units.num_units)
            if analysis.plan is None:
                return None
            _check_order(graph, analysis.plan, units)
            known = _of_sizes(graph, analysis, nodes, parameters)
            most = _tuning.KNOWN_UNITS if units.are_given else _tuning.KNOWN_SIZES
            _keep(by_sizes, sizes, known, most)
        # At every batch, whether anything was found again or not.
        check_shared(self.fingerprints, graph)
        return Found(graph, known.plan, known.shortcuts)


@final
class KnownGraphs:
    """Find the uses of a graph and whose their rows are, from earlier graphs if like.

    Args:
        public: Tensors that were declared to be no data.
    """

    def __init__(self, public: PublicTensors) -> None:
        self._public = public
        self._known: list[_Known] = []  # Newest first.
        self._constants: frozenset[Signature] = frozenset()

    def find(self, root: Edge, parameters: Sequence[Tensor], units: Units) -> Found:
        """Return the uses below some losses.

        Raises:
            SampleMixingError: If a row of a use, or of the data, is several units'.
            UnsupportedOperationError: If the graph hides where parameters are used.
        """
        if self._public:  # As a rule nothing is declared.
            self._public.refresh()
        known = self._recognised(root, parameters, units)
        if known is None:
            known = self._walked(root, parameters, units)
        if units.num_units > 1:
            # Never remembered: every batch has other data.
            check_data(known.graph.uses, known.plan.owners, num_units=units.num_units)
        return known

    def check_recognised(
        self, known: Found, root: Edge, parameters: Sequence[Tensor]
    ) -> None:
        """Walk a graph that was taken for a known one, and compare what a walk finds.

        Raises:
            WrongGradientError: If it is another graph.
        """
        if known.was_walked:  # At this very step: there is nothing to compare.
            return
        # By node: a signature has the shape of the batch that was walked, and this one may
        # be longer. Whether each is the same operation on the same table is compared.
        shared = frozenset(node for node, _ in known.graph.assumed)
        walked = find_uses(root, parameters, constants=shared, public=self._public)
        check_flags(walked.nodes)
        if _outline(walked) != _outline(known.graph):
            error = WrongGradientError(
                "a graph was taken for one that was walked before, and a walk over it"
                " finds other uses of the parameters, or other tensors without a graph;"
                " please report this with the model"
            )
            error.began_earlier = True
            raise error

    def _recognised(
        self, root: Edge, parameters: Sequence[Tensor], units: Units
    ) -> Found | None:
        # Newest first, and lazily: a training has one form of graph, or two that take
        # turns.
        matches = (known.found(root, parameters, units) for known in self._known)
        return next((match for match in matches if match is not None), None)

    def _walked(self, root: Edge, parameters: Sequence[Tensor], units: Units) -> Found:
        """Walk until what is taken for shared by all units is, and nothing else."""
        _check_real(parameters)
        constants, rejected = self._constants, frozenset[Signature]()
        refusal: SampleMixingError | None = None
        while True:
            try:
                graph = find_uses(
                    root, parameters, constants=constants, public=self._public
                )
            except SampleMixingError as error:
                raise refusal or error from None
            check_opaque(graph)
            check_flags(graph.nodes)
            check_dense(use for use in graph.uses if not use.might_be_constant)
            if units.num_units > 1:
                check_above(graph)
            analysis = analysed(graph, root, units.owners, units.num_units)
            if analysis.plan is not None:
                break
            # The first refusal names the operation nearest to the cause; later looks, with more
            # taken for shared, would name another.
            refusal = refusal or analysis.refusal
            rejected |= analysis.not_shared
            more = frozenset(constants | analysis.shared.keys()) - rejected
            if more == constants:
                raise refusal or neither(next(iter(analysis.shared.values())))
            # Example: table[positions] + x. The first look finds a mixed use of the table, which
            # may be a constant; the second takes it for one, and finds nothing mixed.
            constants = more
        check_dense(graph.uses)
        _check_order(graph, analysis.plan, units)
        self._constants |= constants
        fingerprints: Fingerprints = {}
        check_shared(fingerprints, graph)
        if units.num_units > 1:
            template = Template(graph, root, parameters, self._public)
            kept = self._known[: _tuning.KNOWN_GRAPHS - 1]
            self._known = [_Known(template, fingerprints), *kept]
        return Found(graph, analysis.plan, was_walked=True)


def _keep(
    by_sizes: dict[Hashable, _OfSizes], sizes: Hashable, known: _OfSizes, most: int
) -> None:
    # Put in again at the end: the first key is then the one that was found longest ago.
    # Poisson batches of 256 on average come in about 100 sizes.
    by_sizes.pop(sizes, None)
    by_sizes[sizes] = known
    if len(by_sizes) > most:
        del by_sizes[next(iter(by_sizes))]


def _of_sizes(
    graph: Graph,
    analysis: Analysis,
    nodes: Sequence[Node],
    parameters: Sequence[Tensor],
) -> _OfSizes:
    assert analysis.plan is not None  # noqa: S101 -- by the caller
    if analysis.followed is None:  # One unit alone owns everything.
        return _OfSizes(analysis.plan, ())
    moved = analysis.followed.moved
    place_of = {node: place for place, node in enumerate(nodes)} if moved else {}
    num_units = analysis.followed.num_units
    shortcuts = find_shortcuts(graph, analysis.plan, parameters, num_samples=num_units)
    return _OfSizes(
        analysis.plan, [(place_of[node], one) for node, one in moved], shortcuts
    )


def _outline(graph: Graph) -> Hashable:
    """Return what is read of a graph: its uses, its nodes, and what all units share."""
    uses = [
        (use.node, *use.outputs, *map(id, use.parameters), use.is_last)
        for use in graph.uses
    ]
    constants = [(node, *constant.shape) for node, constant in graph.constants]
    assumed = [(node, *_without_shape(sign)) for node, sign in graph.assumed]
    return tuple(
        map(frozenset, (uses, graph.nodes, graph.followed, constants, assumed))
    )


def _without_shape(sign: Signature) -> Signature:
    """Return the name and parameters of a use, without its shape and how often it came."""
    return sign[:-2]


def _check_order(graph: Graph, plan: Plan, units: Units) -> None:
    if units.num_units > 1 and not units.are_given:
        check_order(graph.uses, plan.owners, num_units=units.num_units)


def _check_real(parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        if parameter.is_complex():
            raise UnsupportedOperationError(
                f"a parameter of shape {tuple(parameter.shape)} is complex, and noise is"
                " real; hold its real and imaginary parts, as torch.view_as_real gives"
                " them, and use torch.view_as_complex of that"
            )
