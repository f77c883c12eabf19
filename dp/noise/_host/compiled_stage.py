"""First rounding stage on the host as one compiled loop, where numba is installed.

The loop reads and writes each element once, where numpy's operations take two dozen passes.
Its results are those of :class:`dp.noise._host.float32_stage.NumpyFloat32` to the last bit,
and it leaves the same elements undecided: every operation rounds once, as IEEE 754 says
(numba contracts products and sums only if told to), and a kernel is compared with numpy
before its first use. So the argument of :mod:`dp.noise._host.lattice` holds for both, and
which of them ran cannot be told from a result.

Shapes: ``T`` vectors, ``N`` elements of a block, ``C`` of them that stay undecided.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final, Protocol, Self, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp import _tuning
from dp.noise._host.float32_stage import Constants, NumpyFloat32, Undecided
from dp.noise._host.lattice import POINT_DISTANCE, Lattice
from dp.noise._host.workspace import Workspace
from dp.noise._load_kernel import load_verified_kernel


__all__ = (
    "CompiledFloat32",
    "Kernel",
    "KernelInTime",
    "Vectors",
    "kernel_for",
    "verified_kernel",
)

_CHECKED: Final = (1 << 16) + 77  # Elements: each cell of the table.
_CHECKED_SIZES: Final = (1, 0, 1000, 513, 255, _CHECKED - 1769)

_DTYPES: Final[dict[torch.dtype, np.dtype[Any]]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}

_Array = NDArray[Any]


class Kernel(Protocol):
    """The interface of ``kernels.rounding``, which needs numba."""

    def round_(self, *arguments: Any) -> int:
        """Add noise to a block and round, in place; return how many are undecided."""
        ...

    def write(self, where_C: _Array, values_C: _Array) -> None:
        """Write values to their addresses."""
        ...


@final
@dataclass(slots=True)
class Vectors:
    """Contiguous memory of the host, by address, to be noised block by block.

    The owner of the memory must keep it alive.

    Attributes:
        addresses: Where the first elements are.
        sizes: Numbers of elements.
        dtype: Of all elements.
        cursor: The vector, and the element in it, that comes next.
    """

    addresses: NDArray[np.int64]
    sizes: NDArray[np.int64]
    dtype: np.dtype[Any]
    cursor: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Self | None:
        """Return the memory of tensors, or None if one is not contiguous on the host.

        All have one device and dtype. There may be thousands, so nothing here is a loop
        of Python's.
        """
        if not (parts[0].is_cpu and all(map(Tensor.is_contiguous, parts))):
            return None
        return cls(
            np.fromiter(map(Tensor.data_ptr, parts), np.int64, len(parts)),
            np.fromiter(map(Tensor.numel, parts), np.int64, len(parts)),
            _DTYPES[parts[0].dtype],
        )


@final
class CompiledFloat32:
    """The stage as one loop."""

    def __init__(self, lattice: Lattice, kernel: Kernel, workspace: Workspace) -> None:
        self._lattice = lattice
        self._kernel = kernel
        self._workspace = workspace

    def round_(self, x: Vectors, words_N: _Array, points_N: _Array) -> Undecided:
        """Add noise to the next N elements and round, in place, as numpy would.

        See :meth:`dp.noise._host.float32_stage.NumpyFloat32.round_`. Here ``where`` are
        addresses.
        """
        array, size = self._workspace.array, len(words_N)  # All may stay undecided.
        where, x_C = array("where", size, np.int64), array("x", size, np.float64)
        bits_C = array("bits", size, np.int64)
        count = self._kernel.round_(
            x.addresses,
            x.sizes,
            x.cursor,
            words_N,
            points_N,
            self._lattice.chords,
            tuple(Constants.of(self._lattice.spacing, x.dtype)),
            np.float32(POINT_DISTANCE),
            where,
            x_C,
            bits_C,
        )
        # Copies: the workspace is used again for the next block.
        return Undecided(
            where[:count].copy(), x_C[:count].copy(), bits_C[:count].copy()
        )

    def write(self, left: Undecided, values_C: NDArray[np.float64], x: Vectors) -> None:
        """Write the values of elements that were undecided."""
        self._kernel.write(left.where, values_C.astype(x.dtype))


@final
class KernelInTime:
    """A kernel, as soon as the noise of this process was worth loading one.

    Loading takes 0.6 s, or 2 s where it must be compiled: longer than all noise of a short
    run. A long run is delayed by no more than the loading itself takes.
    """

    def __init__(self) -> None:
        self._drawn = 0

    def __call__(self, sums: Iterable[Tensor]) -> Kernel | None:
        """Return a verified kernel, or None where numba is missing or not worth loading.

        If there is a kernel that cannot be used, a warning says why.
        """
        if verified_kernel.cache_info().currsize == 0:
            self._drawn += _tuning.CALL_IN_ELEMENTS + sum(map(Tensor.numel, sums))
            if self._drawn < _tuning.DRAWN_BEFORE_NUMBA:
                return None
        return verified_kernel()


kernel_for: Final = KernelInTime()


@lru_cache
def verified_kernel() -> Kernel | None:
    """Return the kernel if numba is installed and it does what numpy does."""
    if find_spec("numba") is None:
        return None
    kernel = load_verified_kernel(
        "dp.noise._host.kernels.rounding",
        lambda kernel: _check(cast("Kernel", kernel)),
        otherwise="noise on the host is rounded in many operations",
    )
    return cast("Kernel | None", kernel)


def _check(kernel: Kernel) -> None:
    """Compare the kernel with numpy's operations in every cell; raise if they differ."""
    i = np.arange(_CHECKED)
    words_N = (i * 40503).astype(np.uint16)  # Odd, so that it runs through all cells.
    points_N = (i * 167).astype(np.uint8)
    # Numbers without a generator: what is checked is the same in every process.
    signed = (i * 7919) % 20011 / 10006 - 1
    for dtype in (np.float32, np.float64):
        x_N: _Array = (signed * 10.0 ** (i % 9 - 3)).astype(dtype)  # Of several sizes.
        x_N[:4] = np.nan, np.inf, -np.inf, -1e30
        by_numpy, by_kernel = x_N.copy(), x_N.copy()
        _noise_by_numpy(by_numpy, words_N, points_N)
        _noise_by_kernel(kernel, by_kernel, words_N, points_N)
        if by_numpy.tobytes() != by_kernel.tobytes():
            raise ArithmeticError("its results differ from those of numpy's operations")


