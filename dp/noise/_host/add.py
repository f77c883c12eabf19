"""Add noise to tensors on the host: which thread draws what, under which key.

Nothing of this need be believed, nor of what it calls but :mod:`dp.noise._host.exact`:
elements that the operating system picks are recomputed in
:mod:`dp.noise._host.verification`.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dp import _tuning
from dp._keystream import Keystream
from dp.noise._chunks import in_chunks
from dp.noise._host.compiled_stage import kernel_for
from dp.noise._host.rounded import RoundedGaussian
from dp.noise._host.verification import Chunk
from dp.noise._host.workspace import borrow, give_back


__all__ = ("add_on_host",)


def add_on_host(
    sums: Sequence[Tensor], stddev: float, most_threads: int | None
) -> list[Chunk]:
    """Add noise that is drawn and rounded on the host, on as many threads as pay.

    Return how each chunk was noised.
    """
    kernel = kernel_for(sums)
    num_threads = most_threads or torch.get_num_threads()
    if kernel is None:  # Numpy's calls hold the interpreter's lock too often for more.
        num_threads = min(num_threads, _tuning.MOST_THREADS_IN_NUMPY)
    chunks = list(in_chunks(sums, num_threads=num_threads))
    num_threads = min(num_threads, len(chunks) // _tuning.CHUNKS_PER_THREAD)
    waiting = deque(chunks)  # Threads take from it in turn: cores are not alike.
    workspaces = [borrow() for _ in range(max(1, num_threads))]
    noises = [
        RoundedGaussian(
            stddev=stddev,
            keystream=Keystream("noise"),
            kernel=kernel,
            workspace=workspace,
        )
        for workspace in workspaces
    ]
    done: list[Chunk] = []
    if len(noises) == 1:
        _add_to_waiting(noises[0], waiting, done)
    else:
        with ThreadPoolExecutor(num_threads - 1) as pool:
            workers = [
                pool.submit(_add_to_waiting, n, waiting, done) for n in noises[1:]
            ]
            _add_to_waiting(noises[0], waiting, done)
            for worker in workers:
                worker.result()
    for workspace in workspaces:
        give_back(workspace)
    return done


def _add_to_waiting(
    noise: RoundedGaussian, waiting: deque[list[Tensor]], done: list[Chunk]
) -> None:
    """Add noise, under a key of this thread's own, to chunks while there are any."""
    while True:
        try:
            parts = waiting.popleft()
        except IndexError:
            return
        done.append(Chunk(parts, noise.keystream, noise.keystream.position))
        noise.add_(parts)
