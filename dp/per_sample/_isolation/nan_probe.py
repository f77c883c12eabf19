"""Find out which examples' losses reach which rows of the tensors inside a model.

Nothing is read off shapes alone: two axes may have as many entries as the batch. NaN
spreads through a backward pass wherever any gradient may flow, also where it happens
to be zero; what it reaches shows whose row is whose, and whether examples are mixed.

Shapes: ``B`` examples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dp.per_sample._graph.nodes import output_shape
from dp.per_sample._graph.uses import Use
from dp.per_sample._isolation.batch_layout import Layout, candidates, fitting, reached


__all__ = ("Place", "owned", "probed")

_T = TypeVar("_T")
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
    B = len(losses_B)
    index_B = torch.arange(B, device=losses_B.device)
    layouts = [[*candidates(output_shape(use.node, i), B)] for use, i in places]
    nobody_B = torch.zeros_like(index_B, dtype=torch.bool)
    before = _nan_where(losses_B, places, nobody_B, _if_any)

    def examples(place: int, is_nan: Tensor) -> Tensor:
        old = before[place]
        is_new = is_nan if old is None else is_nan & ~old
        return reached(layouts[place], is_new, B).to(losses_B.device)

    probes: list[list[tuple[Tensor, Tensor]]] = [[] for _ in places]
    found: list[list[Layout]] = []
    for factor in _HASH_FACTORS:
        seeded_B = _scattered(index_B, factor)
        for seeds_B in (seeded_B, ~seeded_B):
            after = _nan_where(losses_B, places, seeds_B, examples)
            for seen, some in zip(probes, after, strict=True):
                if some is not None:
                    seen.append((some, seeds_B))
        found = [fitting(*pair) for pair in zip(layouts, probes, strict=True)]
        if all(
            len(fit) <= 1 or not _flows(seen)
            for fit, seen in zip(found, probes, strict=True)
        ):
            break
    silent = [
        not _flows(seen) and old is None
        for seen, old in zip(probes, before, strict=True)
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
            _nan_where(losses_B, [place], some, _whole) for some in (seeds_B, ~seeds_B)
        )
        if one is not None and other is not None and bool((one & other).any()):
            return False
    return True


def _flows(probes: Sequence[tuple[Tensor, Tensor]]) -> bool:
    return any(bool(reached_LB.any()) for reached_LB, _ in probes)


def _nan_where(
    losses_B: Tensor,
    places: Sequence[Place],
    seeded_B: Tensor,
    told: Callable[[int, Tensor], _T],
) -> list[_T | None]:
    """Return what is told of where NaN arrives, by place; None if no gradient does.

    One gradient is held at a time, and no mask but what is told.
    """
    seen: dict[int, _T] = {}
    last = [i for i, (use, _) in enumerate(places) if use.is_last] or [0]
    handles = [
        use.node.register_prehook(partial(_note, seen, told, i, output))
        for i, (use, output) in enumerate(places)
        if i not in last
    ]
    try:
        grads = torch.autograd.grad(
            losses_B,
            [GradientEdge(places[i][0].node, places[i][1]) for i in last],
            torch.zeros_like(losses_B).masked_fill(seeded_B, torch.nan),
            retain_graph=True,
            allow_unused=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    for i, grad in zip(last, grads, strict=True):
        _note(seen, told, i, 0, [grad])
    return [seen.get(i) for i in range(len(places))]


def _note(
    seen: dict[int, _T],
    told: Callable[[int, Tensor], _T],
    place: int,
    output: int,
    grads: Sequence[Tensor | None],
) -> None:
    grad = grads[output]
    if grad is not None:
        seen[place] = told(place, grad.isnan())


def _if_any(_place: int, is_nan: Tensor) -> Tensor | None:
    return is_nan if bool(is_nan.any()) else None


def _whole(_place: int, is_nan: Tensor) -> Tensor:
    return is_nan


def _scattered(index_B: Tensor, factor: int) -> Tensor:
    """Return about every other example, without a period and without a generator."""
    seeded_B = (index_B * factor >> 7) & 1 == 1
    seeded_B[0], seeded_B[-1] = True, False
    return seeded_B
