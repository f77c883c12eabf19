"""Second rounding stage on a device as two Triton kernels, and their launches.

Imported only by :mod:`dp.noise._device.float64_stage`, where Triton is installed, and left out
of coverage and doctests for the reasons given in :mod:`dp.noise._device.kernels.chacha`.
``tests/dp/gpu/test_decision_kernel.py`` compares them with the stage in torch operations,
and so does the first call on a device.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor


__all__ = ("round_in_float64", "write_tails")

_SIZE = 256  # Elements of a program.
_INTEGERS = tl.constexpr(2.0**52)  # Floats between this and twice that are integers.


def write_tails(words_C: Tensor, more_C: Tensor, tail_C: Tensor) -> None:
    """Write the smaller of ``U`` and ``1 - U`` in float64, at least ``2**-80``.

    Args:
        words_C: The first 16 bits of each ``U``, in int16.
        more_C: The next 64 of them, in int64.
        tail_C: Receives the result.
    """
    size = tail_C.numel()
    with torch.cuda.device_of(tail_C):
        _write_tails[(triton.cdiv(size, _SIZE),)](  # pyright: ignore[reportIndexIssue]
            words_C, more_C, tail_C, size, _SIZE
        )


def round_in_float64(
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
    """Round sums in place where float64 decides the rounding; mark the others.

    Args:
        x_N: Receives the results.
        indices_C: The elements of *x_N* to round, each once.
        x_C: Their sums, which are not read from *x_N*.
        words_C: The first 16 bits of each ``U``, which give the sign.
        tail_C: See ``write_tails``.
        normal_C: Their quantiles.
        constants: Scale, spacing, 1 / spacing, and the smallest tail and the largest
            distance from an integer that are trusted; in float64, on the device.
        is_unsure_C: Receives whether an element stays undecided, as bool.
    """
    size = tail_C.numel()
    with torch.cuda.device_of(x_N):
        _round[(triton.cdiv(size, _SIZE),)](  # pyright: ignore[reportIndexIssue]
            x_N,
            indices_C,
            x_C,
            words_C,
            tail_C,
            normal_C,
            constants,
            is_unsure_C.view(torch.int8),
            size,
            _SIZE,
        )


@triton.jit(do_not_specialize=["size"])
def _write_tails(
    words_C: tl.tensor,
    more_C: tl.tensor,
    tail_C: tl.tensor,
    size: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """Write tails. Products are by powers of two; each half of the 64 bits is exact."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    is_there = at < size
    # int16 may be negative: -1 stands for 65535.
    bits = tl.load(words_C + at, is_there, 0).to(tl.int32) & 0xFFFF
    more = tl.load(more_C + at, is_there, 0)
    is_upper = bits >= 32768  # noqa: PLR2004
    bits = tl.where(is_upper, 65535 - bits, bits)
    more = tl.where(is_upper, ~more, more)
    low = (more & 0xFFFFFFFF).to(tl.float64)
    high = ((more >> 32) & 0xFFFFFFFF).to(tl.float64)
    more = high * 4294967296.0 + low
    tail = (bits.to(tl.float64) + more / 18446744073709551616.0) / 65536.0
    smallest = tl.full((SIZE,), 8.271806125530277e-25, tl.float64)  # 2**-80
    tl.store(tail_C + at, tl.maximum(tail, smallest), is_there)


@triton.jit
def _rint(x: tl.tensor) -> tl.tensor:
    """Round any float64 to the nearest integer, and ties to the even one."""
    size = tl.abs(x)
    # 5.3 + 2**52 has no place for a fraction: 2**52 + 5.
    rounded = (size + _INTEGERS) - _INTEGERS
    rounded = tl.where(x < 0, -rounded, rounded)
    return tl.where(size < _INTEGERS, rounded, x)


@triton.jit(do_not_specialize=["size"])
def _round(  # noqa: PLR0917 -- Triton's arguments are positional.
    x_N: tl.tensor,
    indices_C: tl.tensor,
    x_C: tl.tensor,
    words_C: tl.tensor,
    tail_C: tl.tensor,
    normal_C: tl.tensor,
    constants: tl.tensor,
    is_unsure_C: tl.tensor,
    size: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """Round. Contracting the product with the scale would only save one rounding."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    is_there = at < size
    fraction = tl.load(x_C + at, is_there, 0.0).to(tl.float64) * tl.load(constants + 2)
    whole = _rint(fraction)
    fraction -= whole  # Exact: magnitudes are alike, or whole is 0.
    normal = tl.load(normal_C + at, is_there, 0.0)
    is_upper = tl.load(words_C + at, is_there, 0) < 0
    normal = tl.where(is_upper, -normal, normal)
    sum_ = fraction + normal * tl.load(constants)
    steps = _rint(sum_)
    is_unsure = tl.abs(sum_ - steps) > tl.load(constants + 4)
    is_unsure |= tl.load(tail_C + at, is_there, 1.0) < tl.load(constants + 3)
    result = (steps + whole) * tl.load(constants + 1) + 0.0  # -0 + 0 is 0.
    result = result.to(x_N.dtype.element_ty)
    where = x_N + tl.load(indices_C + at, is_there, 0)
    tl.store(where, result, is_there & (is_unsure == 0))
    tl.store(is_unsure_C + at, is_unsure.to(tl.int8), is_there)
