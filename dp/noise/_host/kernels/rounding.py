"""The float32 stage on the host as one compiled loop, and nothing else.

Imported by :mod:`dp.noise._host.compiled_stage` alone, where numba is installed. Coverage
sees no compiled code, so the file is left out of it; the first call in a process compares
the loop with numpy's operations, and so does ``tests/dp/test_noise_kernel.py``.

Sums are given by address and not as arrays: thousands of small parameters are then noised
where they are, in one call and without a copy. Numba's documented way from an address to
an array is ``numba.carray`` of a pointer.

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


_types: Any = types  # Its names are made at run time, in the eyes of type checkers.


def _typed(_context: Any, address: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Type, and generate code for, a pointer to numbers of the type of *like*."""
    pointer = _types.CPointer(like)

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(pointer))

    return pointer(address, like), generate


_pointer: Any = intrinsic(_typed)
_carray: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage] -- documented


@numba.njit(nogil=True, cache=True)
def _round_part(  # noqa: PLR0917 -- numba's arguments are positional.
    x: Any,
    words: Any,
    points: Any,
    chords: Any,
    constants: Any,
    point_distance: Any,
    first: Any,
    reach: Any,
    is_left: Any,
) -> Any:
    """Round what is safe, in place; mark the rest, and return how many that are."""
    inverse, spacing, integers, safe_distance, error_of_sum = constants
    for i in range(len(x)):
        cell = words[i]
        first[i] = chords[cell, 0]
        reach[i] = chords[cell, 1]
    num_left = np.int32(0)
    for i in range(len(x)):  # No branches and no calls, so that it is vectorised.
        # Point k of 256 is k point distances behind the first; distances are in
        # reaches.
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
def _round_vector(  # noqa: PLR0917 -- numba's arguments are positional.
    x: Any,
    address: Any,
    words_N: Any,
    points_N: Any,
    chords: Any,
    constants: Any,
    point_distance: Any,
    where_C: Any,
    x_C: Any,
    bits_C: Any,
) -> int:
    """Do the same to a vector, a part at a time; take down what is undecided."""
    first = np.empty(_PART, np.float32)
    reach = np.empty(_PART, np.float32)
    is_left = np.empty(_PART, np.int32)
    count = 0
    for start in range(0, len(x), _PART):
        stop = min(start + _PART, len(x))
        part, words = x[start:stop], words_N[start:stop]
        points = points_N[start:stop]
        num_left = _round_part(
            part,
            words,
            points,
            chords,
            constants,
            point_distance,
            first,
            reach,
            is_left,
        )
        if num_left == 0:  # Of 9 in 10 parts.
            continue
        for i in range(stop - start):
            if is_left[i]:
                # Addresses, since the elements of a block may be of a hundred small
                # parameters.
                where_C[count] = address + (start + i) * x.itemsize
                x_C[count] = part[i]
                bits_C[count] = (np.int64(words[i]) << 8) | np.int64(points[i])
                count += 1
    return count


@numba.njit(nogil=True, cache=True)
def round_(  # noqa: PLR0917 -- numba's arguments are positional.
    addresses_T: _Integers,
    sizes_T: _Integers,
    cursor: _Integers,
    words_N: NDArray[np.uint16],
    points_N: NDArray[np.uint8],
    chords: NDArray[np.float32],
    constants: Any,
    point_distance: Any,
    where_C: _Integers,
    x_C: NDArray[np.float64],
    bits_C: _Integers,
) -> int:
    """Add noise to the next N elements and round, in place, where 24 bits decide it.

    Args:
        addresses_T: Where in memory the first elements of T vectors are. The vectors are
            contiguous, and of the type of *constants*.
        sizes_T: The numbers of their elements.
        cursor: The vector and the element in it to begin with; afterwards, to go on with.
        words_N: The first 16 bits of each element's ``U``.
        points_N: The next 8.
        chords: See :class:`dp.noise._host.lattice.Lattice`.
        constants: See :class:`dp.noise._host.float32_stage.Constants`.
        point_distance: The distance of neighbouring points, in reaches; in float32.
        where_C: Receives the addresses of elements that stay undecided. There is room
            for N.
        x_C: Receives their values, which are not changed.
        bits_C: Receives their 24 bits.

    Returns:
        How many elements are undecided.
    """
    # Example: vectors of 10, 3 and 500 elements in blocks of 256: the first block ends
    # at element 243 of the third, where the next one goes on.
    segment, offset = cursor
    done = count = 0
    while done < len(words_N) and segment < len(sizes_T):
        # The type of the constants is that of the sums.
        vector = _carray(
            _pointer(addresses_T[segment], constants[0]), (sizes_T[segment],)
        )
        x = vector[offset : offset + len(words_N) - done]
        count += _round_vector(
            x,
            addresses_T[segment] + offset * x.itemsize,
            words_N[done : done + len(x)],
            points_N[done : done + len(x)],
            chords,
            constants,
            point_distance,
            where_C[count:],
            x_C[count:],
            bits_C[count:],
        )
        done += len(x)
        offset += len(x)
        if offset == sizes_T[segment]:
            segment, offset = segment + 1, 0
    cursor[0], cursor[1] = segment, offset
    return count


@numba.njit(nogil=True, cache=True)
def write(where_C: _Integers, values_C: Any) -> None:
    """Write each value to its address."""
    for i in range(len(where_C)):
        _carray(_pointer(where_C[i], values_C[i]), (1,))[0] = values_C[i]
