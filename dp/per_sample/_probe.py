"""Find out which examples' losses reach which rows of the tensors inside a model.

Nothing is read off shapes alone: two axes may have as many entries as the batch. NaN
spreads through a backward pass wherever any gradient may flow, also where it happens
to be zero; what it reaches shows whose row is whose, and whether examples are mixed.

Shapes: ``B`` examples.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.per_sample._graph import Use
from dp.per_sample._layout import Layout, find_layouts
from dp.per_sample._nodes import output_shape


__all__ = ("Place", "owned", "probed")

Place = tuple[Use, int]  # A use and one of its outputs.

# Of multiplicative hashes (the first is Knuth's). More than the first are used only
# if NaN in the data leaves several layouts that fit.
_HASH_FACTORS: Final = (2654435761, 2246822519, 3266489917, 668265263)


def probed(
    losses_B: Tensor, places: Sequence[Place]
) -> tuple[list[list[Layout]], list[bool]]:
    """Send NaN back from some examples' losses, and see whose rows it reaches.

    Where NaN or infinity was there before, several layouts may fit what is seen.

    Returns:
        By place, every layout that fits, and whether no gradient flowed at all, so
        that any of them serves, for this batch.
    """
    index_B = torch.arange(len(losses_B), device=losses_B.device)
    before = _nan_where(losses_B, places, torch.zeros_like(index_B, dtype=torch.bool))
    probes: list[list[tuple[Tensor, Tensor]]] = [[] for _ in places]
    found: list[list[Layout]] = []
    for factor in _HASH_FACTORS:
        seeded_B = _scattered(index_B, factor)
        for seeds_B in (seeded_B, ~seeded_B):
            after = _nan_where(losses_B, places, seeds_B)
            for seen, a, b in zip(probes, after, before, strict=True):
                seen.append((a & ~b, seeds_B))
        found = [find_layouts(seen) for seen in probes]
        if all(
            len(layouts) <= 1 or not _flows(seen)
            for layouts, seen in zip(found, probes, strict=True)
        ):
            break
    silent = [
        not _flows(seen) and not bool(b.any())
        for seen, b in zip(probes, before, strict=True)
    ]
    return found, silent


def owned(losses_B: Tensor, place: Place) -> bool:
    """Whether every element belongs to one example at most, whichever that is.

    Any two examples differ in a bit of their numbers. What is reached from examples
    that have the bit and from some that have not belongs to two. That no element does
    is not enough: at another use, the same element may be another example's.
    """
    index_B = torch.arange(len(losses_B), device=losses_B.device)
    for bit in range((len(losses_B) - 1).bit_length()):
        seeds_B = (index_B >> bit) & 1 == 1
        (one,), (other,) = (
            _nan_where(losses_B, [place], some) for some in (seeds_B, ~seeds_B)
        )
        if bool((one & other).any()):
            return False
    return True


def _flows(probes: Sequence[tuple[Tensor, Tensor]]) -> bool:
    return any(bool(is_nan.any()) for is_nan, _ in probes)


def _nan_where(
    losses_B: Tensor, places: Sequence[Place], seeded_B: Tensor
) -> list[Tensor]:
    """Return where NaN arrives, without holding every gradient at a time."""
    seen: dict[tuple[int, int], Tensor] = {}
    uses = {id(use): use for use, _ in places}.values()
    handles = [
        use.node.register_prehook(partial(_note, seen, use))
        for use in uses
        if not use.is_last
    ]
    last = [(use, output) for use, output in places if use.is_last]
    try:
        grads = torch.autograd.grad(
            losses_B,
            [GradientEdge(use.node, output) for use, output in last],
            torch.zeros_like(losses_B).masked_fill(seeded_B, torch.nan),
            retain_graph=True,
            allow_unused=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    for (use, output), grad in zip(last, grads, strict=True):
        if grad is not None:
            seen[id(use), output] = grad.isnan()
    return [
        seen[id(use), output]
        if (id(use), output) in seen
        else seeded_B.new_zeros(output_shape(use.node, output))
        for use, output in places
    ]


def _note(
    seen: dict[tuple[int, int], Tensor], use: Use, grads: Sequence[Tensor | None]
) -> None:
    for output in use.outputs:
        grad = grads[output]
        if grad is not None:
            seen[id(use), output] = grad.isnan()


def _scattered(index_B: Tensor, factor: int) -> Tensor:
    """Return about every other example, without a period and without a generator."""
    seeded_B = (index_B * factor >> 7) & 1 == 1
    seeded_B[0], seeded_B[-1] = True, False
    return seeded_B
