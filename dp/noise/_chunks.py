"""Pack tensors of any size and layout into a few vectors of bounded size.

Noise is drawn one chunk at a time: small tensors share a chunk and large ones are split,
so that neither the number of calls nor temporary memory grows with the model.
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
    """Yield lists of views, at most a chunk each, that together cover every element once.

    The views of a list share a dtype and a device. Elements may come in any order: noise
    is independent and identically distributed. Chunks on the host are short enough for
    each of *num_threads* threads to get two.
    """
    host_chunk = _tuning.HOST_CHUNK
    if num_threads > 1:
        # Example: 4 million elements on 2 threads have chunks of a million, so four of
        # them.
        share = sum(map(Tensor.numel, tensors)) // (2 * num_threads)
        host_chunk = min(host_chunk, max(_tuning.SHORT_HOST_CHUNK, share + 1))
    waiting: dict[object, _Waiting] = {}
    for tensor in tensors:  # Often thousands of small ones: little is done for each.
        kind = tensor.dtype if tensor.is_cpu else (tensor.dtype, tensor.device)
        queue = waiting.get(kind)
        if queue is None:
            queue = waiting[kind] = _Waiting(
                host_chunk
                if tensor.is_cpu
                else _tuning.DEVICE_CHUNK_BYTES // tensor.itemsize
            )
        size = tensor.numel()
        if queue.num_elements + size <= queue.chunk:
            queue.parts.append(tensor)
            queue.num_elements += size
            continue
        for part, size in _split(tensor, queue.chunk):
            if queue.num_elements + size > queue.chunk:
                yield queue.parts
                queue.parts, queue.num_elements = [], 0
            queue.parts.append(part)
            queue.num_elements += size
    yield from (queue.parts for queue in waiting.values() if queue.parts)


@dataclass(slots=True)
class _Waiting:
    """A list of views that is not full yet."""

    chunk: int
    parts: list[Tensor] = field(default_factory=list)
    num_elements: int = 0


@contextmanager
def as_vector(parts: list[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield *parts* as one contiguous vector on *device*; copy it back on exit."""
    first = parts[0].detach()
    # Sums that lie behind one another in one buffer are that buffer: nothing is copied.
    if first.device == device and (size := _adjoining(parts)) is not None:
        yield first.as_strided((size,), (1,))
        return
    flat = [part if part.dim() == 1 else part.reshape(-1) for part in parts]
    vector = torch.cat(flat).to(device)
    yield vector
    sizes = [part.numel() for part in parts]
    pieces = torch.split_with_sizes(vector.to(first.device), sizes)
    torch.ops.aten._foreach_copy_.default(  # One call for all tensors, as in torch.optim.
        parts,
        [
            piece if part.dim() == 1 else piece.view_as(part)
            for piece, part in zip(pieces, parts, strict=True)
        ],
    )


def _adjoining(parts: Sequence[Tensor]) -> int | None:
    """Return the total size of *parts* if they are adjacent in memory, or else None."""
    first = parts[0]
    start = end = first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or not part.is_contiguous():
            return None
        end += part.nbytes
    # Two allocations may be neighbours by chance; a view must not cross from one into the
    # other.
    memory = first.untyped_storage()
    is_within = end <= memory.data_ptr() + memory.nbytes()
    return (end - start) // first.itemsize if is_within else None


def _split(tensor: Tensor, chunk: int) -> Iterator[tuple[Tensor, int]]:
    """Yield views of at most a chunk each that cover *tensor* once, and their sizes."""
    size = tensor.numel()
    if size <= chunk:
        yield tensor, size
        return
    # A transposed matrix is dense in another order of its axes: one vector without a
    # copy.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(order)  # Noise has the same law in every order of the axes.
    if dense.is_contiguous():
        yield from ((p, len(p)) for p in torch.split(dense.view(-1), chunk))
        return
    rows = max(1, chunk * tensor.shape[0] // size)
    for block in torch.split(tensor, rows):
        yield from _split(block.squeeze(0), chunk)
