"""Tensors that were declared public, and how they are recognised in a graph.

A constant (a fixed basis, a mask, the indices of a prompt) has no graph that would tell
it from private data, so it is public only if it was declared to be. A node keeps what
it needs for its backward: the declared tensor itself, a view of it, or a copy, which
is as public as the original if it is equal to it, or to what its dtype makes of it.
"""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor


__all__ = ("PublicTensors",)


@final
class PublicTensors:
    """What may be computed with as if it were a number in the program.

    Args:
        tensors: What was declared. They are read again at every step: a buffer that
            changes stays public.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._tensors = tuple(tensors)

    def __bool__(self) -> bool:
        return bool(self._tensors)

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of them: a view, or a copy of any dtype."""
        return any(_is_of(tensor, public) for public in self._tensors)


def _is_of(tensor: Tensor, public: Tensor) -> bool:
    if tensor.device != public.device:
        return False
    if tensor.layout == torch.strided == public.layout:
        storages = (one.untyped_storage().data_ptr() for one in (tensor, public))
        if len({*storages}) == 1:
            return True
    return (
        tensor.shape == public.shape
        and tensor.layout == public.layout
        # A cast that forgets more than digits has too many things in common with others.
        and torch.can_cast(public.dtype, tensor.dtype)
        and torch.equal(tensor, public.to(tensor.dtype))
    )
