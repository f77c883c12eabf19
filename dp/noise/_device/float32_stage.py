"""First rounding stage on a device: elements decided by 16 random bits in float32.

The stage exists twice: in torch operations, and as one Triton kernel in
:mod:`dp.noise._device.kernels.rounding`, which needs a tenth of the memory traffic. Both
give the same results and leave the same elements undecided. An element is decided if the
sum of its noise's cell centre and ``x / g`` is so far from the midpoint of two lattice
points that neither the reach of the cell nor the errors of float32 can carry it across.
The reach is that of the widest cell within 2.5 standard deviations; what lies outside is
not decided here. 2 to 4 percent are left.

16 bits and not 24, as on the host: bits in the second stage are cheap on a device, and
each look-up reads 4 bytes.

The errors, in lattice units, where ``s / g`` is below ``2**5``, so that a centre is below
``2**6.4``, and ``R`` is the rounded sum:

====================================  ==================================================
the centre in float32                 ``2**-18``
the sum with ``x / g``                ``2**-24 * |R| + 2**-18``
the distance plus margin              ``2**-25``
together                              less than ``2**-16 + 2**-23 * |R|``
====================================  ==================================================

Products by powers of two share a kernel with a sum. They are exact, so it does not matter
whether the compiler contracts both to one instruction. There are no other products, and
every operation rounds as IEEE 754 says.

Shapes: ``N`` elements of a vector, ``C`` candidates that float32 left undecided.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp import _tuning
from dp.noise._device.chacha import ChaChaWords, WriteBlocks, num_blocks_for, written
from dp.noise._host.exact import granularity
from dp.noise._host.lattice import FLOAT32_ERROR, FLOAT32_ERROR_OF_SUM, cells
from dp.noise._load_kernel import load_verified_kernel


__all__ = (
    "FirstStage",
    "Lattice",
    "TorchFloat32",
    "TritonFloat32",
    "Undecided",
    "Words",
    "lattice_table",
    "rounding_kernel_on",
)

_LARGEST_CENTRE: Final = 2.5  # Cells further out are left to float64.
_CHECKED: Final = (1 << 16) + 7


class Words(Protocol):
    """A source of uniform random bits."""

    def draw(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return integers, uniform over all values of *dtype*, on the device."""
        ...


class Blocks(Words, Protocol):
    """A source of uniform random bits in blocks of ChaCha20."""

    def blocks_for(self, num_bytes: int) -> tuple[Tensor, int]:
        """Reserve the next blocks: return the input of the first, and their number."""
        ...


class Undecided(NamedTuple):
    """The C undecided elements: their indices, sums and 16 random bits."""

    indices: Tensor
    x: Tensor
    words: Tensor


