"""The float32 stage on the host as one compiled loop, and nothing else.

Imported by :mod:`dp.noise._host.compiled_stage` alone, where numba is installed. Coverage
sees no compiled code, so the file is left out of it; the first call in a process compares
the loop with numpy's operations, and so does ``tests/dp/test_noise_kernel.py``.

Sums are given by address and not as arrays: thousands of small parameters are then noised
where they are, in one call and without a copy. Numba's documented way from an address to
an array is :func:`numba.carray` of a pointer.

Nothing here depends on constants of other modules, because numba's cache on disk notices
changes of this file only; they are arguments.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray


__all__ = ("round_", "write")

_Integers = NDArray[np.int64]

# Elements whose table rows are gathered before the arithmetic. A loop that does both is
# not vectorised; this many rows stay in the first cache.
_PART = 256


@intrinsic
def _pointer(_context: Any, address: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """A pointer to numbers of the type of *like*."""
    pointer = types.CPointer(like)

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(pointer))

    return pointer(address, like), generate


@numba.njit(nogil=True, cache=True)
def _round_part(  # noqa: PLR0917 -- numba's arguments are positional.
    x: Any,
    words: Any,
    points: Any,
    chords: Any,
    inverse: Any,
    spacing: Any,
    integers: Any,
    safe_distance: Any,
    error_of_sum: Any,
    point_distance: Any,
    first: Any,
    reach: Any,
    is_left: Any,
) -> Any:
    """Round what is safe, in place; mark the rest, and return how many that are."""
    for i in range(len(x)):
        cell = words[i]
        first[i] = chords[cell, 0]
        reach[i] = chords[cell, 1]
    num_left = np.int32(0)
    for i in range(len(x)):
        noise = first[i] + reach[i] * (np.float32(points[i]) * point_distance)
        sum_ = x[i] * inverse + noise
        steps = (sum_ + integers) - integers
        distance = abs(sum_ - steps) + reach[i] + error_of_sum * abs(steps)
        is_safe = distance <= safe_distance  # False if it is NaN.
        x[i] = steps * spacing if is_safe else x[i]
        is_left[i] = np.int32(not is_safe)
        num_left += is_left[i]
    return num_left


@numba.njit(nogil=True, cache=True)
def round_(  # noqa: PLR0917 -- numba's arguments are positional.
    addresses_T: _Integers,
    sizes_T: _Integers,
    cursor: _Integers,
    words_N: NDArray[np.uint16],
    points_N: NDArray[np.uint8],
    chords: NDArray[np.float32],
    inverse: Any,
    spacing: Any,
    integers: Any,
    safe_distance: Any,
    error_of_sum: Any,
    point_distance: Any,
    where_C: _Integers,
    x_C: NDArray[np.float64],
    bits_C: _Integers,
) -> int:
    """Add noise to the next N elements and round, in place, where 24 bits decide it.

    Args:
        addresses_T: Where in memory the first elements of T vectors are. The vectors are
            contiguous, and of the type of *inverse*.
        sizes_T: The numbers of their elements.
        cursor: The vector and the element in it to begin with; afterwards, to go on with.
        words_N: The first 16 bits of each element's ``U``, as many as there are left.
        points_N: The next 8.
        chords: See :class:`dp.noise._host.lattice.Lattice`.
        inverse: Of the spacing.
        spacing: The lattice's.
        integers: See :class:`dp.noise._host.float32_stage.Constants`.
        safe_distance: The largest distance from an integer that is trusted.
        error_of_sum: What to add to the distance for each unit of the sum.
        point_distance: The distance of neighbouring points, in reaches.
        where_C: Receives the addresses of elements that stay undecided.
        x_C: Receives their values, which are not changed.
        bits_C: Receives their 24 bits.

    Returns:
        How many elements are undecided.
    """
    first = np.empty(_PART, np.float32)
    reach = np.empty(_PART, np.float32)
    is_left = np.empty(_PART, np.int32)
    segment, offset = cursor
    done = 0
    count = 0
    while done < len(words_N) and segment < len(sizes_T):
        size = min(sizes_T[segment] - offset, len(words_N) - done)
        vector = numba.carray(
            _pointer(addresses_T[segment], inverse), (sizes_T[segment],)
        )
        x = vector[offset : offset + size]
        address = addresses_T[segment] + offset * x.itemsize
        for start in range(0, size, _PART):
            stop = min(start + _PART, size)
            part = x[start:stop]
            words = words_N[done + start : done + stop]
            points = points_N[done + start : done + stop]
            num_left = _round_part(
                part,
                words,
                points,
                chords,
                inverse,
                spacing,
                integers,
                safe_distance,
                error_of_sum,
                point_distance,
                first,
                reach,
                is_left,
            )
            if num_left == 0:
                continue
            for i in range(stop - start):
                if is_left[i]:
                    where_C[count] = address + (start + i) * x.itemsize
                    x_C[count] = part[i]
                    bits_C[count] = (np.int64(words[i]) << 8) | np.int64(points[i])
                    count += 1
        done += size
        offset += size
        if offset == sizes_T[segment]:
            segment += 1
            offset = 0
    cursor[0] = segment
    cursor[1] = offset
    return count


@numba.njit(nogil=True, cache=True)
def write(where_C: _Integers, values_C: Any) -> None:
    """Write each value to its address."""
    for i in range(len(where_C)):
        numba.carray(_pointer(where_C[i], values_C[i]), (1,))[0] = values_C[i]
