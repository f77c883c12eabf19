"""Per-example gradients from one backward pass over an ordinary autograd graph.

The model is not touched: no hooks, no wrapped modules, no replaced layers. The graph
from the losses back to the parameters says where each parameter is used; autograd is
asked for the gradients at these places only, so it never computes the parameters'
own. What it kept for its backward says the rest.

Shapes: ``B`` examples, ``G`` groups of parameters.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.exceptions import SampleMixingError
from dp.per_sample._layout import Layout, find_layout
from dp.per_sample._parts import Kept, Part, joint_squared_norms, wide
from dp.per_sample._rules import RULES, Site
from dp.per_sample._walk import Use, find_uses, saved


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
        like_B: Tensor,
    ) -> None:
        self._parts = parts
        self._parameters = parameters
        self._norms_like_B = like_B
        self.num_samples: int = len(like_B)

    def squared_norms(self, group_of: Sequence[int]) -> Float[Tensor, "G B"]:
        """Return the squared norm of every example's gradient, by group.

        Args:
            group_of: The group of each parameter: 0, 1, ... without a gap.
        """
        zeros_B = self._norms_like_B
        norms = [zeros_B.clone() for _ in range(max(group_of, default=0) + 1)]
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
        self._plans: dict[tuple[object, ...], tuple[Layout, ...]] = {}
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
        """
        zeros_B = wide(losses_B.detach().new_zeros(len(losses_B)))
        if losses_B.grad_fn is None or not len(losses_B):
            return PerSampleGradients({}, parameters, zeros_B)
        uses = find_uses(losses_B.grad_fn, parameters)
        sites = self._sites(losses_B, uses, self._layouts(losses_B, uses))
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
        return PerSampleGradients(by_index, parameters, zeros_B)

    def _sites(
        self, losses_B: Tensor, uses: Sequence[Use], layouts: Sequence[Layout]
    ) -> list[tuple[Use, Site | None]]:
        """Return what the rules need of every use; None where none applies."""
        sites = []
        for use, layout in zip(uses, layouts, strict=True):
            rule = RULES.get(use.operation)
            site = None
            if rule is not None and not use.derived:
                kept = {name: saved(use.node, name) for name in rule.reads}
                site = Site(kept, use.direct, layout, len(losses_B))
                site = site if rule.applies(site) else None
            if site is None:
                self._warn_of(use)
            sites.append((use, site))
        return sites

    def _layouts(self, losses_B: Tensor, uses: Sequence[Use]) -> Sequence[Layout]:
        if len(losses_B) == 1:
            return [Layout(-1)] * len(uses)  # Everything is the one example's.
        key = tuple((use.operation, *map(id, use.parameters)) for use in uses)
        layouts = self._plans.get(key)
        if layouts is None:
            layouts, clean = _probed(losses_B, uses)
            if clean:
                self._plans[key] = layouts
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


def _parts(use: Use, site: Site, grad: Tensor | None) -> Mapping[int, Part]:
    if grad is None:
        return {}
    return RULES[use.operation].parts(site, grad)


def _by_backward(
    losses_B: Tensor, parameters: Sequence[Tensor]
) -> dict[int, list[Part]]:
    """Return whole gradients by one backward pass an example, several at a time."""
    try:
        rows = _rows(losses_B, parameters, batched=True)
    except RuntimeError:  # An operation that torch.vmap cannot batch.
        rows = _rows(losses_B, parameters, batched=False)
    return {id(p): [Kept(grads)] for p, grads in zip(parameters, rows, strict=True)}


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


def _probed(losses_B: Tensor, uses: Sequence[Use]) -> tuple[tuple[Layout, ...], bool]:
    """Send NaN back from some examples' losses, and see whose rows it reaches.

    Returns:
        The layout of every use, and whether no NaN was there before.
    """
    seeded_B = _scattered(len(losses_B), losses_B.device)
    nobody_B = torch.zeros_like(seeded_B)
    reached = [
        _nan_where(losses_B, uses, seeds_B)
        for seeds_B in (nobody_B, seeded_B, ~seeded_B)
    ]
    layouts = []
    for use, before, *after in zip(uses, *reached, strict=True):
        probes = [
            (a & ~before, s) for a, s in zip(after, (seeded_B, ~seeded_B), strict=True)
        ]
        layout = find_layout(probes)
        if layout is None:
            raise _mixing(use)
        layouts.append(layout)
    return tuple(layouts), not any(before.any() for before in reached[0])


def _nan_where(losses_B: Tensor, uses: Sequence[Use], seeded_B: Tensor) -> list[Tensor]:
    grads = torch.autograd.grad(
        losses_B,
        [GradientEdge(use.node, 0) for use in uses],
        torch.zeros_like(losses_B).masked_fill(seeded_B, torch.nan),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return [grad.isnan() for grad in grads]


def _scattered(num_samples: int, device: torch.device) -> Tensor:
    """Return about every other example, without a period and without a generator."""
    index_B = torch.arange(num_samples, device=device)
    seeded_B = (index_B * 2654435761 >> 7) & 1 == 1  # Knuth's multiplicative hash.
    seeded_B[0], seeded_B[-1] = True, False
    return seeded_B


def _mixing(use: Use) -> SampleMixingError:
    shapes = ", ".join(str(tuple(p.shape)) for p in use.parameters)
    return SampleMixingError(
        f"examples are mixed on the way from the losses to {use.operation} with"
        f" parameters of shape {shapes}: one example's loss depends on another's data."
        " Use GroupNorm or LayerNorm for BatchNorm, and losses with reduction='none'"
        " that are not divided by anything of the whole batch"
    )
