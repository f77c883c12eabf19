"""The backward pass of one batch, and what it leaves of the parameters' uses.

Shapes: ``B`` examples.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast, final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from dp import _tuning
from dp.per_sample._gradients import BatchedGrads
from dp.per_sample._isolation.checks import check_coupling
from dp.per_sample._known_graphs import Found
from dp.per_sample._layer_batching import BatchedLayers, batch_layers
from dp.per_sample._parts.part import GradPart
from dp.per_sample._parts.reparametrized import parts_of_parameters
from dp.per_sample._repeated_layers import RepeatedLayer, parts_of_steps
from dp.per_sample._row_layers import OuterProducts, RowLayers
from dp.per_sample._rules.by_owner import fitting_rule, parts_of_use
from dp.per_sample._rules.context import Grads, MemoryBudget, Rule, RuleContext
from dp.per_sample._taken_over import take_over


__all__ = ("BackwardPass",)


_Parts = dict[int, list[GradPart]]  # By the identity of the parameter.
_Item = tuple[
    RuleContext, Rule | None, float
]  # With the bytes that are freed before it.


def _postpone(postponed: list[tuple[_Item, Grads]], item: _Item, grads: Grads) -> None:
    postponed.append((item, grads))


def _waits(rule: Rule | None) -> bool:
    """Whether a use is served after the pass: its node is run, or its rule asks for it."""
    return rule is None or rule.waits


@final
class BackwardPass:
    """Parts of one batch, collected while the backward pass reaches the uses."""

    def __init__(self, known: Found, num_samples: int) -> None:
        graph, plan = known.graph, known.plan
        self.parts: _Parts = {}
        self.stacked: list[BatchedGrads] = []
        self.rows: OuterProducts | None = None
        self.repeated: dict[int, GradPart] = {}  # By the index of the parameter.
        self.without_rule: list[RuleContext] = []
        self._graph = graph
        self._num_samples = num_samples
        self._sites: list[_Item] = []
        self._stacks: list[BatchedLayers] = []
        # Example: activations of 100, 50 and 20 MB are 170 MB together, so gradients
        # may take 8.5 MB at the start, and 20 MB more once the pass has freed the last
        # layer's.
        self._budget = budget = MemoryBudget(
            max(_tuning.ALLOWED_BYTES, _tuning.ALLOWED_SHARE * plan.num_bytes)
        )
        in_stacks = self._put_together(known, budget)
        self._rows = RowLayers(graph.uses, known.shortcuts.rows)
        self._repeated = self._repeated_layers(known)
        in_rows: set[int] = set()
        freed = plan.bytes_freed
        for rows in self._by_row():
            in_rows.update(layer.position for layer in rows.layers)
            freed = rows.bytes_freed(freed)
        groups = known.shortcuts.groups
        for position, (use, bytes_freed) in enumerate(
            zip(graph.uses, freed, strict=True)
        ):
            if position in in_stacks or position in in_rows:
                continue
            layouts, owners = plan.layouts[position], plan.owners[position]
            site = (
                RuleContext(use, {}, num_samples, budget, owners=owners, groups=groups)
                if layouts is None
                else RuleContext(use, layouts, num_samples, budget)
            )
            # Of rfft(x) * w with a real w, a rule's products are complex; the node's
            # own backward takes the conjugate and the real part, as it must be for a
            # real parameter.
            rule = None if _is_complex(site) else fitting_rule(site)
            if rule is None:
                check_coupling(use, site.owner_of_entries)
                self.without_rule.append(site)
            self._sites.append((site, rule, bytes_freed))

    def _repeated_layers(self, known: Found) -> list[tuple[RepeatedLayer, RowLayers]]:
        """Return the layers of many steps, where no step differs in this batch."""
        found = [
            (layer, RowLayers(known.graph.uses, layer.steps))
            for layer in known.shortcuts.repeated
        ]
        return [
            (layer, rows)
            for layer, rows in found
            if len(rows.layers) == len(layer.steps)
        ]

    def _by_row(self) -> list[RowLayers]:
        return [self._rows, *(rows for _, rows in self._repeated)]

    def _put_together(self, known: Found, budget: MemoryBudget) -> set[int]:
        """Make one of layers that are alike, and return the positions of these."""
        graph, plan = known.graph, known.plan
        done: set[int] = set()
        for group in known.shortcuts.layers:
            stack = batch_layers(
                [graph.uses[i] for i in group.members],
                group,
                plan.layouts[group.members[0]] or {},
                num_samples=self._num_samples,
                budget=budget,
            )
            if stack is not None:
                self._stacks.append(stack)
                done.update(group.members)
        return done

    def run(self, losses: Tensor, seeds: Tensor, *, keep_graph: bool = False) -> None:
        """Run the backward pass.

        Args:
            losses: Where it starts.
            seeds: What each loss is multiplied with.
            keep_graph: Whether another pass will follow.
        """
        roots = take_over(self._graph, [(site, rule) for site, rule, _ in self._sites])
        # Of two layers, the first is the last use: the pass ends at the gradient of its
        # output, and no gradient of a weight, nor of the data, is ever computed. The
        # second layer is served by a hook, when the gradient of its output passes.
        edges = self._edges()
        # No loss depends on one of the parameters: the graph is of others' alone.
        if not edges:
            return
        postponed: list[tuple[_Item, Grads]] = []
        handles = self._hooked(postponed)
        try:
            gradients = torch.autograd.grad(
                cast("list[Tensor]", [losses, *(root.edge for root in roots)]),
                edges,
                [seeds, *(root.buffer for root in roots)],
                # Nodes that are run again need what they saved, which autograd would
                # free.
                retain_graph=keep_graph or self._waits_for_nodes(),
                # Where a node before it sent None, an edge has no gradient.
                allow_unused=True,
            )
        finally:
            for handle in handles:
                handle.remove()
        # In the order of the edges, so that pop() gives the first and lets go of it:
        # what has been served is freed before the next is held.
        remaining: list[Tensor | None] = [*reversed(gradients)]
        del gradients
        with torch.no_grad():
            for item, grads in postponed:
                self._add(*item, grads)
            self._add_last(remaining)
            for stack in self._stacks:
                self._add_stack(stack, [remaining.pop() for _ in stack.nodes])
            # Of these every tensor is held until its sum is there, as it has to be.
            self.rows = self._rows.gradients(
                [remaining.pop() for _ in self._rows.nodes]
            )
            for layer, rows in self._repeated:
                grads = [remaining.pop() for _ in rows.nodes]
                self._add_steps(layer, rows.inputs, grads)

    def _edges(self) -> list[GradientEdge]:
        """Return where gradients are asked for: at the last uses, stacks and rows."""
        edges = [
            GradientEdge(site.use.node, output)
            for site, _, _ in self._last()
            for output in site.use.outputs
        ]
        edges += [
            GradientEdge(node, 0) for stack in self._stacks for node in stack.nodes
        ]
        return edges + [
            GradientEdge(node, 0) for rows in self._by_row() for node in rows.nodes
        ]

    def _last(self) -> list[_Item]:
        return [item for item in self._sites if item[0].use.is_last]

    def _hooked(self, postponed: list[tuple[_Item, Grads]]) -> list[RemovableHandle]:
        """Have every use served, or postponed, when the pass reaches it.

        A node that is run alone would, during the pass, leave out what it omits.
        """
        handles = []
        for item in self._sites:
            site, rule, _ = item
            # The last uses are the ends of the pass, which needs no hook to find their
            # gradients.
            if not site.use.is_last:
                hook = (
                    partial(_postpone, postponed, item)
                    if _waits(rule)
                    else partial(self._add_instead, *item)
                    if site.input_grad is not None
                    else partial(self._add, *item)
                )
                handles.append(site.use.node.register_prehook(hook))
        return handles

    def _waits_for_nodes(self) -> bool:
        """Whether nodes that the pass goes through are run again after it."""
        return any(
            _waits(rule) and not site.use.is_last for site, rule, _ in self._sites
        )

    def _add_last(self, remaining: list[Tensor | None]) -> None:
        """Serve the last uses.

        Args:
            remaining: The gradients at all edges, backwards; what is served is taken
                from its end, so that nothing holds it any longer.
        """
        for site, rule, bytes_freed in self._last():
            # Example: of an LSTM's outputs (y, h, c) the losses may depend on 0 and 2:
            # the rule is given [gy, None, gc].
            grads: dict[int, Tensor | None] = {
                output: remaining.pop() for output in site.use.outputs
            }
            width = 1 + max(site.use.outputs)
            self._add(site, rule, bytes_freed, [grads.get(i) for i in range(width)])

    def _add_stack(self, stack: BatchedLayers, grads: Grads) -> None:
        self.stacked += [
            BatchedGrads(stack.group.indices[position], part)
            for position, part in stack.parts(grads).items()
        ]

    def _add_steps(
        self, layer: RepeatedLayer, inputs: Sequence[Tensor], grads: Grads
    ) -> None:
        use = self._graph.uses[layer.steps[0].position]
        context = RuleContext(use, {}, self._num_samples, self._budget)
        self.repeated.update(parts_of_steps(layer, inputs, grads, context))

    def _add_instead(
        self, site: RuleContext, rule: Rule | None, bytes_freed: float, grads: Grads
    ) -> Grads:
        """Serve a use whose rule takes over from its node, and leave the node nothing."""
        self._add(site, rule, bytes_freed, grads)
        return (None,) * len(grads)

    def _add(
        self, site: RuleContext, rule: Rule | None, bytes_freed: float, grads: Grads
    ) -> None:
        # Activations were freed whether a gradient flows or not.
        site.budget.credit(bytes_freed)
        if all(grad is None for grad in grads):
            return
        for position, part in parts_of_use(rule, site, grads).items():
            operand = site.operands[position]
            for parameter, whole in parts_of_parameters(
                part, operand, self._num_samples
            ):
                self.parts.setdefault(id(parameter), []).append(whole)


def _is_complex(site: RuleContext) -> bool:
    """Whether complex numbers take part, whose gradients rules do not make real."""
    return any(output.dtype.is_complex for output in site.use.node._input_metadata)  # noqa: SLF001 -- see _graph.nodes
