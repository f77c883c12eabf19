"""Most of the rounding on a device: what sixteen bits and float32 can decide.

The stage exists twice: in torch's operations, and as one kernel of Triton, in
:mod:`dp.noise._device.kernels.rounding`, which reads and writes memory a tenth as often. They
give the same results and leave the same elements. Their bound on the error of float32 is
that of :mod:`dp.noise._host.lattice` with two differences:

* ``M`` is each element's own, not the largest of the vector, and that part of the bound
  is added to the distance instead of being taken from the limit. Where both together
  are at most 1/2, their sum is off by ``2**-25``, which is the line "the bound itself"
  of the table. So one huge sum sends no others to float64.
* Products by powers of two share a kernel with a sum. They are exact, so that it does
  not matter whether the compiler contracts both to one instruction. There are no other
  products, and every operation rounds as IEEE 754 says.

Shapes: ``N`` elements of a vector, ``C`` candidates that float32 left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol, Self, final

import torch
from torch import Tensor

from dp import _tuning
from dp.noise._device.chacha import ChaChaWords, WriteBlocks, num_blocks_for, written
from dp.noise._device.load_kernel import load_verified_kernel
from dp.noise._host.lattice import (
    FLOAT32_ERROR,
    FLOAT32_ERROR_OF_X,
    granularity,
    lattice_table,
)


__all__ = (
    "FirstStage",
    "Lattice",
    "TorchFloat32",
    "TritonFloat32",
    "Undecided",
    "Words",
    "rounding_kernel_on",
)

_CHECKED: Final = (1 << 16) + 7


class Words(Protocol):
    """Where uniform bits come from."""

    def draw(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return integers, uniform over all values of *dtype*, on the device."""
        ...


class Blocks(Words, Protocol):
    """Where they come from in blocks of ChaCha20."""

    def blocks_for(self, num_bytes: int) -> tuple[Tensor, int]:
        """Return the input of the first of the next blocks, and how many they are."""
        ...


class Undecided(NamedTuple):
    """The C elements that are not decided: where, their sums and their 16 bits."""

    indices: Tensor
    x: Tensor
    words: Tensor


class FirstStage(Protocol):
    """Either way of it."""

    def round_(self, x_N: Tensor) -> Undecided:
        """Add noise and round, in place; return what that may be wrong for."""
        ...

    def longest(self, dtype: torch.dtype) -> int:
        """Return how long a vector may be for temporaries of some 200 MB."""
        ...


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Lattice:
    """Where results lie, and what float32 needs to know of it.

    Attributes:
        spacing: Of the lattice; a power of two.
        scale: Standard deviation in lattice units.
        centres: In lattice units, NaN where float32 must not decide; on the device.
        safe_distance: Up to which from an integer a sum is rounded surely.
    """

    spacing: float
    scale: float
    centres: Tensor
    safe_distance: float

    @classmethod
    def on(cls, device: torch.device, stddev: float) -> Self:
        """Return the lattice for a standard deviation."""
        spacing = granularity(stddev)
        centres, reach = _table_on(device, stddev / spacing)
        return cls(
            spacing=spacing,
            scale=stddev / spacing,
            centres=centres,
            safe_distance=0.5 - reach - FLOAT32_ERROR,
        )


@final
class TorchFloat32:
    """The stage in torch's operations, for float32 and float64."""

    def __init__(self, lattice: Lattice, words: Words) -> None:
        self._lattice = lattice
        self._words = words

    def longest(self, dtype: torch.dtype) -> int:
        """See :class:`FirstStage`."""
        return _tuning.LONGEST_IN_TORCH // dtype.itemsize

    def round_(self, x_N: Tensor) -> Undecided:
        """See :class:`FirstStage`."""
        words_N = self._words.draw(len(x_N), torch.int16)
        steps_N = x_N * (1 / self._lattice.spacing)
        where_C = self._round(steps_N, words_N)
        left = Undecided(where_C, x_N[where_C], words_N[where_C])
        torch.mul(steps_N, self._lattice.spacing, out=x_N).add_(0.0)  # -0 + 0 is 0.
        return left

    def _round(self, steps_N: Tensor, words_N: Tensor) -> Tensor:
        index_N = words_N.view(torch.uint16).to(torch.int32)
        sum_N = self._lattice.centres.index_select(0, index_N).to(steps_N.dtype)
        del index_N
        sum_N += steps_N
        torch.round(sum_N, out=steps_N)
        distance_N = sum_N.sub_(steps_N).abs_()
        distance_N.add_(steps_N.abs(), alpha=FLOAT32_ERROR_OF_X)
        is_safe_N = distance_N <= self._lattice.safe_distance  # False if it is NaN.
        return is_safe_N.logical_not_().nonzero().squeeze(1)


