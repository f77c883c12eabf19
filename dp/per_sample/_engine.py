"""Per-example gradients from one backward pass over an ordinary autograd graph.

The model is not touched: no hooks, no wrapped modules, no replaced layers. The graph
from the losses back to the parameters says where each parameter is used; autograd is
asked for the gradients at these places only, so it never computes the parameters'
own. What it kept for its backward says the rest.

Shapes: ``B`` examples.
"""

import warnings
from collections.abc import Hashable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dp import _tuning
from dp.per_sample._backward_pass import BackwardPass
from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._graph.template import Template
from dp.per_sample._graph.uses import Edge, Graph, Signature, shapes_of
from dp.per_sample._graph.walk import find_uses
from dp.per_sample._isolation.graph_plan import (
    Plan,
    check_opaque,
    check_shared,
    planned,
)
from dp.per_sample._layer_batching import LayerGroup, find_identical_layers
from dp.per_sample._parts.part import wide
from dp.per_sample._rules.fallback import by_graph


__all__ = ("Engine",)


@final
class Engine:
    """Find every example's gradient in the graph of a vector of losses.

    Guarantees:
        * ``p.grad`` is neither read nor written; the graph is freed, as by
          ``backward``.
        * A parameter that no loss depends on has gradients of zero.
        * An operation without a rule is served by a slower path, with one warning
          that names it; nothing is ever left out.
        * Losses by which one example's gradient reaches another's rows raise.
    """

    def __init__(self) -> None:
        self._plans: dict[Hashable, Plan] = {}
        self._known: list[
            tuple[Template, Plan, Sequence[LayerGroup]]
        ] = []  # Newest first.
        self._constants: frozenset[Signature] = frozenset()
        self._warned: set[str] = set()

    def gradients(
        self,
        losses_B: Float[Tensor, " B"],
        parameters: Sequence[Tensor],
        *,
        loss_scale: float = 1.0,
    ) -> PerSampleGradients:
        """Return the gradients of every loss with respect to *parameters*.

        Args:
            losses_B: One loss an example.
            parameters: Leaves of the graph that require gradients.
            loss_scale: What the losses are multiplied with on the way back, so that
                half-precision gradients do not underflow. The result is divided by it.

        Raises:
            SampleMixingError: If a loss depends on another example.
            UnsupportedOperationError: If the graph hides where parameters are used,
                or if an example is not finite where an operation without a rule would
                spread that to the others.
        """
        # By an example's own loss alone, so that no other one can change it.
        own_B = losses_B.detach()
        nonfinite_B = wide(own_B - own_B).nan_to_num_(nan=torch.inf)
        is_detached = losses_B.grad_fn is None
        if is_detached or bool(nonfinite_B.all()):
            return PerSampleGradients(
                {}, parameters, nonfinite_B, is_detached=is_detached
            )
        graph, plan, layers = self._planned(losses_B, parameters)
        collected = BackwardPass(graph, plan, layers, len(losses_B))
        for site in collected.without_rule:
            self._warn_of(site.use.operation, site.use.parameters)
        if collected.unknown:
            unknown = list(collected.unknown.values())
            collected.replace(by_graph(losses_B, unknown, loss_scale=loss_scale))
        collected.run(losses_B, loss_scale)
        index_of = {id(p): i for i, p in enumerate(parameters)}
        by_index = {index_of[key]: found for key, found in collected.parts.items()}
        return PerSampleGradients(
            by_index,
            parameters,
            nonfinite_B,
            loss_scale=loss_scale,
            stacks=collected.stacked,
            is_detached=not graph.uses,
        )

    def _planned(
        self, losses_B: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Graph, Plan, Sequence[LayerGroup]]:
        """Return the graph and its plan, from an earlier batch if there is one.

        And the layers that are alike, once the graph was seen before.
        """
        root = (losses_B.grad_fn, losses_B.output_nr)
        B = len(losses_B)
        for template, plan, layers in self._known:
            known = template.bound(
                root, parameters, num_samples=B, constants=self._constants
            )
            if known is not None:
                check_shared(plan, known)
                return known, plan, layers
        while True:
            graph = find_uses(
                root,
                parameters,
                num_samples=B,
                constants=self._constants,
            )
            check_opaque(graph)
            found = self._plans.get(graph.shape)
            if found is None:
                found, certain, constants = planned(losses_B, graph)
                self._constants |= constants
                if found is None:
                    continue
                if certain:
                    self._plans[graph.shape] = found
            check_shared(found, graph)
            if graph.shape in self._plans and B > 1:
                self._remember(graph, found, root, parameters, B)
            return graph, found, ()

    def _remember(
        self,
        graph: Graph,
        plan: Plan,
        root: Edge,
        parameters: Sequence[Tensor],
        num_samples: int,
    ) -> None:
        template = Template(
            graph,
            root,
            parameters,
            num_samples=num_samples,
            constants=self._constants,
        )
        layers = find_identical_layers(
            graph, plan.layouts, parameters, num_samples=num_samples
        )
        kept = self._known[: _tuning.KNOWN_GRAPHS - 1]
        self._known = [(template, plan, layers), *kept]

    def _warn_of(self, operation: str, parameters: Sequence[Tensor]) -> None:
        if operation not in self._warned:
            self._warned.add(operation)
            warnings.warn(
                f"no rule serves {operation} with parameters of shape"
                f" {shapes_of(parameters)}:"
                " their gradients are right, but found by a backward pass of it for"
                " each example",
                stacklevel=6,
            )
