"""First rounding stage on a device as one Triton kernel, and its launch.

Imported only by :mod:`dp.noise._device.float32_stage`, where Triton is installed, and left out
of coverage and doctests for the reasons given in :mod:`dp.noise._device.kernels.chacha`.
``tests/dp/gpu/test_rounding_kernel.py`` compares it with the stage in torch operations,
and so does the first call on a device.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from dp.noise._device.kernels.chacha import mixed, output


__all__ = ("round_in_float32",)

_BLOCKS_OF_A_PROGRAM = 128


def round_in_float32(
    x_N: Tensor,
    words_N: Tensor,
    is_left_N: Tensor,
    *,
    state: Tensor,
    num_blocks: int,
    centres: Tensor,
    spacing: float,
    safe_distance: float,
    error_of_x: float,
) -> None:
    """Add noise to float32 sums and round, in place, where 16 bits decide the rounding.

    Args:
        x_N: The sums, contiguous.
        words_N: Receives the 16 bits of the undecided elements, in int16; its other
            elements are not written.
        is_left_N: Receives whether an element is undecided, as bool.
        state: The 16 words of the first block of ChaCha20.
        num_blocks: The number of blocks. Each has words for 32 elements, taken in the
            order in which ``write_blocks`` writes them.
        centres: The table of the first stage.
        spacing: The lattice's; a power of two.
        safe_distance: The largest distance from an integer that is trusted.
        error_of_x: The addition to the distance for each unit of the sum.
    """
    num_programs = triton.cdiv(num_blocks, _BLOCKS_OF_A_PROGRAM)
    with torch.cuda.device_of(x_N):
        _round[(num_programs,)](  # pyright: ignore[reportIndexIssue]
            x_N,
            words_N,
            is_left_N.view(torch.int8),
            state,
            centres,
            x_N.numel(),
            num_blocks,
            1 / spacing,
            spacing,
            safe_distance,
            error_of_x,
            _BLOCKS_OF_A_PROGRAM,
        )


@triton.jit(do_not_specialize=["num_elements", "num_blocks"])
def _round(  # noqa: PLR0917 -- Triton's arguments are positional.
    x_N: tl.tensor,
    words_N: tl.tensor,
    is_left_N: tl.tensor,
    state: tl.tensor,
    centres: tl.tensor,
    num_elements: tl.tensor,
    num_blocks: tl.tensor,
    inverse: tl.tensor,
    spacing: tl.tensor,
    safe_distance: tl.tensor,
    error_of_x: tl.tensor,
    BLOCKS: tl.constexpr,
) -> None:
    """Round one program's elements.

    Products are by powers of two: contracting one with a sum changes no result.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    pair = tl.arange(0, 2 * BLOCKS)
    x = mixed(state, block)
    for i in tl.static_range(16):
        word = output(state, block, x, i)
        # Of a word of 32 bits the low half is for an even element and the high one for
        # the next, as a view of the words as int16 has them.
        bits = tl.interleave(word & 0xFFFF, word >> 16).to(tl.int32)
        # Word i of block b is for the elements 2 * (i * num_blocks + b) and one more.
        at = 2 * (i * num_blocks.to(tl.int64) + first) + pair
        is_there = (first + pair // 2 < num_blocks) & (at < num_elements)
        sum_ = tl.load(x_N + at, is_there, 0.0) * inverse + tl.load(centres + bits)
        # Rounds sums below 2**22 to the nearest integer; larger ones stay undecided.
        steps = (sum_ + 12582912.0) - 12582912.0
        distance = tl.abs(sum_ - steps) + error_of_x * tl.abs(steps)
        is_safe = distance <= safe_distance  # False if it is NaN.
        tl.store(x_N + at, steps * spacing, is_there & is_safe)
        is_left = is_safe == 0
        tl.store(is_left_N + at, is_left.to(tl.int8), is_there)
        tl.store(words_N + at, bits.to(tl.int16), is_there & is_left)
