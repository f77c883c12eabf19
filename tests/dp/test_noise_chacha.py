"""That words for a GPU are ChaCha20's, under keys that are never used again.

Stand-ins for the kernels, by OpenSSL and torch, are what is called here. The kernels
themselves are tested by ``gpu/test_chacha.py`` and ``gpu/test_rounding_kernel.py``.
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

from dp.noise import GaussianNoise, _gaussian
from dp.noise._device import chacha, float32_stage, float64_stage
from dp.noise._device.chacha import ChaChaWords
from dp.noise._device.float32_stage import Lattice, TorchFloat32, TritonFloat32
from dp.noise._device.float64_stage import TorchFloat64, TritonFloat64
from dp.noise._device.host_words import HostWords
from dp.noise._device.noise import OnDevice, _noise_on


CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
KERNEL = "dp.noise._device.kernels.chacha"
ROUNDING_KERNEL = "dp.noise._device.kernels.rounding"
DECISION_KERNEL = "dp.noise._device.kernels.decision"


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


def round_in_float32(
    x_N,
    words_N,
    is_left_N,
    *,
    state,
    num_blocks,
    centres,
    spacing,
    safe_distance,
    **rest,
):
    """What the other kernel does, in other words."""
    words = state.new_empty(16 * num_blocks)
    write_blocks(state, words, num_blocks)
    words = words.view(torch.int16)[: len(x_N)]
    sum_N = x_N / spacing + centres[words.int() & 0xFFFF]
    distance_N = (sum_N - sum_N.round()).abs() + rest[
        "error_of_x"
    ] * sum_N.round().abs()
    is_left_N[:] = ~(distance_N <= safe_distance)
    x_N[:] = torch.where(is_left_N, x_N, sum_N.round() * spacing + 0.0)
    words_N[is_left_N] = words[is_left_N]


def write_tails(words_C, more_C, tail_C):
    """The smaller of ``U`` and ``1 - U``, by integers of any size."""
    for i, (word, more) in enumerate(zip(words_C, more_C, strict=True)):
        u = ((int(word) & 0xFFFF) << 64) + (int(more) & (2**64 - 1))
        tail_C[i] = max(1, min(u, 2**80 - 1 - u)) / 2**80


def round_in_float64(
    x_N, *, indices_C, x_C, words_C, tail_C, normal_C, constants, is_unsure_C
):
    """What the last kernel does, in other words."""
    scale, spacing, _, smallest, safe_distance = constants.tolist()
    fraction_C = x_C.double() / spacing
    whole_C = fraction_C.round()
    fraction_C -= whole_C
    sum_C = fraction_C - normal_C * scale * words_C.sign().where(words_C != 0, 1) * -1
    steps_C = sum_C.round()
    is_unsure_C[:] = (tail_C < smallest) | ((sum_C - steps_C).abs() > safe_distance)
    result_C = (steps_C + whole_C) * spacing + 0.0
    sure_C = ~is_unsure_C
    x_N[indices_C[sure_C]] = result_C[sure_C].to(x_N.dtype)


@pytest.fixture(autouse=True)
def _fresh():
    asked = (
        chacha.kernel_on,
        float32_stage.rounding_kernel_on,
        float64_stage.last_stage_on,
    )
    for each in asked:
        each.cache_clear()
    yield
    for each in asked:
        each.cache_clear()


@pytest.fixture
def kernel(monkeypatch):
    """A module in the kernel's place, on a machine that seems to have Triton."""
    module = types.ModuleType(KERNEL)
    module.write_blocks = write_blocks
    monkeypatch.setitem(sys.modules, KERNEL, module)
    monkeypatch.setattr(chacha, "find_spec", lambda name: name)
    # A device that is called CUDA's and is not: nothing is pinned or sent.
    state = chacha._state
    monkeypatch.setattr(chacha, "_state", lambda _device, *rest: state(CPU, *rest))
    return module


@pytest.fixture
def rounding_kernel(monkeypatch):
    """The same for the other kernel."""
    module = types.ModuleType(ROUNDING_KERNEL)
    module.round_in_float32 = round_in_float32
    monkeypatch.setitem(sys.modules, ROUNDING_KERNEL, module)
    return module


@pytest.fixture
def decision_kernel(monkeypatch):
    """The same for the last two kernels."""
    module = types.ModuleType(DECISION_KERNEL)
    module.write_tails = write_tails
    module.round_in_float64 = round_in_float64
    monkeypatch.setitem(sys.modules, DECISION_KERNEL, module)
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

    assert chacha.kernel_on(device) is kernel.write_blocks
    kernel.write_blocks = None
    assert chacha.kernel_on(device) is write_blocks


