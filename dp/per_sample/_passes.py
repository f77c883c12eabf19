"""The backward passes of one batch: the private one, and those that verify it.

Shapes: ``U`` units of privacy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from dp.per_sample._backward_pass import BackwardPass
from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._graph.uses import Edge
from dp.per_sample._isolation.ordinary_pass import ordinary_sums
from dp.per_sample._isolation.units import Units
from dp.per_sample._known_graphs import Found


__all__ = ("Passes",)


@final
@dataclass(frozen=True, slots=True)
class Passes:
    """The backward passes of one batch: the private one, and those that verify it.

    Attributes:
        known: The uses of the parameters, and whose their rows are.
        losses: Where passes start.
        parameters: What gradients are of.
        groups: The group of each, as they are clipped.
        whose: The units of the losses.
        factors: [U] what the losses of each unit are multiplied with.
        loss_scale: What gradients are divided by.
        nonfinite: [U] infinity for a unit of which a loss is not finite, else 0.
        without_rule: The operations that no rule served, and their parameters.
    """

    known: Found
    losses: Tensor
    parameters: Sequence[Tensor]
    groups: Sequence[int]
    whose: Units
    factors: Tensor
    loss_scale: float
    nonfinite: Tensor
    without_rule: dict[str, Sequence[Tensor]] = field(default_factory=dict)

    @property
    def root(self) -> Edge:
        """The node and the output of the losses."""
        return self.losses.grad_fn, self.losses.output_nr

    def last(self, *, keep_graph: bool = False) -> PerSampleGradients:
        """Run the private pass, which frees the graph unless another one follows."""
        return self._run(self.factors, keep_graph=keep_graph)

    def scaled(self, scale_U: Tensor) -> PerSampleGradients:
        """Run a pass in which the losses of each unit are multiplied by a power of two."""
        return self._run(self.factors * scale_U, keep_graph=True)

    def ordinary(self, weight_U: Tensor, *, keep_graph: bool = True) -> list[Tensor]:
        """Run torch's own pass in which the losses of each unit have a weight."""
        seeds = self.whose.by_loss(self.factors * weight_U, self.losses)
        return ordinary_sums(self.losses, self.parameters, seeds, keep_graph=keep_graph)

    def _run(self, factor_U: Tensor, *, keep_graph: bool) -> PerSampleGradients:
        graph = self.known.graph
        collected = BackwardPass(self.known, self.whose.num_units)
        self.without_rule.update(
            (site.use.operation, site.use.parameters) for site in collected.without_rule
        )
        seeds = self.whose.by_loss(factor_U, self.losses)
        collected.run(self.losses, seeds, keep_graph=keep_graph)
        # Of a perceptron no part is left to look up.
        numbered = enumerate(self.parameters if collected.parts else ())
        index_of = {id(p): i for i, p in numbered}
        parts = {index_of[key]: parts for key, parts in collected.parts.items()}
        parts |= {index: [part] for index, part in collected.repeated.items()}
        return PerSampleGradients(
            parts,
            self.parameters,
            self.nonfinite,
            loss_scale=self.loss_scale,
            stacks=collected.stacked,
            rows=collected.rows,
            is_detached=not graph.uses,
        )