def _noise_by_numpy(x_N: _Array, words_N: _Array, points_N: _Array) -> None:
    left = NumpyFloat32(Lattice.of(1.7), Workspace()).round_(x_N, words_N, points_N)
    x_N[left.where] = _marked(left)


def _noise_by_kernel(
    kernel: Kernel, x_N: _Array, words_N: _Array, points_N: _Array
) -> None:
    """Do the same in two blocks and over vectors of several sizes."""
    # One vector is empty and one has a single element, as parameters may.
    starts = np.cumsum((0, *_CHECKED_SIZES[:-1]))
    x = Vectors(
        x_N.ctypes.data + x_N.itemsize * starts, np.array(_CHECKED_SIZES), x_N.dtype
    )
    stage = CompiledFloat32(Lattice.of(1.7), kernel, Workspace())
    half = _CHECKED // 2
    blocks = [
        stage.round_(x, words_N[:half], points_N[:half]),
        stage.round_(x, words_N[half:], points_N[half:]),
    ]
    left = Undecided.of(blocks)
    stage.write(left, _marked(left), x)


def _marked(left: Undecided) -> NDArray[np.float64]:
    """Return numbers that tell from each other whatever may be left."""
    return np.nan_to_num(left.x, posinf=2.0**60, neginf=-(2.0**60)) / 3 + left.bits
