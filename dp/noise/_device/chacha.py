"""Uniform integers drawn on a GPU: ChaCha20, keyed by the operating system.

What runs on the device is in :mod:`dp.noise._device.kernels.chacha`, which needs Triton. Where
that is missing, cannot be compiled, or does not give the words that OpenSSL gives, the
words come from the host, as :mod:`dp.noise._device.host_words` draws them.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Final, final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

from dp._keystream import new_key
from dp.noise._device.host_words import pinned
from dp.noise._device.load_kernel import load_verified_kernel


__all__ = ("ChaChaWords", "WriteBlocks", "kernel_on", "num_blocks_for", "written")

WriteBlocks = Callable[[Tensor, Tensor, int], None]

_CONSTANTS: Final = b"expand 32-byte k"
_WORDS: Final = 16  # Of a block, with 4 bytes each.
_CHECKED_FROM: Final = 2**32 - 70  # So that both words of the counter are checked.
_CHECKED: Final = 200  # More blocks than a program of the kernel has.


@final
class ChaChaWords:
    """The key stream of one call on one device, under a fresh key.

    Guarantees:
        * The key comes from :func:`dp._keystream.new_key`; no seed reaches it. It
          is copied to the device, where it lives as long as this object.
        * Blocks are counted with 64 bits, from zero, and none is used twice.

    References:
        RFC 8439, section 2.3, with 20 rounds. Words 12 and 13 are the counter, as in
        Bernstein, "ChaCha, a variant of Salsa20", 2008, and the nonce is zero: a key is
        never used for a second stream.
    """

    def __init__(self, device: torch.device, write_blocks: WriteBlocks) -> None:
        self._device = device
        self._write_blocks = write_blocks
        self._key = new_key("noise")
        self._num_blocks = 0

    def draw(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return *count* integers, uniform over all values of *dtype*."""
        state, num_blocks = self.blocks_for(count * dtype.itemsize)
        words = written(self._write_blocks, state, num_blocks)
        return words.view(dtype)[:count]

    def blocks_for(self, num_bytes: int) -> tuple[Tensor, int]:
        """Return the input of the first of the next blocks, and how many they are.

        They are the caller's from now on: no other call returns one of them.
        """
        num_blocks = num_blocks_for(num_bytes)
        state = _state(self._device, self._key, self._num_blocks)
        self._num_blocks += num_blocks
        return state, num_blocks

    def __reduce__(self) -> str:
        raise TypeError("a key stream cannot be copied or pickled; make a new one")


@lru_cache
def kernel_on(device: torch.device) -> WriteBlocks | None:
    """Return what writes blocks on *device*, if there is such and it writes the right.

    A warning says why a kernel that is there is not used.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    kernel = load_verified_kernel(
        "chacha",
        lambda kernel: _check(kernel.write_blocks, device),
        otherwise=f"random words for {device} are drawn on the host",
    )
    return None if kernel is None else kernel.write_blocks


def _check(write_blocks: WriteBlocks, device: torch.device) -> None:
    """Compare some blocks with those of OpenSSL."""
    key = bytes(range(32))
    state = _state(device, key, _CHECKED_FROM)
    words = written(write_blocks, state, _CHECKED)
    in_order = words.cpu().view(_WORDS, _CHECKED).t().contiguous()
    for i, block in enumerate(in_order.numpy()):
        nonce = (_CHECKED_FROM + i).to_bytes(8, "little") + bytes(8)
        openssl = Cipher(ChaCha20(key, nonce), mode=None).encryptor()
        if block.tobytes() != openssl.update(bytes(4 * _WORDS)):
            raise ArithmeticError(f"block {_CHECKED_FROM + i} is not OpenSSL's")


def _state(device: torch.device, key: bytes, counter: int) -> Tensor:
    """Return the input of a block: constants, key, counter and a nonce of zero."""
    nonce = counter.to_bytes(8, "little") + bytes(8)
    state = pinned(_WORDS, torch.int32, device)
    state.numpy()[:] = np.frombuffer(_CONSTANTS + key + nonce, np.int32)
    return state.to(device, non_blocking=True)


def num_blocks_for(num_bytes: int) -> int:
    """Return how many blocks are enough; at least one, for a kernel to have work."""
    return num_bytes // (4 * _WORDS) + 1


def written(write_blocks: WriteBlocks, state: Tensor, num_blocks: int) -> Tensor:
    """Return blocks, word 0 of all of them first, in int32."""
    words = state.new_empty(_WORDS * num_blocks)
    write_blocks(state, words, num_blocks)
    return words
