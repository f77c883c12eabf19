"""First rounding stage on the host: elements decided by 24 random bits in float32.

This is the stage in numpy's operations. :mod:`dp.noise._host.compiled_stage` has the same
as one compiled loop, with the same results to the last bit. The bounds are argued for in
:mod:`dp.noise._host.lattice`.

Shapes: ``N`` elements of a block, ``C`` of them that float32 left undecided.
"""

from typing import Any, NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray

from dp.noise._host.lattice import (
    FLOAT32_ERROR,
    FLOAT32_ERROR_OF_SUM,
    POINT_BITS,
    POINT_DISTANCE,
    Lattice,
)
from dp.noise._host.workspace import Workspace


__all__ = ("Constants", "NumpyFloat32", "Undecided")

_Array = NDArray[Any]


class Undecided(NamedTuple):
    """The C elements that float32 left: where they are, their sums and their 24 bits."""

    where: NDArray[np.int64]
    x: NDArray[np.float64]
    bits: NDArray[np.int64]

    @classmethod
    def of(cls, blocks: "list[Undecided]") -> Self:
        """Return the undecided elements of several blocks."""
        if len(blocks) == 1:
            return cls(*blocks[0])
        return cls(*map(np.concatenate, zip(*blocks, strict=True)))


class Constants(NamedTuple):
    """The numbers of the stage, of the type of the sums; each is exact in float32."""

    inverse: Any
    spacing: Any
    integers: Any
    safe_distance: Any
    error_of_sum: Any

    @classmethod
    def of(cls, spacing: float, dtype: np.dtype[Any]) -> Self:
        """Return the numbers for a lattice and sums of *dtype*.

        Adding and subtracting ``integers`` rounds whatever is below a third of it to the
        nearest integer, to the even one of two. Unlike ``rint`` it has no negative zero.
        Larger sums are undecided in any case, by their errors.
        """
        return cls(
            inverse=dtype.type(1 / spacing),
            spacing=dtype.type(spacing),
            # 12582912 in float32, where neighbours are 1 apart: 5.3 + 12582912 is
            # 12582917, less 12582912 is 5.
            integers=dtype.type(1.5 / np.finfo(dtype).eps),
            safe_distance=dtype.type(0.5 - FLOAT32_ERROR),
            error_of_sum=dtype.type(FLOAT32_ERROR_OF_SUM),
        )


@final
class NumpyFloat32:
    """The stage in numpy's operations.

    On the host and on one thread: torch would start its threads for dozens of operations
    too small for them.
    """

    def __init__(self, lattice: Lattice, workspace: Workspace) -> None:
        self._lattice = lattice
        self._first, self._reach = lattice.columns
        self._workspace = workspace

    @np.errstate(all="ignore")  # An infinite sum may become NaN, as with any noise.
    def round_(self, x_N: _Array, words_N: _Array, points_N: _Array) -> Undecided:
        """Add noise and round, in place; leave and return what 24 bits do not decide.

        Args:
            x_N: The sums, in float32 or float64.
            words_N: The first 16 bits of each element's ``U``.
            points_N: The next 8.
        """
        array, size, dtype = self._workspace.array, x_N.size, x_N.dtype
        constants = Constants.of(self._lattice.spacing, x_N.dtype)
        noise_N, reach_N = self._noise(words_N, points_N)
        sum_N = np.multiply(x_N, constants.inverse, out=array("sum", size, dtype))
        sum_N += noise_N
        steps_N = np.add(sum_N, constants.integers, out=array("steps", size, dtype))
        steps_N -= constants.integers
        distance_N = np.abs(np.subtract(sum_N, steps_N, out=sum_N), out=sum_N)
        # Example: a sum of 5.3 with a reach of 0.01 is rounded to 5 whatever the bits
        # that were not drawn are, being 0.3 away. One of 5.495 may be 5 or 6:
        # undecided.
        distance_N += reach_N
        error_N = np.abs(steps_N, out=array("error", size, dtype))
        error_N *= constants.error_of_sum
        distance_N += error_N
        is_safe_N = array("is safe", size, np.bool_)
        np.less_equal(distance_N, constants.safe_distance, out=is_safe_N)  # NaN is not.
        where_C = np.flatnonzero(np.logical_not(is_safe_N, out=is_safe_N))
        # What is undecided is left as it was, without noise, for the next stage.
        x_C = x_N.take(where_C)
        np.multiply(steps_N, constants.spacing, out=x_N)
        x_N[where_C] = x_C
        # 16 and 8 bits as one number of 24, which the next stage continues.
        bits_C = words_N.take(where_C).astype(np.int64) << POINT_BITS
        bits_C |= points_N.take(where_C)
        return Undecided(where_C, x_C.astype(np.float64), bits_C)

    def _noise(self, words_N: _Array, points_N: _Array) -> tuple[_Array, _Array]:
        """Return every element's point in lattice units, or NaN, and its reach."""
        array, size = self._workspace.array, words_N.size
        cells_N = array("cells", size, np.int64)
        cells_N[:] = words_N  # Numpy indexes with 8 bytes; once for both columns.
        first_N = array("first", size, np.float32)
        reach_N = array("reach", size, np.float32)
        # Cells are in range; by "clip" numpy does not copy what it takes.
        np.take(self._first, cells_N, out=first_N, mode="clip")
        np.take(self._reach, cells_N, out=reach_N, mode="clip")
        noise_N = array("noise", size, np.float32)
        np.multiply(points_N, np.float32(POINT_DISTANCE), out=noise_N)
        noise_N *= reach_N
        noise_N += first_N
        return noise_N, reach_N
