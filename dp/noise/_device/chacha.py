"""Random words drawn on a GPU: ChaCha20 (RFC 8439), keyed by the operating system.

The kernel is in :mod:`dp.noise._device.kernels.chacha` and needs Triton. If Triton is
missing, or the kernel does not compile or does not reproduce OpenSSL's key stream, words
are drawn on the host instead (:mod:`dp.noise._device.host_words`).

ChaCha20 and not AES, because it needs additions, exclusive ors and rotations only; a GPU
has no instructions for AES, and tables would be slow there.
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
from dp.noise._load_kernel import load_verified_kernel


__all__ = ("ChaChaWords", "WriteBlocks", "kernel_on", "num_blocks_for", "written")

WriteBlocks = Callable[[Tensor, Tensor, int], None]

_CONSTANTS: Final = b"expand 32-byte k"
_WORDS: Final = 16  # In a block, of 4 bytes each.
# The check crosses 2**32, so that both words of the counter are checked.
_CHECKED_FROM: Final = 2**32 - 70
_CHECKED: Final = 200  # Blocks to check: more than one program of the kernel writes.


@final
class ChaChaWords:
    """The key stream of one call on one device, under a fresh key.

    Guarantees:
        * The key comes from :func:`dp._keystream.new_key`; no seed reaches it. It
          is copied to the device, where it lives as long as this object.
        * Blocks are counted with 64 bits, from zero, and none is used twice.

    References:
        RFC 8439, section 2.3, with 20 rounds. Words 12 and 13 are the counter, as in
        Bernstein, "ChaCha, a variant of Salsa20", 2008. The nonce is zero, which is safe
        because a key is never used for a second stream.
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
        """Reserve the next blocks: return the input of the first, and their number.

        No other call returns one of them, so no word of the stream is used twice.
        """
        # Whole blocks: what a call leaves of its last one is thrown away.
        num_blocks = num_blocks_for(num_bytes)
        state = _state(self._device, self._key, self._num_blocks)
        self._num_blocks += num_blocks
        return state, num_blocks

    def __reduce__(self) -> str:
        raise TypeError("a key stream cannot be copied or pickled; make a new one")


@lru_cache
def kernel_on(device: torch.device) -> WriteBlocks | None:
    """Return a verified ChaCha20 kernel for *device*, or None.

    If there is a kernel that cannot be used, a warning says why.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    kernel = load_verified_kernel(
        "dp.noise._device.kernels.chacha",
        lambda kernel: _check(kernel.write_blocks, device),
        otherwise=f"random words for {device} are drawn on the host",
    )
    return None if kernel is None else kernel.write_blocks


def _check(write_blocks: WriteBlocks, device: torch.device) -> None:
    """Compare blocks with OpenSSL's; raise ArithmeticError if they differ."""
    key = bytes(range(32))
    state = _state(device, key, _CHECKED_FROM)
    words = written(write_blocks, state, _CHECKED)
    in_order = words.cpu().view(_WORDS, _CHECKED).t().contiguous()
    for i, block in enumerate(in_order.numpy()):
        # OpenSSL takes words 12 to 15 as one nonce of 16 bytes, of which the counter is
        # the first half.
        nonce = (_CHECKED_FROM + i).to_bytes(8, "little") + bytes(8)
        openssl = Cipher(ChaCha20(key, nonce), mode=None).encryptor()
        if block.tobytes() != openssl.update(bytes(4 * _WORDS)):
            raise ArithmeticError(f"block {_CHECKED_FROM + i} differs from OpenSSL's")


def _state(device: torch.device, key: bytes, counter: int) -> Tensor:
    """Return the initial state of a block: constants, key, counter and zero nonce."""
    nonce = counter.to_bytes(8, "little") + bytes(8)
    state = pinned(_WORDS, torch.int32, device)
    state.numpy()[:] = np.frombuffer(_CONSTANTS + key + nonce, np.int32)
    return state.to(device, non_blocking=True)


def num_blocks_for(num_bytes: int) -> int:
    """Return a sufficient number of blocks; at least one, as a launch needs a grid."""
    return num_bytes // (4 * _WORDS) + 1


def written(write_blocks: WriteBlocks, state: Tensor, num_blocks: int) -> Tensor:
    """Return blocks as int32: word 0 of every block first, then word 1, and so on."""
    words = state.new_empty(_WORDS * num_blocks)
    write_blocks(state, words, num_blocks)
    return words
