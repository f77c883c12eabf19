"""Uniform integers for a device, drawn on the host and sent there."""

from concurrent.futures import ThreadPoolExecutor
from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from dp._keystream import Keystream


__all__ = ("HostWords", "pinned")

_LEAST_SHARE: Final = 1 << 20  # Bytes that are worth a thread: 0.2 ms.


@final
class HostWords:
    """The keystreams of one call for one device, one for each thread.

    Args:
        device: Where the words are wanted.
        pool: Threads to draw on; AES gives them the processor.
        num_threads: How many of them.
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

        The copy is in flight when this returns. Torch gives the pinned memory to no
        one else before it has arrived.
        """
        words = pinned(count, dtype, self._device)
        buffer = words.numpy().view(np.uint8)
        share = max(_LEAST_SHARE, -(-len(buffer) // self._num_threads))
        parts = [buffer[i : i + share] for i in range(0, len(buffer), share)]
        while len(self._keystreams) < len(parts):
            self._keystreams.append(Keystream("noise"))
        if len(parts) == 1:
            self._keystreams[0].fill(buffer)
        else:
            list(self._pool.map(Keystream.fill, self._keystreams, parts))
        return words.to(self._device, non_blocking=True)


def pinned(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory of the host, from which copies to *device* need no waiting."""
    is_cuda = device.type == "cuda"
    return torch.empty(count, dtype=dtype, device="cpu", pin_memory=is_cuda)
