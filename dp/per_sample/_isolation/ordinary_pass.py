"""Torch's own backward pass, to which nothing of this package contributes.

Shapes: none are fixed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


__all__ = ("ordinary_sums", "without_hooks")


def ordinary_sums(
    losses: Tensor,
    parameters: Sequence[Tensor],
    seeds: Tensor,
    *,
    keep_graph: bool = True,
) -> list[Tensor]:
    """Run torch's own backward pass.

    Hooks on the parameters themselves, which change what lands in ``p.grad``, see
    nothing of it: no hook sees the private gradients either.

    Args:
        losses: Where it starts.
        parameters: What the gradients are of.
        seeds: What each loss is multiplied with.
        keep_graph: Whether another pass will follow.
    """
    with without_hooks(parameters):
        sums = torch.autograd.grad(
            losses, [*parameters], seeds, retain_graph=keep_graph, allow_unused=True
        )
    return [
        torch.zeros_like(parameter) if total is None else total
        for parameter, total in zip(parameters, sums, strict=True)
    ]


@contextmanager
def without_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Leave out the hooks on parameters, which see what lands in ``p.grad``."""
    hooks = [
        (registered, dict(registered))
        for parameter in parameters
        if (registered := parameter._backward_hooks)  # noqa: SLF001 -- no public list
    ]
    for registered, _ in hooks:
        registered.clear()
    try:
        yield
    finally:
        for registered, kept in hooks:
            registered.update(kept)
