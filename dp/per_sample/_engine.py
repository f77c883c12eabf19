"""Per-example gradients from one backward pass over an ordinary autograd graph.

The model is not touched: no hooks, no wrapped modules, no replaced layers. The graph
from the losses back to the parameters says where each parameter is used; autograd is
asked for the gradients at these places only, so it never computes the parameters'
own. What it kept for its backward says the rest.

Shapes: ``B`` examples, ``G`` groups of parameters.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.exceptions import UnsupportedOperationError
from dp.per_sample._layout import Layout
from dp.per_sample._parts import Kept, Part, joint_squared_norms, wide
from dp.per_sample._probe import probed
from dp.per_sample._rules import RULES, Site
from dp.per_sample._walk import Graph, Use, saved, walked


__all__ = ("Engine", "PerSampleGradients")

_ROWS_AT_ONCE: Final = 16  # Examples whose backward the fallback runs together.


@final
class PerSampleGradients:
    """Every example's gradient, as far as norms and weighted sums need it.

    Attributes:
        num_samples: How many examples there are.
    """

    def __init__(
        self,
        parts: Mapping[int, list[Part]],
        parameters: Sequence[Tensor],
        start_B: Tensor,
    ) -> None:
        self._parts = parts
        self._parameters = parameters
        self._start_B = start_B
        self.num_samples: int = len(start_B)

    def squared_norms(self, group_of: Sequence[int]) -> Float[Tensor, "G B"]:
        """Return the squared norm of every example's gradient, by group.

        It is infinite for an example whose loss is not finite.

        Args:
            group_of: The group of each parameter: 0, 1, ... without a gap.
        """
        norms = [self._start_B.clone() for _ in range(max(group_of, default=0) + 1)]
        for index, parts in self._parts.items():
            size = self._parameters[index].numel()
            added = joint_squared_norms(parts, self.num_samples, size)
            norms[group_of[index]] = norms[group_of[index]] + added
        return torch.stack(norms)

    def add_weighted_sum(
        self,
        factors_GB: Float[Tensor, "G B"],
        group_of: Sequence[int],
        sums: Sequence[Tensor],
    ) -> None:
        """Add every example's gradient, times its factor, to *sums* in place.

        Guarantees:
            * An example whose factor is 0 adds exactly nothing, also if its gradient
              is NaN or infinite.

        Args:
            factors_GB: What to multiply with, by group and example.
            group_of: The group of each parameter.
            sums: One tensor a parameter, in float32 or float64.
        """
        dropped_GB = factors_GB == 0
        any_dropped = dropped_GB.any(1).tolist()
        for index, parts in self._parts.items():
            group = group_of[index]
            for part in parts:
                kept = part.without(dropped_GB[group]) if any_dropped[group] else part
                kept.add_weighted_sum(factors_GB[group], sums[index])


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
        self._layouts_of: dict[Hashable, Sequence[Layout | None]] = {}
        self._warned: set[str] = set()

    def gradients(
        self, losses_B: Float[Tensor, " B"], parameters: Sequence[Tensor]
    ) -> PerSampleGradients:
        """Return the gradients of every loss with respect to *parameters*.

        Args:
            losses_B: One loss an example.
            parameters: Leaves of the graph that require gradients.

        Raises:
            SampleMixingError: If a loss depends on another example.
            UnsupportedOperationError: If an example is not finite where an operation
                without a rule would spread that to the others.
        """
        zeros_B = wide(losses_B.detach().new_zeros(len(losses_B)))
        # By an example's own loss alone, so that no other one can change it.
        start_B = zeros_B.masked_fill(~losses_B.detach().isfinite(), torch.inf)
        if losses_B.grad_fn is None or bool(start_B.isinf().all()):
            return PerSampleGradients({}, parameters, start_B)
        graph = walked(losses_B.grad_fn, parameters, num_samples=len(losses_B))
        if not graph.uses:
            return PerSampleGradients({}, parameters, start_B)
        sites = self._sites(losses_B, graph.uses, self._layouts(losses_B, graph))
        served = [(use, site) for use, site in sites if site is not None]
        slow = {id(p): p for use, site in sites if site is None for p in use.parameters}
        parts = _by_backward(losses_B, list(slow.values())) if slow else {}
        grads = (
            torch.autograd.grad(
                losses_B,
                [GradientEdge(use.node, 0) for use, _ in served],
                torch.ones_like(losses_B),
                allow_unused=True,
            )
            if served
            else ()
        )
        with torch.no_grad():
            for (use, site), grad in zip(served, grads, strict=True):
                for position, part in _parts(use, site, grad).items():
                    parameter = use.direct[position][0]
                    if id(parameter) not in slow:
                        parts.setdefault(id(parameter), []).append(part)
        index_of = {id(p): i for i, p in enumerate(parameters)}
        by_index = {index_of[key]: found for key, found in parts.items()}
        return PerSampleGradients(by_index, parameters, start_B)

    def _sites(
        self, losses_B: Tensor, uses: Sequence[Use], layouts: Sequence[Layout | None]
    ) -> list[tuple[Use, Site | None]]:
        """Return what the rules need of every use; None where none applies."""
        sites: list[tuple[Use, Site | None]] = []
        for use, layout in zip(uses, layouts, strict=True):
            if layout is None:  # Not known, of this batch: nothing to warn of.
                sites.append((use, None))
                continue
            site = _site(use, layout, len(losses_B))
            if site is None:
                self._warn_of(use)
            sites.append((use, site))
        return sites

    def _layouts(self, losses_B: Tensor, graph: Graph) -> Sequence[Layout | None]:
        """Return the layout of every use; None where this batch does not show it."""
        if len(losses_B) == 1:
            return [Layout(-1)] * len(graph.uses)  # Everything is the one example's.
        known = self._layouts_of.get(graph.shape)
        if known is not None:
            return known
        layouts, certain = probed(losses_B, graph.uses)
        if certain:
            self._layouts_of[graph.shape] = layouts
        return layouts

    def _warn_of(self, use: Use) -> None:
        if use.operation not in self._warned:
            self._warned.add(use.operation)
            shapes = ", ".join(str(tuple(p.shape)) for p in use.parameters)
            warnings.warn(
                f"no rule serves {use.operation} with parameters of shape {shapes}:"
                " their gradients are right, but found by a backward pass an example",
                stacklevel=6,
            )


def _site(use: Use, layout: Layout, num_samples: int) -> Site | None:
    """Return what a rule needs of a use, or None if none serves it."""
    rule = RULES.get(use.operation)
    if rule is None or use.derived:
        return None
    kept = {name: saved(use.node, name) for name in rule.reads}
    site = Site(kept, use.direct, layout, num_samples)
    return site if rule.applies(site) else None


def _parts(use: Use, site: Site, grad: Tensor | None) -> Mapping[int, Part]:
    if grad is None:
        return {}
    return RULES[use.operation].parts(site, grad)


def _by_backward(
    losses_B: Tensor, parameters: Sequence[Tensor]
) -> dict[int, list[Part]]:
    """Return whole gradients by one backward pass an example, several at a time."""
    _check_separable(losses_B, parameters)
    try:
        rows = _rows(losses_B, parameters, batched=True)
    except RuntimeError:  # An operation that torch.vmap cannot batch.
        rows = _rows(losses_B, parameters, batched=False)
    return {id(p): [Kept(grads)] for p, grads in zip(parameters, rows, strict=True)}


def _check_separable(losses_B: Tensor, parameters: Sequence[Tensor]) -> None:
    """Raise if 0 times what the graph holds is not 0.

    A backward pass for one example sends 0 to the others. Where one of them holds
    NaN or infinity, 0 times it is NaN, and that would be counted as the first one's.
    """
    found = torch.autograd.grad(
        losses_B,
        parameters,
        torch.zeros_like(losses_B),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    for parameter, grad in zip(parameters, found, strict=True):
        if len(losses_B) > 1 and not bool(grad.isfinite().all()):
            raise UnsupportedOperationError(
                f"NaN or infinity meets a parameter of shape {tuple(parameter.shape)}"
                " in an operation without a rule, or in every example,"
                " so that the other examples' gradients cannot be told from its own;"
                " clean the data before the forward pass, as by torch.nan_to_num,"
                " or use operations that have rules"
            )


def _rows(
    losses_B: Tensor, parameters: Sequence[Tensor], *, batched: bool
) -> list[Tensor]:
    one_hot_BB = torch.eye(len(losses_B), dtype=losses_B.dtype, device=losses_B.device)
    chunks = []
    for seeds in one_hot_BB.split(_ROWS_AT_ONCE) if batched else one_hot_BB:
        found = torch.autograd.grad(
            losses_B,
            parameters,
            seeds,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
            materialize_grads=True,
        )
        chunks.append([g if batched else g[None] for g in found])
    return [torch.cat(column) for column in zip(*chunks, strict=True)]