def test_a_kernel_that_writes_anything_else_is_not_used(kernel):
    """One wrong bit in one block of two hundred is enough."""

    def wrong(state, words, num_blocks):
        write_blocks(state, words, num_blocks)
        words[16 * 150 + 3] ^= 1 << 20

    kernel.write_blocks = wrong
    with pytest.warns(
        RuntimeWarning, match="drawn on the host.*differs from OpenSSL's"
    ):
        assert chacha.kernel_on(CUDA) is None


def test_a_kernel_that_does_not_compile_is_not_used(kernel):
    """The warning names the device and the cause, as a missing compiler."""

    def broken(*_):
        raise RuntimeError("Failed to find C compiler")

    kernel.write_blocks = broken
    with pytest.warns(
        RuntimeWarning, match="cuda:0.*as safe.*Failed to find C compiler"
    ):
        assert chacha.kernel_on(CUDA) is None


def test_without_triton_and_elsewhere_there_is_no_kernel(kernel, monkeypatch):
    """No warning: there is nothing that could be used."""
    assert chacha.kernel_on(CPU) is None
    monkeypatch.setattr(chacha, "find_spec", lambda _: None)
    assert chacha.kernel_on(CUDA) is None
    assert kernel.write_blocks is write_blocks


def test_a_rounding_kernel_that_does_what_torch_does_is_used(rounding_kernel):
    """It is asked once for each device."""
    found = float32_stage.rounding_kernel_on(CPU, write_blocks)
    assert found is round_in_float32

    rounding_kernel.round_in_float32 = None
    assert float32_stage.rounding_kernel_on(CPU, write_blocks) is round_in_float32


@pytest.mark.parametrize("change", ["result", "left", "words"])
def test_a_rounding_kernel_that_errs_anywhere_is_not_used(rounding_kernel, change):
    """A result, an element that is left, or its bits: one of 65 543 is enough."""

    def wrong(x_N, words_N, is_left_N, **rest):
        round_in_float32(x_N, words_N, is_left_N, **rest)
        if change == "result":
            safe = (~is_left_N).nonzero()[-1]
            x_N[safe] += rest["spacing"]
        elif change == "left":
            is_left_N[is_left_N.nonzero()[-1]] = False
        else:
            words_N[is_left_N.nonzero()[-1]] += 1

    rounding_kernel.round_in_float32 = wrong
    with pytest.warns(
        RuntimeWarning, match="as safe and slower.*differ from those of torch"
    ):
        assert float32_stage.rounding_kernel_on(CPU, write_blocks) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_kernel_takes_the_words_that_many_operations_take(monkeypatch, dtype):
    """Draw for draw: both go on where the last draw ended."""
    monkeypatch.setattr(os, "urandom", lambda n: bytes(range(n)))
    lattice = Lattice.on(CPU, 1.7)
    streams = [ChaChaWords(CPU, write_blocks) for _ in range(2)]
    by_kernel = TritonFloat32(lattice, streams[0], round_in_float32)
    in_torch = TorchFloat32(lattice, streams[1])
    for count in (5000, 1, 33):
        x = torch.linspace(-100, 100, count, dtype=dtype)
        noisy, expected = x.clone(), x.clone()
        left, expected_left = by_kernel.round_(noisy), in_torch.round_(expected)
        expected[left.indices] = noisy[left.indices] = 0.0

        assert all(map(torch.equal, left, expected_left))
        assert torch.equal(noisy, expected)


@pytest.mark.slow
def test_decision_kernels_that_do_what_torch_does_are_used(decision_kernel):
    """They are asked once for each device."""
    assert float64_stage.last_stage_on(CPU) is decision_kernel

    decision_kernel.write_tails = None
    assert float64_stage.last_stage_on(CPU) is decision_kernel


@pytest.mark.slow
@pytest.mark.parametrize("change", ["tail", "result", "unsure"])
def test_decision_kernels_that_err_anywhere_are_not_used(decision_kernel, change):
    """A tail that is a millionth off, a result, or more trust than is due."""

    def wrong_tails(words_C, more_C, tail_C):
        write_tails(words_C, more_C, tail_C)
        tail_C[1000:2000] *= 1.000001

    def wrong_rounding(x_N, *, indices_C, is_unsure_C, **rest):
        round_in_float64(x_N, indices_C=indices_C, is_unsure_C=is_unsure_C, **rest)
        if change == "unsure":
            is_unsure_C[:] = False
        else:
            x_N[indices_C[5000]] += 0.1

    if change == "tail":
        decision_kernel.write_tails = wrong_tails
    else:
        decision_kernel.round_in_float64 = wrong_rounding
    with pytest.warns(
        RuntimeWarning, match="refined in many operations.*differ from those of"
    ):
        assert float64_stage.last_stage_on(CPU) is None


