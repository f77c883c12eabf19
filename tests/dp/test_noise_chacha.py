"""That words for a GPU are ChaCha20's, under keys that are never used again.

A stand-in for the kernel, by OpenSSL, writes the blocks here. The kernel itself is
tested by ``gpu/test_chacha.py``.
"""

import copy
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from dp.noise import GaussianNoise, _chacha, _device, _gaussian
from dp.noise._chacha import ChaChaWords


CPU = torch.device("cpu")
KERNEL = "dp.noise._chacha_kernel"


def blocks_of(key, counter, num_blocks):
    """The key stream by OpenSSL, from any block of it on."""
    blocks = b""
    for i in range(counter, counter + num_blocks):
        nonce = i.to_bytes(8, "little") + bytes(8)
        cipher = Cipher(algorithms.ChaCha20(key, nonce), mode=None)
        blocks += cipher.encryptor().update(bytes(64))
    return np.frombuffer(blocks, np.int32).reshape(num_blocks, 16)


def write_blocks(state, words, num_blocks):
    """What the kernel does, slowly."""
    whole = state.numpy().tobytes()
    assert whole[:16] == b"expand 32-byte k"
    assert whole[56:] == bytes(8)
    counter = int.from_bytes(whole[48:56], "little")
    blocks = blocks_of(whole[16:48], counter, num_blocks)
    words.numpy()[:] = blocks.T.ravel()


@pytest.fixture(autouse=True)
def _fresh():
    _chacha.kernel_on.cache_clear()
    yield
    _chacha.kernel_on.cache_clear()


@pytest.fixture
def kernel(monkeypatch):
    """A module in the kernel's place, on a machine that seems to have Triton."""
    module = types.ModuleType(KERNEL)
    module.write_blocks = write_blocks
    monkeypatch.setitem(sys.modules, KERNEL, module)
    monkeypatch.setattr(_chacha, "find_spec", lambda name: name)
    # A device that is called CUDA's and is not: nothing is pinned or sent.
    blocks = _chacha._blocks
    monkeypatch.setattr(
        _chacha, "_blocks", lambda write, _device, *rest: blocks(write, CPU, *rest)
    )
    return module


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_words_are_those_of_chacha20(monkeypatch, dtype):
    """Every draw goes on after the blocks of the last one, under one key."""
    key = bytes(range(100, 132))
    monkeypatch.setattr(os, "urandom", lambda n: key[:n])
    words = ChaChaWords(CPU, write_blocks)
    counter = 0
    for count in (10, 0, 1000):
        num_blocks = count * dtype.itemsize // 64 + 1
        expected = blocks_of(key, counter, num_blocks).T.tobytes()
        drawn = words.draw(count, dtype)

        assert drawn.dtype == dtype
        assert drawn.numpy().tobytes() == expected[: count * dtype.itemsize]
        counter += num_blocks


def test_a_key_stream_cannot_be_copied():
    """A second object with the same key would repeat the stream."""
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            duplicate(ChaChaWords(CPU, write_blocks))


def test_a_kernel_that_writes_what_openssl_does_is_used(kernel):
    """It is asked once for each device."""
    device = torch.device("cuda", 1)

    assert _chacha.kernel_on(device) is kernel.write_blocks
    kernel.write_blocks = None
    assert _chacha.kernel_on(device) is write_blocks


def test_a_kernel_that_writes_anything_else_is_not_used(kernel):
    """One wrong bit in one block of two hundred is enough."""

    def wrong(state, words, num_blocks):
        write_blocks(state, words, num_blocks)
        words[16 * 150 + 3] ^= 1 << 20

    kernel.write_blocks = wrong
    with pytest.warns(RuntimeWarning, match="drawn on the host.*is not OpenSSL's"):
        assert _chacha.kernel_on(torch.device("cuda", 0)) is None


def test_a_kernel_that_does_not_compile_is_not_used(kernel):
    """The warning names the device and the cause, as a missing compiler."""

    def broken(*_):
        raise RuntimeError("Failed to find C compiler")

    kernel.write_blocks = broken
    with pytest.warns(
        RuntimeWarning, match="cuda:0.*as safe.*Failed to find C compiler"
    ):
        assert _chacha.kernel_on(torch.device("cuda", 0)) is None


def test_without_triton_and_elsewhere_there_is_no_kernel(kernel, monkeypatch):
    """No warning: there is nothing that could be used."""
    assert _chacha.kernel_on(CPU) is None
    monkeypatch.setattr(_chacha, "find_spec", lambda _: None)
    assert _chacha.kernel_on(torch.device("cuda", 0)) is None
    assert kernel.write_blocks is write_blocks


def test_noise_is_drawn_with_the_kernel(monkeypatch):
    """Each call has a key of its own, and the noise its scale."""
    keys = []
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda n: keys.append(urandom(n)) or keys[-1])
    monkeypatch.setattr(_gaussian, "_WITH_FLOAT64", {"cpu"})
    monkeypatch.setattr(_device, "kernel_on", lambda _: write_blocks)
    drawn = []
    for _ in range(2):
        sums = torch.zeros(100, 100)
        GaussianNoise().add_([sums], stddev=2.0)
        drawn.append(sums)

    assert [len(key) for key in keys] == [32, 32]
    assert keys[0] != keys[1]
    assert not torch.equal(*drawn)
    assert torch.cat(drawn).std().item() == pytest.approx(2, abs=0.06)  # 6 sigma
