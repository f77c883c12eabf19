"""Cryptographically secure random bytes: AES-256 in counter mode, keyed by the OS.

Every key of :mod:`dp.sampling` and :mod:`dp.noise` is drawn here. A :class:`Keystream`
lives for one draw: its 256-bit key comes from ``os.urandom``, is used for one stream
from counter zero, and is forgotten with it. So there is no state to seed, save, copy,
share between threads or inherit over a fork, and no stream is ever produced twice.
Generators that run elsewhere, such as ChaCha20 on a GPU, take their keys from
:func:`new_key`, which keeps the same rule.
"""

import os
from typing import Any, Final, final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray


__all__ = ("KEY_BITS", "Keystream", "new_key")

KEY_BITS: Final = 256
_ZEROS: Final = bytes(1 << 20)  # Never written, so it is one page of memory.


def new_key() -> bytes:
    """Return a 256-bit key from the operating system."""
    return os.urandom(KEY_BITS // 8)


@final
class Keystream:
    """A stream of uniform bytes under a fresh key.

    Guarantees:
        * The key is 256 bits from ``os.urandom``; no argument or seed reaches it.
        * It cannot be copied or pickled, so its bytes cannot be produced again.

    References:
        NIST SP 800-38A, section 6.5 (counter mode); FIPS 197 (AES).
    """

    __slots__ = ("_cipher",)

    def __init__(self) -> None:
        self._cipher: CipherContext = Cipher(
            AES256(os.urandom(KEY_BITS // 8)), CTR(bytes(16))
        ).encryptor()

    def fill(self, words: NDArray[Any]) -> None:
        """Write integers, uniform over all values of the dtype, to a vector."""
        buffer = words.view(np.uint8).data
        for start in range(0, len(buffer), len(_ZEROS)):
            part = buffer[start : start + len(_ZEROS)]
            self._cipher.update_into(_ZEROS[: len(part)], part)

    def integers(self, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return *count* integers, uniform over all values of *dtype*."""
        words = np.empty(count, dtype=dtype)
        self.fill(words)
        return words

    def __reduce__(self) -> str:
        raise TypeError("a keystream cannot be copied or pickled; make a new one")
