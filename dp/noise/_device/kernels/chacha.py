"""ChaCha20's block function (RFC 8439) as a Triton kernel, and its launch.

Imported only by :mod:`dp.noise._device.chacha`, where Triton is installed. It needs a GPU, or
``TRITON_INTERPRET=1``, to run, so continuous integration leaves this file out of coverage
and of the search for doctests, and its type checkers cannot resolve the imports. ``tests/dp/gpu/test_chacha.py`` compares every word
with OpenSSL's, and so does the first call on a device for some of them.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor


__all__ = ("mixed", "output", "write_blocks")

_BLOCKS_OF_A_PROGRAM = 128  # One a thread of four warps, in registers.


def write_blocks(state: Tensor, words: Tensor, num_blocks: int) -> None:
    """Write blocks of the key stream, one after the other, word by word.

    Args:
        state: The 16 words of the first block's input, in int32, on the device.
        words: Receives the output, in int32: word 0 of every block, then word 1 of
            every block, and so on, so that neighbours in memory are written at once.
        num_blocks: How many blocks; *words* has 16 times as many elements.
    """
    num_programs = triton.cdiv(num_blocks, _BLOCKS_OF_A_PROGRAM)
    with torch.cuda.device_of(words):
        _write_blocks[(num_programs,)](  # pyright: ignore[reportIndexIssue]
            state, words, num_blocks, _BLOCKS_OF_A_PROGRAM
        )


@triton.jit
def _quarter_round(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor) -> tl.tensor:
    """Apply a quarter round: RFC 8439, section 2.1."""
    a += b
    d ^= a
    # A rotation by 16 of unsigned 32-bit words, then by 12, 8 and 7.
    d = (d << 16) | (d >> 16)
    c += d
    b ^= c
    b = (b << 12) | (b >> 20)
    a += b
    d ^= a
    d = (d << 8) | (d >> 24)
    c += d
    b ^= c
    b = (b << 7) | (b >> 25)
    return a, b, c, d


@triton.jit
def _double_round(x: tl.tensor) -> tl.tensor:
    """Apply a column round and a diagonal round: RFC 8439, section 2.3."""
    x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15 = x
    x0, x4, x8, x12 = _quarter_round(x0, x4, x8, x12)
    x1, x5, x9, x13 = _quarter_round(x1, x5, x9, x13)
    x2, x6, x10, x14 = _quarter_round(x2, x6, x10, x14)
    x3, x7, x11, x15 = _quarter_round(x3, x7, x11, x15)
    x0, x5, x10, x15 = _quarter_round(x0, x5, x10, x15)
    x1, x6, x11, x12 = _quarter_round(x1, x6, x11, x12)
    x2, x7, x8, x13 = _quarter_round(x2, x7, x8, x13)
    x3, x4, x9, x14 = _quarter_round(x3, x4, x9, x14)
    return x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15


@triton.jit
def _word(state: tl.tensor, index: tl.constexpr) -> tl.tensor:
    return tl.load(state + index).to(tl.uint32, bitcast=True)


@triton.jit
def _input(state: tl.tensor, index: tl.constexpr, block: tl.tensor) -> tl.tensor:
    """Return a word of each block's input; 12 and 13 together are the counter."""
    if index == 12 or index == 13:  # noqa: PLR1714, PLR2004 -- Triton has no "in".
        # A counter of 64 bits, with its carry from word 12 to word 13.
        first = (_word(state, 13).to(tl.uint64) << 32) | _word(state, 12).to(tl.uint64)
        counter = first + block.to(tl.uint64)
        return (counter >> (32 * (index - 12))).to(tl.uint32)
    return _word(state, index) + tl.zeros_like(block).to(tl.uint32)


@triton.jit
def _inputs(state: tl.tensor, block: tl.tensor) -> tl.tensor:
    return (
        _input(state, 0, block),
        _input(state, 1, block),
        _input(state, 2, block),
        _input(state, 3, block),
        _input(state, 4, block),
        _input(state, 5, block),
        _input(state, 6, block),
        _input(state, 7, block),
        _input(state, 8, block),
        _input(state, 9, block),
        _input(state, 10, block),
        _input(state, 11, block),
        _input(state, 12, block),
        _input(state, 13, block),
        _input(state, 14, block),
        _input(state, 15, block),
    )


@triton.jit
def mixed(state: tl.tensor, block: tl.tensor) -> tl.tensor:
    """Return the 16 words of each block after 20 rounds."""
    x = _inputs(state, block)
    # 20 rounds: ten of columns and ten of diagonals.
    for _ in range(10):
        x = _double_round(x)
    return x


@triton.jit
def output(
    state: tl.tensor, block: tl.tensor, x: tl.tensor, index: tl.constexpr
) -> tl.tensor:
    """Return a word of each block's key stream: the mixed state plus the input."""
    return x[index] + _input(state, index, block)


@triton.jit(do_not_specialize=["num_blocks"])
def _write_blocks(
    state: tl.tensor, words: tl.tensor, num_blocks: tl.tensor, BLOCKS: tl.constexpr
) -> None:
    """Write blocks by RFC 8439, section 2.3, with Bernstein's counter of 64 bits."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    x = mixed(state, block)
    for i in tl.static_range(16):
        word = output(state, block, x, i).to(tl.int32, bitcast=True)
        # Word i of all blocks lies together, so that neighbouring threads write
        # neighbours.
        at = i * num_blocks.to(tl.int64) + block
        tl.store(words + at, word, block < num_blocks)
