"""The exact sum of a number and a Gaussian, rounded where the number is: on a GPU.

This is :class:`dp.noise._rounding.RoundedGaussian` in torch's operations, for devices
that have float64. The argument is the one given there. What differs:

* The first stage: see :mod:`dp.noise._first_stage`.
* The second stage is left out: all candidates of the first get 64 more bits, of which
  a device has plenty, and so there is one point less at which the host has to wait.
* Every operation of the third stage is a kernel of its own and rounds once, as IEEE 754
  says; only within ``torch.special.ndtri`` may the compiler contract products and
  sums. That is one rounding less for each step of Cephes' polynomials. CUDA's ``log``
  and ``sqrt`` in float64 err by 1 ulp and not at all, those of other devices by 2. The
  bound of ``2**-40`` for a quantile is more than 100 times that.

Shapes: ``N`` elements of a vector, ``C`` candidates that float32 left, and ``S`` of
these at once.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, final

import torch
from torch import Tensor

from dp.noise._chacha import ChaChaWords, kernel_on
from dp.noise._chunks import as_vector
from dp.noise._first_stage import (
    InOneKernel,
    InTorch,
    Lattice,
    Left,
    Words,
    rounding_kernel_on,
)
from dp.noise._host_words import HostWords
from dp.noise._refinement import (
    FIRST_BITS,
    MIN_PROBABILITY,
    MORE_BITS,
    REST_BITS,
    SAFE_DISTANCE,
    exactly,
)


__all__ = ("OnDevice", "add_rounded")

_CANDIDATES: Final = 1 << 20  # Temporaries of 8 bytes: not too many of them at once.


class FirstStage(Protocol):
    """See :mod:`dp.noise._first_stage`."""

    def round_(self, x_N: Tensor) -> Left:
        """Add noise and round, in place; return what that may be wrong for."""
        ...


def add_rounded(chunks: Sequence[list[Tensor]], stddev: float) -> None:
    """Add rounded noise to chunks of tensors, each on the device that it is on."""
    num_threads = torch.get_num_threads()
    noises: dict[torch.device, OnDevice] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        for parts in chunks:
            device = parts[0].device
            if device not in noises:
                noises[device] = _noise_on(device, stddev, pool, num_threads)
            with as_vector(parts, device) as x:
                noises[device].add_(x)


def _noise_on(
    device: torch.device, stddev: float, pool: ThreadPoolExecutor, num_threads: int
) -> "OnDevice":
    """Use what the device has: kernels, or one of them, or words of the host."""
    lattice = Lattice.on(device, stddev)
    write_blocks = kernel_on(device)
    if write_blocks is None:
        from_host = HostWords(device, pool=pool, num_threads=num_threads)
        return OnDevice(lattice, from_host, InTorch(lattice, from_host))
    words = ChaChaWords(device, write_blocks)
    kernel = rounding_kernel_on(device, write_blocks)
    if kernel is None:
        return OnDevice(lattice, words, InTorch(lattice, words))
    return OnDevice(lattice, words, InOneKernel(lattice, words, kernel))


@final
class OnDevice:
    """The noise of one call on one device, added and rounded.

    Args:
        lattice: Where results lie, which tells the standard deviation.
        words: Where the uniform bits come from.
        first_stage: What decides most of the elements, with bits of its own.
    """

    def __init__(self, lattice: Lattice, words: Words, first_stage: FirstStage) -> None:
        self._lattice = lattice
        self._words = words
        self._first_stage = first_stage

    def add_(self, x_N: Tensor) -> None:
        """Add noise to a contiguous vector, in float32 or float64."""
        left = self._first_stage.round_(x_N)
        for where_S, x_S, words_S in zip(
            *(of_C.split(_CANDIDATES) for of_C in left), strict=True
        ):
            x_N[where_S] = self._decided(x_S.double(), words_S).to(x_N.dtype)

    def _decided(self, x_S: Tensor, words_S: Tensor) -> Tensor:
        """Return the results of a few elements, rounded in float64 or exactly."""
        fraction_S = x_S * (1 / self._lattice.spacing)
        whole_S = fraction_S.round()
        fraction_S -= whole_S  # Exact: magnitudes are alike, or whole is 0.
        bits_S = words_S.view(torch.uint16).to(torch.int64)
        steps_S = self._with_more_bits(bits_S, fraction_S)
        return (steps_S + whole_S) * self._lattice.spacing + 0.0  # -0 + 0 is 0.

    def _with_more_bits(self, bits_S: Tensor, fraction_S: Tensor) -> Tensor:
        """Return ``round(fraction + scale * Z)``, as ``_refinement.decide`` does."""
        scale = self._lattice.scale
        more_S = self._words.draw(len(bits_S), torch.int64)
        steps_S, unsure_S = in_float64(bits_S, more_S, fraction_S, scale)
        if unsure_S.any():
            for i in unsure_S.nonzero().squeeze(1).tolist():
                rest = self._words.draw(REST_BITS // 64, torch.int64)
                steps_S[i] = exactly(
                    [int(bits_S[i]), int(more_S[i]), *rest.tolist()],
                    float(fraction_S[i]),
                    scale,
                    int(steps_S[i]),
                )
        return steps_S


def in_float64(
    bits_S: Tensor, more_S: Tensor, fraction_S: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Round in float64, and say for which elements it may be wrong.

    Every number up to the quantile is bit for bit that of ``_refinement``: 64 bits
    become a float by one rounding, since each half of them is exact.
    """
    half = 1 << (FIRST_BITS - 1)
    upper_S = bits_S >= half
    bits_S = torch.where(upper_S, 2 * half - 1 - bits_S, bits_S)
    more_S = torch.where(upper_S, ~more_S, more_S)
    low_S, high_S = more_S & 0xFFFFFFFF, (more_S >> 32) & 0xFFFFFFFF
    more_S = high_S.double() * 2.0**32 + low_S.double()
    tail_S = (bits_S.double() + more_S * 2.0**-MORE_BITS) * 2.0**-FIRST_BITS
    unsure_S = tail_S < MIN_PROBABILITY
    normal_S = torch.special.ndtri(tail_S.clamp(min=2.0 ** -(FIRST_BITS + MORE_BITS)))
    sum_S = fraction_S + torch.where(upper_S, -normal_S, normal_S) * scale
    steps_S = sum_S.round()
    unsure_S |= (sum_S - steps_S).abs() > SAFE_DISTANCE
    return steps_S, unsure_S
