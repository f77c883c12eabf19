"""Random words for a device, drawn on the host and copied there."""

from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np
import torch
from torch import Tensor

from dp import _tuning
from dp._keystream import Keystream


__all__ = ("HostWords", "pinned")


@final
class HostWords:
    """The keystreams of one call for one device, one per thread.

    Args:
        device: The destination of the words.
        pool: The threads to draw on. AES releases the GIL, so they run in parallel.
        num_threads: The number of threads.
    """

    def __init__(
        self, device: torch.device, *, pool: ThreadPoolExecutor, num_threads: int
    ) -> None:
        self._device = device
        self._pool = pool
        self._num_threads = num_threads
        self._keystreams = [Keystream("noise")]

    def draw(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return *count* integers, uniform over all values of *dtype*.

        The copy may be in flight when this returns. Torch's caching allocator does not
        reuse the pinned memory before the copy is done.
        """
        words = pinned(count, dtype, self._device)
        buffer = words.numpy().view(np.uint8)
        share = max(_tuning.LEAST_KEYSTREAM_SHARE, -(-len(buffer) // self._num_threads))
        parts = [buffer[i : i + share] for i in range(0, len(buffer), share)]
        while len(self._keystreams) < len(parts):
            self._keystreams.append(Keystream("noise"))
        if len(parts) == 1:
            self._keystreams[0].fill(buffer)
        else:
            list(self._pool.map(Keystream.fill, self._keystreams, parts))
        return words.to(self._device, non_blocking=True)


def pinned(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return host memory from which copies to *device* can be asynchronous."""
    is_cuda = device.type == "cuda"
    return torch.empty(count, dtype=dtype, device="cpu", pin_memory=is_cuda)
