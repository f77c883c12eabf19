"""The exact sum of a number and a Gaussian, rounded where the number is: on a GPU.

This is :class:`dp.noise._rounding.RoundedGaussian` in torch's operations, for devices
that have float64. The argument is the one given there. What differs:

* The first stage takes the ``M`` of its bound from each element, not from the vector,
  and adds that part of the bound to the distance instead of taking it from the limit.
  Where the sum of distance and bound is at most 1/2, it is off by ``2**-25``, which is
  the line "the bound itself" of the table. So one huge sum sends no others to float64.
* The second stage is left out: all candidates of the first get 64 more bits, of which
  a device has plenty, and so there is one point less at which the host has to wait.
* Every operation below is a kernel of its own and rounds once, as IEEE 754 says. Only
  products by powers of two share a kernel with a sum (``alpha``): they are exact, so
  that it does not matter whether the compiler contracts both to one instruction.
* Within ``torch.special.ndtri`` it may contract. That is one rounding less for each
  step of Cephes' polynomials; CUDA's ``log`` and ``sqrt`` in float64 err by 1 ulp and
  not at all, those of other devices by 2. The bound of ``2**-40`` for a quantile
  is more than 100 times that.

Shapes: ``N`` elements of a vector, ``C`` candidates that float32 left, and ``S`` of
these at once.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final, Protocol, final

import torch
from torch import Tensor

from dp.noise._chacha import ChaChaWords, kernel_on
from dp.noise._chunks import as_vector
from dp.noise._host_words import HostWords
from dp.noise._refinement import (
    FIRST_BITS,
    MIN_PROBABILITY,
    MORE_BITS,
    REST_BITS,
    SAFE_DISTANCE,
    exactly,
)
from dp.noise._rounding import (
    FLOAT32_ERROR,
    FLOAT32_ERROR_OF_X,
    granularity,
    lattice_table,
)


__all__ = ("OnDevice", "add_rounded")

_CANDIDATES: Final = 1 << 20  # Temporaries of 8 bytes: not too many of them at once.


class Words(Protocol):
    """Where uniform bits come from."""

    def draw(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return integers, uniform over all values of *dtype*, on the device."""
        ...


def add_rounded(chunks: Sequence[list[Tensor]], stddev: float) -> None:
    """Add rounded noise to chunks of tensors, each on the device that it is on."""
    num_threads = torch.get_num_threads()
    noises: dict[torch.device, OnDevice] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        for parts in chunks:
            device = parts[0].device
            if device not in noises:
                words = _words(device, pool, num_threads)
                noises[device] = OnDevice(stddev=stddev, words=words, device=device)
            with as_vector(parts, device) as x:
                noises[device].add_(x)


def _words(device: torch.device, pool: ThreadPoolExecutor, num_threads: int) -> Words:
    """Draw on the device where that can be done, and else on the host."""
    write_blocks = kernel_on(device)
    if write_blocks is not None:
        return ChaChaWords(device, write_blocks)
    return HostWords(device, pool=pool, num_threads=num_threads)


@final
class OnDevice:
    """The noise of one call on one device: N(0, stddev**2), added and rounded.

    Args:
        stddev: Standard deviation, in the unit of the vectors.
        words: Where the uniform bits come from.
        device: Where the vectors and the words are.
    """

    def __init__(self, *, stddev: float, words: Words, device: torch.device) -> None:
        self._spacing = granularity(stddev)
        self._scale = stddev / self._spacing
        self._centres, reach = _table_on(device, self._scale)
        self._safe_distance = 0.5 - reach - FLOAT32_ERROR
        self._words = words

    def add_(self, x_N: Tensor) -> None:
        """Add noise to a contiguous vector, in float32 or float64."""
        words_N = self._words.draw(len(x_N), torch.int16)
        steps_N = x_N * (1 / self._spacing)
        candidates_C = self._round(steps_N, words_N)
        x_C, words_C = x_N[candidates_C], words_N[candidates_C]
        torch.mul(steps_N, self._spacing, out=x_N)
        for candidates_S, x_S, words_S in zip(
            *(of.split(_CANDIDATES) for of in (candidates_C, x_C, words_C)), strict=True
        ):
            x_N[candidates_S] = self._decided(x_S.double(), words_S).to(x_N.dtype)
        x_N.add_(0.0)  # -0 + 0 is 0.

    def _round(self, steps_N: Tensor, words_N: Tensor) -> Tensor:
        """Add noise in float32 and round, in place; return where that may be wrong."""
        noise_N = self._centres.index_select(0, _unsigned(words_N, torch.int32))
        sum_N = noise_N.to(steps_N.dtype).add_(steps_N)
        del noise_N
        torch.round(sum_N, out=steps_N)
        distance_N = sum_N.sub_(steps_N).abs_()
        distance_N.add_(steps_N.abs(), alpha=FLOAT32_ERROR_OF_X)
        is_safe_N = distance_N <= self._safe_distance  # False if it is NaN.
        return is_safe_N.logical_not_().nonzero().squeeze(1)

    def _decided(self, x_S: Tensor, words_S: Tensor) -> Tensor:
        """Return the results of a few elements, rounded in float64 or exactly."""
        fraction_S = x_S * (1 / self._spacing)
        whole_S = fraction_S.round()
        fraction_S -= whole_S  # Exact: magnitudes are alike, or whole is 0.
        steps_S = self._with_more_bits(_unsigned(words_S, torch.int64), fraction_S)
        return (steps_S + whole_S) * self._spacing

    def _with_more_bits(self, bits_S: Tensor, fraction_S: Tensor) -> Tensor:
        """Return ``round(fraction + scale * Z)``, as ``_refinement.decide`` does."""
        more_S = self._words.draw(len(bits_S), torch.int64)
        steps_S, unsure_S = in_float64(bits_S, more_S, fraction_S, self._scale)
        if unsure_S.any():
            for i in unsure_S.nonzero().squeeze(1).tolist():
                rest = self._words.draw(REST_BITS // 64, torch.int64)
                steps_S[i] = exactly(
                    [int(bits_S[i]), int(more_S[i]), *rest.tolist()],
                    float(fraction_S[i]),
                    self._scale,
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


def _unsigned(words: Tensor, dtype: torch.dtype) -> Tensor:
    return words.view(torch.uint16).to(dtype)


@lru_cache(maxsize=8)
def _table_on(device: torch.device, scale: float) -> tuple[Tensor, float]:
    """The table of the first stage, kept where it is used."""
    table, reach = lattice_table(scale)
    return torch.from_numpy(table).to(device), reach
