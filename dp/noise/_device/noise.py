"""The exact sum of a tensor and Gaussian noise, rounded to a lattice on a GPU.

This is :class:`dp.noise._host.rounded.RoundedGaussian` for devices that have float64. The
argument for exactness is given in :mod:`dp.noise._host.lattice`; the docstrings of
:mod:`dp.noise._device.float32_stage` and :mod:`dp.noise._device.float64_stage` state the
differences. With Triton both stages and the generator are kernels; without it they are
torch operations.

Shapes: ``N`` elements of a vector, ``C`` candidates that float32 left undecided.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import final

import torch
from torch import Tensor

from dp import _tuning
from dp.noise._chunks import as_vector
from dp.noise._device.chacha import ChaChaWords, kernel_on
from dp.noise._device.float32_stage import (
    FirstStage,
    Lattice,
    TorchFloat32,
    TritonFloat32,
    Undecided,
    Words,
    rounding_kernel_on,
)
from dp.noise._device.float64_stage import (
    LastStage,
    TorchFloat64,
    TritonFloat64,
    last_resort,
    last_stage_on,
)
from dp.noise._device.host_words import HostWords
from dp.noise._host.exact import REST_BITS


__all__ = ("OnDevice", "add_rounded")


def add_rounded(chunks: Sequence[list[Tensor]], stddev: float) -> None:
    """Add rounded noise to chunks of tensors, each on its own device."""
    num_threads = torch.get_num_threads()
    noises: dict[torch.device, OnDevice] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        for parts in chunks:
            device = parts[0].device
            # One key for each device and call.
            if device not in noises:
                noises[device] = _noise_on(device, stddev, pool, num_threads)
            with as_vector(parts, device) as x:
                noises[device].add_(x)


def _noise_on(
    device: torch.device, stddev: float, pool: ThreadPoolExecutor, num_threads: int
) -> "OnDevice":
    """Combine the verified kernels of *device* with torch operations for the rest."""
    lattice = Lattice.on(device, stddev)
    last: LastStage = TorchFloat64(lattice)
    write_blocks = kernel_on(device)
    if write_blocks is None:
        from_host = HostWords(device, pool=pool, num_threads=num_threads)
        return OnDevice(lattice, from_host, TorchFloat32(lattice, from_host), last)
    # Each kernel that cannot be used is replaced by torch operations with the same
    # results, so that any mixture of them is right.
    words = ChaChaWords(device, write_blocks)
    kernels = last_stage_on(device)
    if kernels is not None:
        last = TritonFloat64(lattice, kernels)
    kernel = rounding_kernel_on(device, write_blocks)
    if kernel is None:
        return OnDevice(lattice, words, TorchFloat32(lattice, words), last)
    return OnDevice(lattice, words, TritonFloat32(lattice, words, kernel), last)


@final
class OnDevice:
    """The noise of one call on one device.

    Args:
        lattice: The lattice of results, with the standard deviation.
        words: The source of random bits.
        first_stage: Decides most elements, in float32 and with 16 bits of its own.
        last_stage: Decides the others, in float64 and with 64 more bits.
    """

    def __init__(
        self,
        lattice: Lattice,
        words: Words,
        first_stage: FirstStage,
        last_stage: LastStage,
    ) -> None:
        self._lattice = lattice
        self._words = words
        self._first_stage = first_stage
        self._last_stage = last_stage

    def add_(self, x_N: Tensor) -> None:
        """Add noise to a contiguous vector, in float32 or float64."""
        for part_N in x_N.split(self._first_stage.longest(x_N.dtype)):
            left = self._first_stage.round_(part_N)
            if not len(left.x):
                continue
            # 2 to 4 percent are left: of 33 million elements about a million, 8 bytes a
            # temporary.
            pieces = (of_C.split(_tuning.CANDIDATES_AT_ONCE) for of_C in left)
            for piece in zip(*pieces, strict=True):
                self._decide(part_N, Undecided(*piece))

    def _decide(self, x_N: Tensor, left: Undecided) -> None:
        """Round the undecided elements, with 64 more bits and then with all."""
        more_C = self._words.draw(len(left.x), torch.int64)
        unsure_C = self._last_stage.round_(x_N, left, more_C)
        if unsure_C.any():  # About 1 in 2**30: worth no kernel.
            for i in unsure_C.nonzero().squeeze(1).tolist():
                rest = self._words.draw(REST_BITS // 64, torch.int64).tolist()
                x_N[left.indices[i]] = last_resort(
                    float(left.x[i]),
                    [int(left.words[i]), int(more_C[i]), *rest],
                    self._lattice,
                )
