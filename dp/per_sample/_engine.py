"""Per-example gradients from one backward pass over an ordinary autograd graph.

The model is not touched: no hooks, no wrapped modules, no replaced layers. The graph
from the losses back to the parameters says where each parameter is used; autograd is
asked for the gradients at these places only, so it never computes the parameters'
own. What it kept for its backward says the rest.

Shapes: ``B`` examples.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.per_sample._derived import parts_of_parameters
from dp.per_sample._fallback import by_graph, by_node
from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._graph import Graph, Signature
from dp.per_sample._parts import Part, wide
from dp.per_sample._plan import Plan, check_norm, check_opaque, check_shared, planned
from dp.per_sample._rules import RULES
from dp.per_sample._site import Budget, Grads, Rule, Site
from dp.per_sample._template import Template
from dp.per_sample._walk import walked


__all__ = ("Engine",)

# Of the bytes of the model's own activations: what kept gradients may need besides.
_ALLOWANCE: Final = 0.05
_MAX_TEMPLATES: Final = 4
_ALLOWED_BYTES: Final = 8 << 20  # Of a small model, as much as a large one's chunks.


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
        self._templates: list[tuple[Template, Plan]] = []  # The latest first.
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
        zeros_B = wide(losses_B.detach().new_zeros(len(losses_B)))
        # By an example's own loss alone, so that no other one can change it.
        start_B = zeros_B.masked_fill(~losses_B.detach().isfinite(), torch.inf)
        if losses_B.grad_fn is None or bool(start_B.isinf().all()):
            return PerSampleGradients({}, parameters, start_B)
        graph, plan = self._planned(losses_B, parameters)
        collected = _Collected(graph, plan, len(losses_B))
        for site in collected.without_rule:
            self._warn_of(site.use.operation, site.use.parameters)
        if collected.unknown:
            unknown = list(collected.unknown.values())
            collected.replace(by_graph(losses_B, unknown, loss_scale=loss_scale))
        collected.run(losses_B, loss_scale)
        index_of = {id(p): i for i, p in enumerate(parameters)}
        by_index = {index_of[key]: found for key, found in collected.parts.items()}
        return PerSampleGradients(by_index, parameters, start_B, loss_scale=loss_scale)

    def _planned(
        self, losses_B: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Graph, Plan]:
        """Return the graph and its plan, from an earlier batch if there is one."""
        root = (losses_B.grad_fn, losses_B.output_nr)
        B = len(losses_B)
        for template, plan in self._templates:
            known = template.bound(
                root, parameters, num_samples=B, constants=self._constants
            )
            if known is not None:
                check_shared(plan, known)
                return known, plan
        while True:
            graph = walked(
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
                template = Template(
                    graph, root, parameters, num_samples=B, constants=self._constants
                )
                self._templates = [
                    (template, found), *self._templates[: _MAX_TEMPLATES - 1]
                ]
            return graph, found

    def _warn_of(self, operation: str, parameters: Sequence[Tensor]) -> None:
        if operation not in self._warned:
            self._warned.add(operation)
            shapes = ", ".join(str(tuple(p.shape)) for p in parameters)
            warnings.warn(
                f"no rule serves {operation} with parameters of shape {shapes}:"
                " their gradients are right, but found by a backward pass of it for"
                " each example",
                stacklevel=6,
            )


_Item = tuple[Site, Rule | None, float]  # With the bytes that are freed before it.


def _postpone(postponed: list[tuple[_Item, Grads]], item: _Item, grads: Grads) -> None:
    postponed.append((item, grads))


@final
class _Collected:
    """Parts of one batch, collected while the backward pass reaches the uses."""

    def __init__(self, graph: Graph, plan: Plan, num_samples: int) -> None:
        self.parts: dict[int, list[Part]] = {}
        self.unknown: dict[int, Tensor] = {}  # Parameters, of this batch.
        self.without_rule: list[Site] = []
        self._num_samples = num_samples
        self._sites: list[_Item] = []
        budget = Budget(max(_ALLOWED_BYTES, _ALLOWANCE * plan.num_bytes * num_samples))
        for use, layouts, freed in zip(
            graph.uses, plan.layouts, plan.freed, strict=True
        ):
            if layouts is None:
                self.unknown.update((id(p), p) for p in use.parameters)
                continue
            site = Site(use, layouts, num_samples, budget)
            rule = RULES.get(use.operation)
            if rule is None or not rule.applies(site):
                check_norm(site.use)
                self.without_rule.append(site)
                rule = None
            self._sites.append((site, rule, freed * num_samples))

    def replace(self, whole: Mapping[int, Part]) -> None:
        """Take whole gradients of parameters, instead of those of their uses."""
        self.parts.update((key, [part]) for key, part in whole.items())

    def run(self, losses_B: Tensor, loss_scale: float) -> None:
        """Run the backward pass."""
        last = [item for item in self._sites if item[0].use.is_last]
        # A node that is run alone would, during the pass, leave out what it omits.
        postponed: list[tuple[_Item, Grads]] = []
        handles = []
        for item in self._sites:
            site, rule, _ = item
            if not site.use.is_last:
                hook = (
                    partial(_postpone, postponed, item)
                    if rule is None
                    else partial(self._add, *item)
                )
                handles.append(site.use.node.register_prehook(hook))
        edges = [
            GradientEdge(site.use.node, output)
            for site, _, _ in last
            for output in site.use.outputs
        ]
        if not edges:
            return
        try:
            found = torch.autograd.grad(
                losses_B,
                edges,
                torch.full_like(losses_B, loss_scale),
                retain_graph=any(
                    rule is None and not site.use.is_last
                    for site, rule, _ in self._sites
                ),
                allow_unused=True,
            )
        finally:
            for handle in handles:
                handle.remove()
        remaining = list(reversed(found))
        del found
        with torch.no_grad():
            for (site, rule, freed), some in postponed:
                self._add(site, rule, freed, some)
            for site, rule, freed in last:
                grads: dict[int, Tensor | None] = {
                    output: remaining.pop() for output in site.use.outputs
                }
                width = 1 + max(site.use.outputs)
                self._add(site, rule, freed, [grads.get(i) for i in range(width)])

    def _add(self, site: Site, rule: Rule | None, freed: float, grads: Grads) -> None:
        site.budget.release(freed)
        if all(grad is None for grad in grads):
            return
        if rule is None:
            parts = by_node(site, grads)
        else:
            (grad, *_) = grads
            parts = {} if grad is None else rule.parts(site, grad)
        for position, part in parts.items():
            operand = site.operands[position]
            for parameter, whole in parts_of_parameters(
                part, operand, self._num_samples
            ):
                if id(parameter) not in self.unknown:
                    self.parts.setdefault(id(parameter), []).append(whole)
