"""Many tensors of any size and layout, as a few vectors of one size.

Noise is drawn a chunk at a time: small tensors share a chunk, large ones are split,
so that neither Python nor temporaries grow with the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor


__all__ = ("as_vector", "in_chunks")

_CPU_CHUNK: Final = 1 << 17  # Stays in cache.
_DEVICE_CHUNK: Final = 1 << 22  # Worth the launches.


def in_chunks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield views that cover every tensor once, in lists of at most one chunk.

    All views of a list have one dtype and device. Elements may come in any order.
    """
    waiting: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        chunk = _CPU_CHUNK if tensor.device.type == "cpu" else _DEVICE_CHUNK
        parts = waiting.setdefault((tensor.dtype, tensor.device), [])
        for part in _split(tensor, chunk):
            if _num_elements(parts) + part.numel() > chunk:
                yield parts.copy()
                parts.clear()
            parts.append(part)
    yield from filter(None, waiting.values())


@contextmanager
def as_vector(parts: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """One contiguous vector of even length on *device*; on exit, *parts* have it."""
    num_elements = _num_elements(parts)
    first = parts[0].detach()
    if (
        len(parts) == 1
        and num_elements % 2 == 0
        and first.is_contiguous()
        and first.device == device
    ):
        yield first.view(-1)
        return
    padding = first.new_zeros(num_elements % 2)
    vector = torch.cat([*(part.reshape(-1) for part in parts), padding]).to(device)
    yield vector
    start = 0
    for part in parts:
        part.copy_(vector[start : start + part.numel()].view(part.shape))
        start += part.numel()


def _num_elements(parts: Sequence[Tensor]) -> int:
    return sum(part.numel() for part in parts)


def _split(tensor: Tensor, chunk: int) -> Iterator[Tensor]:
    """Views of at most a chunk each that cover the tensor once."""
    if tensor.numel() <= chunk:
        yield tensor
        return
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(order)  # Noise is alike in every order of the axes.
    if dense.is_contiguous():
        yield from torch.split(dense.view(-1), chunk)
        return
    rows = max(1, chunk * tensor.shape[0] // tensor.numel())
    for some_rows in torch.split(tensor, rows):
        yield from _split(some_rows.squeeze(0), chunk)
