"""Second rounding stage on a device: the remaining elements, with 64 more bits in float64.

This is :mod:`dp.noise._host.exact` in torch operations or in Triton kernels, which give
the same results. The differences on a device:

* Every operation rounds once, as IEEE 754 says; a compiler may contract products and
  sums only in kernels and within ``torch.special.ndtri``. A contraction saves one
  rounding in a step of Cephes' polynomials, or in the sum of fraction and noise. CUDA's
  float64 ``sqrt`` is correctly rounded and its ``log`` errs by 1 ulp; other devices err
  by 2. The bound of ``2**-40`` for a quantile is more than 100 times as large.
* Elements that float64 cannot decide are decided on the host, one at a time.

Shapes: ``C`` elements of a vector of ``N``.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Final, Protocol, cast, final

import torch
from torch import Tensor

from dp.noise._device.float32_stage import Lattice, Undecided
from dp.noise._host.exact import (
    MIN_PROBABILITY,
    MORE_BITS,
    REST_BITS,
    SAFE_DISTANCE,
    round_exact,
)
from dp.noise._host.lattice import CELL_BITS
from dp.noise._load_kernel import load_verified_kernel


__all__ = ("LastStage", "TorchFloat64", "TritonFloat64", "last_resort", "last_stage_on")

_SMALLEST: Final = 2.0 ** -(CELL_BITS + MORE_BITS)


class LastStage(Protocol):
    """The stage, in torch operations or in kernels."""

    def round_(self, x_N: Tensor, left: Undecided, more_C: Tensor) -> Tensor:
        """Round the undecided elements, in place; return a mask of those still unsure.

        Args:
            x_N: The vector. Its values at undecided elements are not read.
            left: The undecided elements, without noise.
            more_C: The next 64 bits of each.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class TorchFloat64:
    """The stage in torch operations."""

    lattice: Lattice

    def round_(self, x_N: Tensor, left: Undecided, more_C: Tensor) -> Tensor:
        """See :class:`LastStage`."""
        units_C = left.x.double() * (1 / self.lattice.spacing)
        whole_C = units_C.round()
        fraction_C = units_C - whole_C  # Exact: magnitudes are alike, or whole is 0.
        bits_C = left.words.view(torch.uint16).to(torch.int64)
        steps_C, unsure_C = in_float64(bits_C, more_C, fraction_C, self.lattice.scale)
        result_C = (steps_C + whole_C) * self.lattice.spacing + 0.0  # -0 + 0 is 0.
        x_N[left.indices] = result_C.to(x_N.dtype)
        return unsure_C


