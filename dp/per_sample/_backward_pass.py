"""The backward pass of one batch, and what it leaves of the parameters' uses.

Shapes: ``B`` examples.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp import _tuning
from dp.per_sample._gradients import BatchedGrads
from dp.per_sample._graph.uses import Graph
from dp.per_sample._isolation.graph_plan import Plan, check_norm
from dp.per_sample._layer_batching import BatchedLayers, LayerGroup, batch_layers
from dp.per_sample._parts.part import GradPart
from dp.per_sample._parts.reparametrized import parts_of_parameters
from dp.per_sample._rules.by_owner import fitting_rule, parts_of_use
from dp.per_sample._rules.context import Grads, MemoryBudget, Rule, RuleContext


__all__ = ("BackwardPass",)


_Item = tuple[
    RuleContext, Rule | None, float
]  # With the bytes that are freed before it.


def _postpone(postponed: list[tuple[_Item, Grads]], item: _Item, grads: Grads) -> None:
    postponed.append((item, grads))


@final
class BackwardPass:
    """Parts of one batch, collected while the backward pass reaches the uses."""

    def __init__(
        self, graph: Graph, plan: Plan, layers: Sequence[LayerGroup], num_samples: int
    ) -> None:
        self.parts: dict[int, list[GradPart]] = {}
        self.stacked: list[BatchedGrads] = []
        self.unknown: dict[int, Tensor] = {}  # Parameters, of this batch.
        self.without_rule: list[RuleContext] = []
        self._num_samples = num_samples
        self._sites: list[_Item] = []
        self._stacks: list[BatchedLayers] = []
        budget = MemoryBudget(
            max(
                _tuning.ALLOWED_BYTES,
                _tuning.ALLOWED_SHARE * plan.num_bytes * num_samples,
            )
        )
        in_stacks = self._put_together(graph, plan, layers, budget)
        for position, (use, layouts, bytes_freed) in enumerate(
            zip(graph.uses, plan.layouts, plan.bytes_freed, strict=True)
        ):
            if position in in_stacks:
                continue
            if layouts is None:
                self.unknown.update((id(p), p) for p in use.parameters)
                continue
            site = RuleContext(use, layouts, num_samples, budget)
            rule = fitting_rule(site)
            if rule is None:
                check_norm(site.use)
                self.without_rule.append(site)
            self._sites.append((site, rule, bytes_freed * num_samples))

    def _put_together(
        self,
        graph: Graph,
        plan: Plan,
        layers: Sequence[LayerGroup],
        budget: MemoryBudget,
    ) -> set[int]:
        """Make one of layers that are alike, and return the positions of these."""
        done: set[int] = set()
        for some in layers:
            stack = batch_layers(
                [graph.uses[i] for i in some.members],
                some,
                plan.layouts[some.members[0]] or {},
                num_samples=self._num_samples,
                budget=budget,
            )
            if stack is not None:
                self._stacks.append(stack)
                done.update(some.members)
        return done

    def replace(self, whole: Mapping[int, GradPart]) -> None:
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
                    if rule is None or rule.waits
                    else partial(self._add, *item)
                )
                handles.append(site.use.node.register_prehook(hook))
        edges = [
            GradientEdge(site.use.node, output)
            for site, _, _ in last
            for output in site.use.outputs
        ]
        edges += [
            GradientEdge(node, 0) for stack in self._stacks for node in stack.nodes
        ]
        if not edges:
            return
        try:
            found = torch.autograd.grad(
                losses_B,
                edges,
                torch.full_like(losses_B, loss_scale),
                retain_graph=any(
                    (rule is None or rule.waits) and not site.use.is_last
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
            for (site, rule, bytes_freed), some in postponed:
                self._add(site, rule, bytes_freed, some)
            for site, rule, bytes_freed in last:
                grads: dict[int, Tensor | None] = {
                    output: remaining.pop() for output in site.use.outputs
                }
                width = 1 + max(site.use.outputs)
                self._add(site, rule, bytes_freed, [grads.get(i) for i in range(width)])
            for stack in self._stacks:
                self._add_stack(stack, [remaining.pop() for _ in stack.nodes])

    def _add_stack(self, stack: BatchedLayers, grads: Grads) -> None:
        self.stacked += [
            BatchedGrads(stack.group.indices[position], part)
            for position, part in stack.parts(grads).items()
        ]

    def _add(
        self, site: RuleContext, rule: Rule | None, bytes_freed: float, grads: Grads
    ) -> None:
        site.budget.credit(bytes_freed)
        if all(grad is None for grad in grads):
            return
        for position, part in parts_of_use(rule, site, grads).items():
            operand = site.operands[position]
            for parameter, whole in parts_of_parameters(
                part, operand, self._num_samples
            ):
                if id(parameter) not in self.unknown:
                    self.parts.setdefault(id(parameter), []).append(whole)
