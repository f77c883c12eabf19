"""Training on the processes that torchrun started, if it started any."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from dp._ranks import rank_and_size


__all__ = ("add_up_gradients", "from_first", "make_alike", "process_group")

_Made = TypeVar("_Made")


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the other processes meanwhile; yield whether this one is to speak."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    distributed.init_process_group("gloo")  # These models train on the CPU.
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


@torch.no_grad()
def make_alike(model: nn.Module) -> None:
    """Give every process the weights of the first one."""
    if rank_and_size()[1] > 1:
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, 0)


def add_up_gradients(model: nn.Module) -> None:
    """Give every process the sum of all processes' gradients."""
    if rank_and_size()[1] > 1:
        for parameter in model.parameters():
            distributed.all_reduce(parameter.grad)


def from_first(make: Callable[[], _Made]) -> _Made:
    """Return what *make* returns in the first process, which alone calls it."""
    rank, size = rank_and_size()
    if size == 1:
        return make()
    made: list[Any] = [make() if rank == 0 else None]
    distributed.broadcast_object_list(made, src=0)
    result: _Made = made[0]
    return result