@pytest.mark.usefixtures("kernel")
def test_a_device_gets_what_it_can_run(rounding_kernel, decision_kernel, monkeypatch):
    """All kernels, some of them, the words' alone, or none."""
    lattice = Lattice.on(CPU, 1.7)
    monkeypatch.setattr(Lattice, "on", lambda *_: lattice)
    monkeypatch.setattr(float32_stage, "_check", lambda *_: None)
    monkeypatch.setattr(float64_stage, "_check", lambda *_: None)

    def found(device):
        float32_stage.rounding_kernel_on.cache_clear()
        noise = _noise_on(device, 1.7, None, 1)
        assert noise._lattice is lattice
        return [type(p) for p in (noise._words, noise._first_stage, noise._last_stage)]

    assert found(CUDA) == [ChaChaWords, TritonFloat32, TritonFloat64]
    del rounding_kernel.round_in_float32
    with pytest.warns(RuntimeWarning, match="rounded in many operations"):
        assert found(CUDA) == [ChaChaWords, TorchFloat32, TritonFloat64]
    float64_stage.last_stage_on.cache_clear()
    monkeypatch.setitem(sys.modules, DECISION_KERNEL, None)
    with pytest.warns(RuntimeWarning) as warned:
        assert found(CUDA) == [ChaChaWords, TorchFloat32, TorchFloat64]
    assert ["refined" in str(w.message) for w in warned] == [True, False]
    assert found(CPU) == [HostWords, TorchFloat32, TorchFloat64]
    assert decision_kernel.write_tails is write_tails


@pytest.mark.parametrize("stage", [TritonFloat32, TorchFloat32])
def test_temporaries_of_a_long_vector_stay_small(stage):
    """In torch's operations they are of 15 to 27 bytes an element, and of 3 else."""
    noise = stage(*(Lattice.on(CPU, 1.7), None, None)[: 3 - (stage is TorchFloat32)])

    assert noise.longest(torch.float64) * 27 < 256 << 20
    assert (
        noise.longest(torch.float32) * (3 if stage is TritonFloat32 else 15) < 256 << 20
    )


@pytest.mark.slow
@pytest.mark.usefixtures("rounding_kernel", "decision_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_drawn_with_the_kernels(monkeypatch, dtype):
    """Each call has a key of its own, and the noise its scale."""
    monkeypatch.setattr(_gaussian, "_WITH_FLOAT64", {"cpu"})
    monkeypatch.setattr("dp.noise._device.noise.kernel_on", lambda _: write_blocks)
    assert float32_stage.rounding_kernel_on(CPU, write_blocks)  # A key to check it.
    assert float64_stage.last_stage_on(CPU)
    keys = []
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda n: keys.append(urandom(n)) or keys[-1])
    drawn = []
    for _ in range(2):
        sums = torch.zeros(100, 100, dtype=dtype)
        with torch.device("meta"):  # The default device has no effect.
            GaussianNoise().add_([sums], stddev=2.0)
        drawn.append(sums)

    assert [len(key) for key in keys] == [32, 32]
    assert keys[0] != keys[1]
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0] * 8, (drawn[0] * 8).round())
    assert torch.cat(drawn).std().item() == pytest.approx(2, abs=0.06)  # 6 sigma


@pytest.mark.usefixtures("rounding_kernel", "decision_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_mix_of_stages_gives_the_same_noise(monkeypatch, dtype):
    """What is left by either first stage is decided alike by either last one."""
    monkeypatch.setattr(os, "urandom", lambda n: bytes(range(n)))
    lattice = Lattice.on(CPU, 1.7)
    kernels = sys.modules[DECISION_KERNEL]
    x = torch.linspace(-100, 100, 20_000, dtype=dtype)
    found = []
    for last in (TorchFloat64(lattice), TritonFloat64(lattice, kernels)):
        for one_kernel in (True, False):
            words = ChaChaWords(CPU, write_blocks)
            first = TorchFloat32(lattice, words)
            if one_kernel:
                first = TritonFloat32(lattice, words, round_in_float32)
            found.append(x.clone())
            OnDevice(lattice, words, first, last).add_(found[-1])

    assert all(torch.equal(found[0], other) for other in found[1:])
    assert (found[0] - x).std().item() == pytest.approx(1.7, abs=0.06)  # 6 sigma
