"""Find out which examples' losses reach which rows of the tensors inside a model.

Nothing is read off shapes alone: two axes may have as many entries as the batch. NaN
spreads through a backward pass wherever any gradient may flow, also where it happens
to be zero; what it reaches shows whose row is whose, and whether examples are mixed.

Shapes: ``B`` examples.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.exceptions import SampleMixingError
from dp.per_sample._layout import Layout, find_layouts
from dp.per_sample._walk import Use, output_shape


__all__ = ("probed",)

# Of multiplicative hashes (the first is Knuth's). More than the first are used only
# if NaN in the data leaves several layouts that fit.
_HASH_FACTORS: Final = (2654435761, 2246822519, 3266489917, 668265263)


def probed(losses_B: Tensor, uses: Sequence[Use]) -> tuple[list[Layout | None], bool]:
    """Send NaN back from some examples' losses, and see whose rows it reaches.

    Where NaN or infinity was there before, several layouts may fit what is seen. None
    is then chosen: a wrong one would mix examples.

    Returns:
        The layout of every use, and whether it holds for other batches too: where no
        gradient flowed, any layout serves, for this one.
    """
    index_B = torch.arange(len(losses_B), device=losses_B.device)
    before = _nan_where(losses_B, uses, torch.zeros_like(index_B, dtype=torch.bool))
    probes: list[list[tuple[Tensor, Tensor]]] = [[] for _ in uses]
    found: list[list[Layout]] = []
    for factor in _HASH_FACTORS:
        seeded_B = _scattered(index_B, factor)
        for seeds_B in (seeded_B, ~seeded_B):
            after = _nan_where(losses_B, uses, seeds_B)
            for seen, a, b in zip(probes, after, before, strict=True):
                seen.append((a & ~b, seeds_B))
        found = [find_layouts(seen) for seen in probes]
        if all(
            len(layouts) <= 1 or not _flows(seen)
            for layouts, seen in zip(found, probes, strict=True)
        ):
            break
    for use, layouts in zip(uses, found, strict=True):
        if not layouts:
            raise _mixing(use)
    silent = [
        not _flows(seen) and not b.any() for seen, b in zip(probes, before, strict=True)
    ]
    chosen = [
        layouts[0] if len(layouts) == 1 or nothing else None
        for layouts, nothing in zip(found, silent, strict=True)
    ]
    return chosen, all(len(layouts) == 1 for layouts in found)


def _flows(probes: Sequence[tuple[Tensor, Tensor]]) -> bool:
    return any(bool(is_nan.any()) for is_nan, _ in probes)


def _nan_where(losses_B: Tensor, uses: Sequence[Use], seeded_B: Tensor) -> list[Tensor]:
    grads = torch.autograd.grad(
        losses_B,
        [GradientEdge(use.node, 0) for use in uses],
        torch.zeros_like(losses_B).masked_fill(seeded_B, torch.nan),
        retain_graph=True,
        allow_unused=True,
    )
    return [
        seeded_B.new_zeros(output_shape(use.node)) if grad is None else grad.isnan()
        for use, grad in zip(uses, grads, strict=True)
    ]


def _scattered(index_B: Tensor, factor: int) -> Tensor:
    """Return about every other example, without a period and without a generator."""
    seeded_B = (index_B * factor >> 7) & 1 == 1
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
