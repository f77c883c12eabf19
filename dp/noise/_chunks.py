"""Many tensors of any size and layout, as a few vectors of one size.

Noise is drawn a chunk at a time: small tensors share a chunk, large ones are split,
so that neither Python nor temporaries grow with the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dp import _tuning


__all__ = ("as_vector", "in_chunks")


def in_chunks(
    tensors: Sequence[Tensor], *, num_threads: int = 1
) -> Iterator[list[Tensor]]:
    """Yield views that cover every tensor once, in lists of at most one chunk.

    All views of a list have one dtype and device. Elements may come in any order.
    Chunks on the host are short enough for *num_threads* to get two each.
    """
    share = sum(t.numel() for t in tensors if t.is_cpu) // (2 * num_threads)
    cpu_chunk = min(_tuning.HOST_CHUNK, max(_tuning.SHORT_HOST_CHUNK, share + 1))
    waiting: dict[tuple[torch.dtype, torch.device], _Waiting] = {}
    for tensor in tensors:
        chunk = (
            cpu_chunk
            if tensor.is_cpu
            else _tuning.DEVICE_CHUNK_BYTES // tensor.itemsize
        )
        queue = waiting.setdefault((tensor.dtype, tensor.device), _Waiting())
        for part, size in _split(tensor, chunk):
            if queue.num_elements + size > chunk:
                yield queue.parts
                queue.parts, queue.num_elements = [], 0
            queue.parts.append(part)
            queue.num_elements += size
    yield from (queue.parts for queue in waiting.values() if queue.parts)


@dataclass(slots=True)
class _Waiting:
    """The views of a list that is not full yet."""

    parts: list[Tensor] = field(default_factory=list)
    num_elements: int = 0


@contextmanager
def as_vector(parts: list[Tensor], device: torch.device) -> Iterator[Tensor]:
    """One contiguous vector on *device*; on exit, *parts* have its elements."""
    first = parts[0].detach()
    if first.device == device and (size := _adjoining(parts)) is not None:
        yield first.as_strided((size,), (1,))
        return
    flat = [part if part.dim() == 1 else part.reshape(-1) for part in parts]
    vector = torch.cat(flat).to(device)
    yield vector
    sizes = [part.numel() for part in parts]
    pieces = torch.split_with_sizes(vector.to(first.device), sizes)
    torch.ops.aten._foreach_copy_.default(  # As torch.optim does: one call for thousands.
        parts,
        [
            piece if part.dim() == 1 else piece.view_as(part)
            for piece, part in zip(pieces, parts, strict=True)
        ],
    )


def _adjoining(parts: Sequence[Tensor]) -> int | None:
    """Return the elements of parts that lie behind one another; None if they do not."""
    first = parts[0]
    start = end = first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or not part.is_contiguous():
            return None
        end += part.nbytes
    memory = first.untyped_storage()  # What lies there is the same memory.
    is_within = end <= memory.data_ptr() + memory.nbytes()
    return (end - start) // first.itemsize if is_within else None


def _split(tensor: Tensor, chunk: int) -> Iterator[tuple[Tensor, int]]:
    """Views of at most a chunk each that cover the tensor once, and their sizes."""
    size = tensor.numel()
    if size <= chunk:
        yield tensor, size
        return
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(order)  # Noise is alike in every order of the axes.
    if dense.is_contiguous():
        yield from ((p, len(p)) for p in torch.split(dense.view(-1), chunk))
        return
    rows = max(1, chunk * tensor.shape[0] // size)
    for some_rows in torch.split(tensor, rows):
        yield from _split(some_rows.squeeze(0), chunk)