@final
class TritonFloat32:
    """The stage as one kernel, with the words in it, for float32."""

    def __init__(
        self, lattice: Lattice, words: Blocks, kernel: Callable[..., None]
    ) -> None:
        self._lattice = lattice
        self._words = words
        self._kernel = kernel
        self._for_float64 = TorchFloat32(lattice, words)

    def longest(self, dtype: torch.dtype) -> int:
        """See :class:`FirstStage`."""
        if dtype != torch.float32:
            return self._for_float64.longest(dtype)
        return _tuning.LONGEST_IN_ONE_KERNEL

    def round_(self, x_N: Tensor) -> Undecided:
        """See :class:`FirstStage`."""
        if x_N.dtype != torch.float32:
            return self._for_float64.round_(x_N)
        state, num_blocks = self._words.blocks_for(2 * len(x_N))
        words_N = torch.empty(x_N.shape, dtype=torch.int16, device=x_N.device)
        is_left_N = torch.empty(x_N.shape, dtype=torch.bool, device=x_N.device)
        self._kernel(
            x_N,
            words_N,
            is_left_N,
            state=state,
            num_blocks=num_blocks,
            centres=self._lattice.centres,
            spacing=self._lattice.spacing,
            safe_distance=self._lattice.safe_distance,
            error_of_x=FLOAT32_ERROR_OF_X,
        )
        where_C = is_left_N.nonzero().squeeze(1)
        return Undecided(where_C, x_N[where_C], words_N[where_C])


@lru_cache
def rounding_kernel_on(
    device: torch.device, write_blocks: WriteBlocks
) -> Callable[..., None] | None:
    """Return the kernel of the stage, if it does on *device* what torch does.

    A warning says why it is not used.
    """
    module = load_verified_kernel(
        "rounding",
        lambda module: _check(module.round_in_float32, write_blocks, device),
        otherwise=f"noise on {device} is rounded in many operations",
    )
    return None if module is None else module.round_in_float32


def _check(
    kernel: Callable[..., None], write_blocks: WriteBlocks, device: torch.device
) -> None:
    """Compare the kernel with torch's operations, for equal words."""
    lattice = Lattice.on(device, 1.7)
    x_N = torch.arange(_CHECKED, device=device).float().sub(3e4).square().mul(0.0123)
    x_N[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -1e30])
    state, _num_blocks = ChaChaWords(device, write_blocks).blocks_for(0)
    words = _Given(write_blocks, state)
    by_kernel_N, by_torch_N = x_N.clone(), x_N.clone()
    left = TritonFloat32(lattice, words, kernel).round_(by_kernel_N)
    expected = TorchFloat32(lattice, words).round_(by_torch_N)
    by_torch_N[expected.indices] = expected.x
    same = zip((by_kernel_N, *left), (by_torch_N, *expected), strict=True)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in same):
        raise ArithmeticError("its results are not those of torch's operations")


@final
@dataclass(frozen=True, slots=True)
class _Given:
    """The same blocks again and again, for comparisons."""

    write_blocks: WriteBlocks
    state: Tensor

    def blocks_for(self, num_bytes: int) -> tuple[Tensor, int]:
        return self.state, num_blocks_for(num_bytes)

    def draw(self, count: int, dtype: torch.dtype) -> Tensor:
        state, num_blocks = self.blocks_for(count * dtype.itemsize)
        return written(self.write_blocks, state, num_blocks).view(dtype)[:count]


@lru_cache(maxsize=8)
def _table_on(device: torch.device, scale: float) -> tuple[Tensor, float]:
    """The table of the first stage, kept where it is used."""
    table, reach = lattice_table(scale)
    return torch.from_numpy(table).to(device), reach
