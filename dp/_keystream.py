"""Cryptographically secure random bytes: AES-256 in counter mode, keyed by the OS.

Every key of sampling and noise comes from :func:`new_key`; on the host its stream is a
:class:`Keystream`, on a GPU ChaCha20. A stream lives for one draw: its 256-bit key is
used from counter zero, and is forgotten with it. So there is no state to seed, save,
copy, share between threads or inherit over a fork, and no stream is produced twice.

An audit replays a run on neighbouring data, and needs its coins again, as a person does
who debugs one: :class:`RepeatedKeys` fixes them for their own context alone. Other threads, and other
tasks of an event loop, go on with keys of the OS.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray


__all__ = (
    "KEY_BITS",
    "Keystream",
    "RepeatedKeys",
    "are_replayed",
    "new_key",
    "replayed_keys",
)

KEY_BITS: Final = 256
_BLOCK: Final = 16  # Bytes of AES at a time.
_FROM_ZERO: Final = CTR(bytes(_BLOCK))
_replayed: ContextVar["RepeatedKeys | None"] = ContextVar("repeated keys", default=None)
# Never written, so it is one page of memory; a part of a view is no copy.
_ZEROS: Final = memoryview(bytes(1 << 20))


def are_replayed() -> bool:
    """Whether keys of this context come again, as they did before."""
    return _replayed.get() is not None


def new_key(purpose: str = "noise") -> bytes:
    """Return a key that was never used.

    Guarantees:
        * It is 256 bits from ``os.urandom``, outside of :func:`replayed_keys` and of
          :meth:`RepeatedKeys.used`.

    Args:
        purpose: What is drawn under the key. Replayed keys are counted by it, so that
            another number of draws for one purpose does not change those for others.
    """
    repeated = _replayed.get()
    return os.urandom(KEY_BITS // 8) if repeated is None else repeated.next_key(purpose)


@final
class RepeatedKeys:
    """Keys that are the same every time, in the order they are asked for.

    NOT PRIVATE: whatever is drawn under them can be predicted by anyone who knows the
    name.

    Args:
        name: Under other names are other keys.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._counts: Counter[str] = Counter()

    def next_key(self, purpose: str) -> bytes:
        """Return the next key for a purpose."""
        self._counts[purpose] += 1
        number = f"{self._name}{purpose} {self._counts[purpose]}"
        return hashlib.shake_256(number.encode()).digest(KEY_BITS // 8)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let keys of this context be these, going on where they were left."""
        token = _replayed.set(self)
        try:
            yield
        finally:
            _replayed.reset(token)


@contextmanager
def replayed_keys() -> Iterator[None]:
    """Give this context the same keys every time, in the order they are asked for.

    NOT PRIVATE: whatever is drawn meanwhile can be predicted by anyone. Threads that
    are started meanwhile have a context of their own, and keys of the OS.
    """
    with RepeatedKeys().used():
        yield


@final
class Keystream:
    """A stream of uniform bytes under a fresh key.

    Guarantees:
        * The key comes from :func:`new_key`; no argument or seed reaches it.
        * It cannot be copied or pickled, and :meth:`fill` never writes a byte twice.

    Attributes:
        position: How many bytes were drawn.

    Args:
        purpose: What is drawn from it.

    References:
        NIST SP 800-38A, section 6.5 (counter mode); FIPS 197 (AES).
    """

    __slots__ = ("_cipher", "_key", "position")

    def __init__(self, purpose: str = "coins") -> None:
        self._key = AES256(new_key(purpose))
        self._cipher: CipherContext = Cipher(self._key, _FROM_ZERO).encryptor()
        self.position = 0

    def fill(self, words: NDArray[Any]) -> None:
        """Write integers, uniform over all values of the dtype, to a vector."""
        buffer = words.view(np.uint8).data
        for start in range(0, len(buffer), len(_ZEROS)):
            part = buffer[start : start + len(_ZEROS)]
            self._cipher.update_into(_ZEROS[: len(part)], part)
        self.position += len(buffer)

    def again(self, start: int, size: int) -> bytes:
        """Return bytes that were drawn before, to verify what was made of them.

        Raises:
            ValueError: If they were not drawn yet.
        """
        if start + size > self.position:
            raise ValueError(
                f"bytes {start} to {start + size} were not drawn yet, of {self.position}"
            )
        block, skipped = divmod(start, _BLOCK)
        cipher = Cipher(self._key, CTR(block.to_bytes(_BLOCK, "big"))).encryptor()
        return cipher.update(bytes(skipped + size))[skipped:]

    def integers(self, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return *count* integers, uniform over all values of *dtype*."""
        words = np.empty(count, dtype=dtype)
        self.fill(words)
        return words

    def __reduce__(self) -> str:
        raise TypeError("a keystream cannot be copied or pickled; make a new one")
