"""That Triton's kernel writes ChaCha20's blocks, each word of them.

On a GPU; or on any machine that has Triton, by its interpreter, with
``TRITON_INTERPRET=1 python -m pytest tests/dp/gpu/test_chacha.py``.
"""

import os
import time

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from dp.noise._device import chacha


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="no GPU"),
]


@pytest.fixture(scope="module")
def write_blocks():
    pytest.importorskip("triton")
    from dp.noise._device.kernels import chacha  # noqa: PLC0415 -- it needs Triton.

    return chacha.write_blocks


def drawn(write_blocks, key, counter, num_blocks):
    device = torch.device("cpu" if INTERPRETED else "cuda")
    state = chacha._state(device, key, counter)
    words = chacha.written(write_blocks, state, num_blocks)
    return words.cpu().view(16, num_blocks).t().numpy()


@pytest.mark.parametrize(
    ("counter", "num_blocks"),
    [
        *[(0, 1), (0, 2), (1, 16), (3, 127), (0, 128), (77, 129)],
        *[(2**32 - 70, 333), (2**32, 5), (2**63 - 3, 6), (2**64 - 1, 1)],
    ],
)
def test_blocks_are_those_of_openssl(write_blocks, counter, num_blocks):
    """Whatever the counter and the number, to the last word."""
    key = os.urandom(32)
    blocks = drawn(write_blocks, key, counter, num_blocks)
    for i, block in enumerate(blocks):
        nonce = (counter + i).to_bytes(8, "little") + bytes(8)
        cipher = Cipher(algorithms.ChaCha20(key, nonce), mode=None)

        assert block.tobytes() == cipher.encryptor().update(bytes(64))


def test_blocks_are_those_of_the_rfc(write_blocks):
    """RFC 8439, appendix A.1, test vectors 1 to 3."""
    zero, one = bytes(32), bytes(31) + b"\1"
    for key, counter, start in (
        (zero, 0, "76b8e0ada0f13d90405d6ae55386bd28"),
        (zero, 1, "9f07e7be5551387a98ba977c732d080d"),
        (one, 1, "3aeb5224ecf849929b9d828db1ced4dd"),
    ):
        block = drawn(write_blocks, key, counter, 1)[0]

        assert block.tobytes().startswith(bytes.fromhex(start))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter is slow")
def test_a_long_stream_equals_openssls(write_blocks):
    """Four million blocks at once, which OpenSSL counts by itself."""
    key, num_blocks = os.urandom(32), 4_000_037
    blocks = drawn(write_blocks, key, 0, num_blocks)
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None)
    expected = cipher.encryptor().update(bytes(64 * num_blocks))

    assert np.ascontiguousarray(blocks).tobytes() == expected


@pytest.mark.skipif(INTERPRETED, reason="there is no GPU to choose it for")
def test_this_gpu_uses_the_kernel(recwarn):
    """It is found, compiled, compared and kept, within seconds."""
    pytest.importorskip("triton")
    chacha.kernel_on.cache_clear()
    start = time.perf_counter()

    assert chacha.kernel_on(torch.device("cuda", torch.cuda.current_device()))
    assert time.perf_counter() - start < 60
    assert not recwarn.list
