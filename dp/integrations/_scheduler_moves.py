"""Learning-rate schedulers that were built on an optimizer before it was private."""

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR


__all__ = ("move_schedulers",)


def move_schedulers(scheduler: Any, *, private: Optimizer, inner: Optimizer) -> None:
    """Let a scheduler that was built on *inner* know *private* as its optimizer.

    Frameworks refuse a scheduler whose optimizer is not the one they were given.

    Args:
        scheduler: A scheduler, or one of several others.
        private: The private optimizer.
        inner: The optimizer that it wraps.
    """
    # A scheduler watches the steps of its optimizer by a patch that only another one
    # makes; a constant factor of 1 changes no rate.
    ConstantLR(private, factor=1.0)
    for each in _all_of(scheduler):
        if each.optimizer is inner:
            each.optimizer = private


def _all_of(scheduler: Any) -> Iterator[Any]:
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _all_of(part)
