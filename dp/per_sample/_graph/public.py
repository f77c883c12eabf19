"""Tensors that were declared public, and how they are recognised in a graph.

A constant (a fixed basis, a mask, the indices of a prompt) has no graph that would tell
it from private data, so it is public only if it was declared to be. A node keeps what
it needs for its backward: the declared tensor itself, a view of it, or a copy, which
is as public as the original if it is equal to it, or to what its dtype makes of it.
"""

from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor


__all__ = ("Declared", "PublicTensors")

# A tensor, or a function that computes some of parameters and of other such tensors.
Declared = Tensor | Callable[[], Iterable[Tensor]]


@final
class PublicTensors:
    """What may be computed with as if it were a number in the program.

    Args:
        declared: What was declared. It is read again at every step: a buffer that
            changes stays public, and functions are called.
    """

    def __init__(self, declared: Iterable[Declared] = ()) -> None:
        self._declared = tuple(declared)
        self._by_shape: dict[torch.Size, list[Tensor]] = {}
        self._storages: set[tuple[torch.device, int]] = set()
        self.refresh()

    def __bool__(self) -> bool:
        return bool(self._declared)

    @torch.no_grad()
    def refresh(self) -> None:
        """Read again what was declared, as it is at this step."""
        self._by_shape.clear()
        self._storages.clear()
        for declared in self._declared:
            tensors = [declared] if isinstance(declared, Tensor) else declared()
            for tensor in tensors:
                self._by_shape.setdefault(tensor.shape, []).append(tensor)
                self._storages.add(_storage(tensor))

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of them: a view, or a copy of any dtype."""
        if tensor.numel() and _storage(tensor) in self._storages:
            return True
        alike = self._by_shape.get(tensor.shape, ())
        return any(_is_copy(tensor, public) for public in alike)


def _storage(tensor: Tensor) -> tuple[torch.device, int]:
    """Return where the numbers of a tensor are; of a sparse one, where the tensor is."""
    if tensor.layout != torch.strided:
        return tensor.device, -id(tensor)
    return tensor.device, tensor.untyped_storage().data_ptr()


def _is_copy(tensor: Tensor, public: Tensor) -> bool:
    return (
        tensor.device == public.device
        and tensor.layout == public.layout
        # A cast that forgets more than digits has too many things in common with others.
        and torch.can_cast(public.dtype, tensor.dtype)
        and torch.equal(tensor, public.to(tensor.dtype))
    )