def in_float64(
    bits_C: Tensor, more_C: Tensor, fraction_C: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Round in float64; also return a mask of the elements where that may be wrong.

    64 bits become a float by one rounding, since each half of them is exact. The errors
    are those of :mod:`dp.noise._host.exact`, but for the bits that were not drawn: from
    the 81st on they add ``2**-80`` to ``U``, which moves ``Z`` by ``2**-39.5``. In lattice
    units, with the rounding of the sum, that is still less than ``2**-33``.
    """
    half = 1 << (CELL_BITS - 1)
    # As on the host: the tail is computed from its own end.
    upper_C = bits_C >= half
    bits_C = torch.where(upper_C, 2 * half - 1 - bits_C, bits_C)
    more_C = torch.where(upper_C, ~more_C, more_C)
    # torch has no unsigned 64-bit arithmetic: a negative word is put together from
    # halves.
    low_C, high_C = more_C & 0xFFFFFFFF, (more_C >> 32) & 0xFFFFFFFF
    more_C = high_C.double() * 2.0**32 + low_C.double()
    tail_C = (bits_C.double() + more_C * 2.0**-MORE_BITS) * 2.0**-CELL_BITS
    unsure_C = tail_C < MIN_PROBABILITY
    normal_C = torch.special.ndtri(tail_C.clamp(min=_SMALLEST))
    sum_C = fraction_C + torch.where(upper_C, -normal_C, normal_C) * scale
    steps_C = sum_C.round()
    unsure_C |= (sum_C - steps_C).abs() > SAFE_DISTANCE
    return steps_C, unsure_C


class Kernels(Protocol):
    """The interface of ``kernels.decision``, which needs Triton."""

    def write_tails(self, words_C: Tensor, more_C: Tensor, tail_C: Tensor) -> None:
        """Write the smaller of ``U`` and ``1 - U``."""
        ...

    def round_in_float64(
        self,
        x_N: Tensor,
        *,
        indices_C: Tensor,
        x_C: Tensor,
        words_C: Tensor,
        tail_C: Tensor,
        normal_C: Tensor,
        constants: Tensor,
        is_unsure_C: Tensor,
    ) -> None:
        """Round sums in place, and write a mask of those where that may be wrong."""
        ...


@final
@dataclass(frozen=True, slots=True)
class TritonFloat64:
    """The stage in two kernels, with torch's quantile function in between."""

    lattice: Lattice
    kernels: Kernels

    def round_(self, x_N: Tensor, left: Undecided, more_C: Tensor) -> Tensor:
        """See :class:`LastStage`."""
        tail_C = torch.empty(more_C.shape, dtype=torch.float64, device=x_N.device)
        self.kernels.write_tails(left.words, more_C, tail_C)
        unsure_C = torch.empty(more_C.shape, dtype=torch.bool, device=x_N.device)
        self.kernels.round_in_float64(
            x_N,
            indices_C=left.indices,
            x_C=left.x,
            words_C=left.words,
            tail_C=tail_C,
            normal_C=torch.special.ndtri(tail_C),
            constants=_constants_on(
                x_N.device, self.lattice.scale, self.lattice.spacing
            ),
            is_unsure_C=unsure_C,
        )
        return unsure_C


def last_resort(x: float, words: list[int], lattice: Lattice) -> float:
    """Return the result for one element, in 320-bit arithmetic on the host.

    Args:
        x: The sum.
        words: The first 16 bits, the next 64, and the last 192 as three words of 64.
            Signed words stand for the unsigned ones with the same bits.
        lattice: The lattice of results.
    """
    if not math.isfinite(x):
        return x
    fraction = x / lattice.spacing  # Exact, and so is subtracting the whole part.
    whole = round(fraction)
    fraction -= whole
    # -1 stands for 65535.
    bits = words[0] % (1 << CELL_BITS)
    # A start for the search, from the first 16 bits alone.
    about = (bits + 0.5) / (1 << CELL_BITS)
    guess = round(NormalDist(fraction, lattice.scale).inv_cdf(about))
    steps = round_exact(
        [bits, *words[1:]],
        fraction,
        lattice.scale,
        guess,
        num_bits=CELL_BITS + MORE_BITS + REST_BITS,
    )
    return (steps + whole) * lattice.spacing


@lru_cache
def last_stage_on(device: torch.device) -> Kernels | None:
    """Return the kernels of the stage, verified on *device*, or None with a warning.

    Call it only where Triton is installed.
    """
    kernels = load_verified_kernel(
        "dp.noise._device.kernels.decision",
        lambda kernels: _check(cast("Kernels", kernels), device),
        otherwise=f"noise on {device} is refined in many operations",
    )
    return cast("Kernels | None", kernels)


def _check(kernels: Kernels, device: torch.device) -> None:
    """Compare the kernels with torch operations in every cell; raise if they differ.

    In float64 also with a scale at which an error of 1e-6 in a tail would show.
    """
    lattice = Lattice.on(device, 1.7)
    words_C = torch.arange(-(1 << 15), 1 << 15, device=device)
    more_C = words_C * 0x1234_5678_9ABC_DEF  # Wraps around, with either sign.
    more_C[1 << 15] = 3  # A tail that float64 is not sure of.
    indices_C = words_C.flip(0) + (1 << 15)
    for dtype, scale in ((torch.float32, lattice.scale), (torch.float64, 2.0**20)):
        checked_lattice = replace(lattice, scale=scale)
        x_N = words_C.to(dtype).square().mul(0.0123)
        x_N[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -1e30])
        left = Undecided(indices_C, x_N[indices_C], words_C.to(torch.int16))
        # 7 marks elements that the kernels must not write, since they stay unsure.
        by_kernels_N, by_torch_N = torch.full_like(x_N, 7.0), x_N.clone()
        unsure_C = TritonFloat64(checked_lattice, kernels).round_(
            by_kernels_N, left, more_C
        )
        expected_C = TorchFloat64(checked_lattice).round_(by_torch_N, left, more_C)
        by_torch_N[indices_C[expected_C]] = 7.0
        if not (
            torch.equal(by_kernels_N.nan_to_num(), by_torch_N.nan_to_num())
            and torch.equal(unsure_C, expected_C)
            and expected_C.any()
        ):
            raise ArithmeticError("its results differ from those of torch operations")


@lru_cache(maxsize=8)
def _constants_on(device: torch.device, scale: float, spacing: float) -> Tensor:
    """Return the stage's constants as a float64 tensor: Triton takes no such arguments."""
    numbers = [scale, spacing, 1 / spacing, MIN_PROBABILITY, SAFE_DISTANCE]
    return torch.tensor(numbers, dtype=torch.float64, device=device)