class FirstStage(Protocol):
    """The stage, in torch operations or as a kernel."""

    def round_(self, x_N: Tensor) -> Undecided:
        """Add noise and round, in place; return the elements that stay undecided."""
        ...

    def longest(self, dtype: torch.dtype) -> int:
        """Return the longest vector whose temporaries stay near 200 MB."""
        ...


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Lattice:
    """The lattice of results, and the constants of the float32 stage.

    Attributes:
        spacing: The lattice's; a power of two, so that dividing by it is exact.
        scale: Standard deviation in lattice units.
        centres: Centres of the cells in lattice units, on the device; NaN where float32
            must not decide.
        safe_distance: The largest distance of a sum from an integer at which rounding
            is certainly correct.
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
            # One reach for all cells, the widest of those within 2.5 standard
            # deviations: a number less to look up for each element.
            safe_distance=0.5 - reach - FLOAT32_ERROR,
        )


@final
class TorchFloat32:
    """The stage in torch operations, for float32 and float64."""

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
        # Read before the results are written over them.
        left = Undecided(where_C, x_N[where_C], words_N[where_C])
        torch.mul(steps_N, self._lattice.spacing, out=x_N).add_(0.0)  # -0 + 0 is 0.
        return left

    def _round(self, steps_N: Tensor, words_N: Tensor) -> Tensor:
        # The 16 bits as 0 to 65535, not as -32768 to 32767.
        index_N = words_N.view(torch.uint16).to(torch.int32)
        sum_N = self._lattice.centres.index_select(0, index_N).to(steps_N.dtype)
        del index_N
        sum_N += steps_N
        torch.round(sum_N, out=steps_N)
        distance_N = sum_N.sub_(steps_N).abs_()
        distance_N.add_(steps_N.abs(), alpha=FLOAT32_ERROR_OF_SUM)
        is_safe_N = distance_N <= self._lattice.safe_distance  # False if it is NaN.
        return is_safe_N.logical_not_().nonzero().squeeze(1)


@final
class TritonFloat32:
    """The stage as one kernel that also draws the words, for float32."""

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
        # Two bytes for each element.
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
            error_of_x=FLOAT32_ERROR_OF_SUM,
        )
        where_C = is_left_N.nonzero().squeeze(1)
        return Undecided(where_C, x_N[where_C], words_N[where_C])


@lru_cache
def rounding_kernel_on(
    device: torch.device, write_blocks: WriteBlocks
) -> Callable[..., None] | None:
    """Return a kernel of the stage that is verified on *device*, or None with a warning."""
    module = load_verified_kernel(
        "dp.noise._device.kernels.rounding",
        lambda module: _check(module.round_in_float32, write_blocks, device),
        otherwise=f"noise on {device} is rounded in many operations",
    )
    return None if module is None else module.round_in_float32


def _check(
    kernel: Callable[..., None], write_blocks: WriteBlocks, device: torch.device
) -> None:
    """Compare the kernel with torch operations on the same words; raise if they differ."""
    lattice = Lattice.on(device, 1.7)
    x_N = torch.arange(_CHECKED, device=device).float().sub(3e4).square().mul(0.0123)
    # What must stay undecided, or as it is, besides ordinary sums of many sizes.
    x_N[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -1e30])
    # Both are given the same key and the same first block, so that every bit can be
    # compared.
    state, _num_blocks = ChaChaWords(device, write_blocks).blocks_for(0)
    words = _Given(write_blocks, state)
    by_kernel_N, by_torch_N = x_N.clone(), x_N.clone()
    left = TritonFloat32(lattice, words, kernel).round_(by_kernel_N)
    expected = TorchFloat32(lattice, words).round_(by_torch_N)
    by_torch_N[expected.indices] = expected.x
    same = zip((by_kernel_N, *left), (by_torch_N, *expected), strict=True)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in same):
        raise ArithmeticError("its results differ from those of torch operations")


@final
@dataclass(frozen=True, slots=True)
class _Given:
    """The same blocks at every call, to compare two implementations."""

    write_blocks: WriteBlocks
    state: Tensor

    def blocks_for(self, num_bytes: int) -> tuple[Tensor, int]:
        return self.state, num_blocks_for(num_bytes)

    def draw(self, count: int, dtype: torch.dtype) -> Tensor:
        state, num_blocks = self.blocks_for(count * dtype.itemsize)
        return written(self.write_blocks, state, num_blocks).view(dtype)[:count]


@lru_cache(maxsize=8)
def _table_on(device: torch.device, scale: float) -> tuple[Tensor, float]:
    """Return the table of centres on *device*, and the longest reach of a cell."""
    table, reach = lattice_table(scale)
    return torch.from_numpy(table).to(device), reach


def lattice_table(scale: float) -> tuple[NDArray[np.float32], float]:
    """Return centres in lattice units, NaN where float32 must not decide; the longest reach."""
    centres, halves = cells()
    inner = np.abs(centres) < _LARGEST_CENTRE
    # NaN is not within any distance, so that outer cells are left to float64 without a
    # test.
    table = np.where(inner, centres * scale, np.nan).astype(np.float32)
    return table, float(halves[inner].max()) * scale
