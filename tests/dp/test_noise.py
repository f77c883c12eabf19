"""What the noise stage adds to, what it refuses, and what has no effect on it."""

import copy
import math
import os
import pickle
import random
import threading

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, strategies as st

from dp._keystream import Keystream
from dp.noise import GaussianNoise, _torch_generators
from dp.noise._chunks import _adjoining, as_vector, in_chunks
from dp.noise._host import add, workspace
from dp.noise._host.compiled_stage import verified_kernel


RNGS = ("os", "fast")


def draw(noise, num_elements=64, *, stddev=1.0):
    """Noise alone, as a list, which is equal only if the stream is."""
    sums = torch.zeros(num_elements)
    noise.add_([sums], stddev=stddev)
    return sums.tolist()


@pytest.mark.parametrize("rng", RNGS)
def test_the_stddev_that_was_used_is_returned(rng):
    """What the accountant charges is what the stage says it did."""
    assert GaussianNoise(rng=rng).add_([torch.zeros(3)], stddev=0.75) == 0.75


@pytest.mark.parametrize("rng", RNGS)
def test_no_noise_leaves_the_sums_as_they_are(rng):
    """At a standard deviation of 0 not even a rounding happens."""
    sums = torch.tensor([0.1, math.pi, -1e-30, math.inf])
    before = sums.clone()

    assert GaussianNoise(rng=rng).add_([sums], stddev=0) == 0
    assert torch.equal(sums, before)


@pytest.mark.parametrize("rng", RNGS)
def test_no_sums_and_empty_sums_are_legal(rng):
    """A model without parameters, or with an empty one, takes no noise."""
    noise = GaussianNoise(rng=rng)

    assert noise.add_([], stddev=1.0) == 1.0
    assert noise.add_([torch.zeros(0, 3)], stddev=1.0) == 1.0


@pytest.mark.parametrize(
    "stddev", [-1.0, -1e-300, math.nan, math.inf, -math.inf, True, "1", None]
)
def test_an_invalid_stddev_is_refused(stddev):
    """The value is named, and nothing was added."""
    sums = torch.zeros(3)

    with pytest.raises(ValueError, match="stddev must be >= 0 and finite"):
        GaussianNoise().add_([sums], stddev=stddev)
    assert not sums.any()


@pytest.mark.parametrize(
    ("dtype", "stddev"),
    [(torch.float32, 1e-20), (torch.float32, 1e20), (torch.float64, 1e-155)],
)
def test_a_stddev_that_the_dtype_cannot_hold_is_refused(dtype, stddev):
    """Noise that would underflow, or swallow the lattice, is not added silently."""
    sums = torch.zeros(3, dtype=dtype)

    with pytest.raises(ValueError, match="scale the loss and max_grad_norm"):
        GaussianNoise().add_([sums], stddev=stddev)
    assert not sums.any()


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.float16),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3).to_sparse(),
    ],
    ids=lambda bad: f"{bad.dtype}-{bad.layout}",
)
@pytest.mark.parametrize("stddev", [0.0, 1.0])
def test_low_precision_and_sparse_sums_are_refused(bad, stddev):
    """Noise in low precision is not Gaussian; no other tensor is touched either."""
    good = torch.zeros(3)

    with pytest.raises(TypeError, match="sum the gradients in float32"):
        GaussianNoise().add_([good, bad], stddev=stddev)
    assert not good.any()


def test_an_expanded_sum_is_refused():
    """Elements that share memory would share their noise."""
    with pytest.raises(ValueError, match="so its elements would share"):
        GaussianNoise().add_([torch.zeros(3, 1).expand(3, 4)], stddev=1.0)


def test_an_axis_of_one_may_have_any_stride():
    """Only axes with several elements can make elements share memory."""
    sums = torch.zeros(30).as_strided((1, 30), (0, 1))

    GaussianNoise().add_([sums], stddev=1.0)
    assert sums.any()


def test_an_unknown_rng_is_refused():
    """The message names both choices."""
    with pytest.raises(ValueError, match="'os', 'fast' or 'debug', got 'numpy'"):
        GaussianNoise(rng="numpy")


@pytest.mark.parametrize(
    ("rng", "words"), [("os", "AES-256"), ("fast", "NOT cryptographic")]
)
def test_the_description_says_how_safe_the_generator_is(rng, words):
    """The certificate quotes one line, and the object repeats its own arguments."""
    noise = GaussianNoise(rng=rng)

    assert words in noise.description
    assert "\n" not in noise.description
    assert (noise.rng, repr(noise)) == (rng, f"GaussianNoise(rng={rng!r})")


@pytest.mark.parametrize("rng", RNGS)
def test_no_global_seed_has_an_effect(rng):
    """The generators of torch, numpy and random are neither read nor advanced."""
    noise = GaussianNoise(rng=rng)

    def seeded():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 -- the legacy generator is the global one
        random.seed(0)
        drawn = draw(noise)
        return drawn, (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002, S311

    (first, first_globals), (second, second_globals) = seeded(), seeded()
    assert first != second
    assert first_globals == second_globals


def test_a_seeded_generator_would_be_noticed():
    """Twin of the test above: noise from torch's global generator repeats."""

    def seeded():
        torch.manual_seed(0)
        return torch.randn(64).tolist()

    assert seeded() == seeded()


@pytest.mark.parametrize("rng", RNGS)
def test_tensors_calls_and_instances_share_no_stream(rng):
    """Equal noise in two places would cancel when they are subtracted."""
    noise = GaussianNoise(rng=rng)
    sums = [torch.zeros(64), torch.zeros(64), torch.zeros(64, dtype=torch.float64)]
    noise.add_(sums, stddev=1.0)

    streams = [s.tolist() for s in sums] + [draw(noise), draw(GaussianNoise(rng=rng))]
    assert len({tuple(stream) for stream in streams}) == len(streams)


@pytest.mark.parametrize("rng", RNGS)
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda noise: pickle.loads(pickle.dumps(noise))],  # noqa: S301
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_draws_other_noise(rng, duplicate):
    """A copy keeps the choice of generator and nothing of its state."""
    noise = GaussianNoise(rng=rng)
    draw(noise)  # Whatever state there is, it exists now.
    duplicated = duplicate(noise)

    assert duplicated.rng == rng
    assert draw(noise) != draw(duplicated)


@pytest.mark.parametrize("rng", RNGS)
def test_a_pickle_carries_no_key(rng):
    """A checkpoint of a used stage is byte for byte that of a fresh one."""
    used = GaussianNoise(rng=rng)
    draw(used)

    assert pickle.dumps(used) == pickle.dumps(GaussianNoise(rng=rng))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.parametrize("rng", RNGS)
def test_a_forked_process_draws_other_noise(rng):
    """Parent and child share nothing, though the generator existed before the fork."""
    noise = GaussianNoise(rng=rng)
    draw(noise)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, pickle.dumps(draw(noise)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        drawn_by_child = pickle.load(stream)  # noqa: S301
    os.waitpid(child, 0)

    assert len(drawn_by_child) == 64
    assert drawn_by_child != draw(noise)


def test_a_generator_is_seeded_anew_in_another_process(monkeypatch):
    """What the fork test sees, at its cause: one generator a process and device."""
    generators = _torch_generators.TorchGenerators()
    device = torch.device("cpu")
    ours = generators.on(device)
    assert generators.on(device) is ours

    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert generators.on(device) is not ours


@pytest.mark.parametrize("rng", RNGS)
def test_threads_share_no_stream(rng):
    """Eight threads that use one stage at once draw eight different streams."""
    noise = GaussianNoise(rng=rng)
    drawn = [()] * 8

    def work(i):
        drawn[i] = tuple(draw(noise, 4096))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(drawn))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(drawn)) == len(drawn)
    assert all(0.9 < np.std(values) < 1.1 for values in drawn)


def test_parameters_that_require_gradients_are_noised_outside_autograd():
    """Noise is no operation to differentiate through."""
    sums = torch.zeros(8, requires_grad=True)

    GaussianNoise().add_([sums], stddev=1.0)
    assert sums.grad_fn is None
    assert sums.any()


def test_the_fast_generator_claims_no_lattice_and_no_bound():
    """Nothing is known about floating-point noise, so nothing is promised."""
    noise = GaussianNoise(rng="fast")

    assert noise.granularity(stddev=1.0) == 0
    assert noise.delta_error(1, epsilon=1.0) == math.inf


def test_the_error_in_delta_is_negligible_and_grows_as_stated():
    """A billion parameters for a million steps cost less than 1e-20."""
    noise = GaussianNoise()

    assert noise.delta_error(10**15, epsilon=8.0) < 1e-19
    one = noise.delta_error(1, epsilon=2.0)
    assert one * 2.0**128 == pytest.approx(1 + math.exp(2))
    assert noise.delta_error(1000, epsilon=2.0) / one == pytest.approx(1000)


shapes = st.lists(st.integers(0, 7), max_size=4)


@given(
    st.lists(st.tuples(shapes, st.sampled_from(["plain", "permuted", "sliced"]))),
    st.integers(2, 50).map(lambda n: 2 * n),
)
def test_chunks_cover_every_element_once(layouts, chunk):
    """Whatever the shapes and strides are, every element is reached exactly once."""
    tensors = []
    for i, (shape, layout) in enumerate(layouts):
        tensor = torch.zeros(shape, dtype=(torch.float32, torch.float64)[i % 2])
        if layout == "permuted":
            tensor = tensor.permute(tuple(reversed(range(tensor.dim()))))
        if layout == "sliced" and tensor.dim():
            tensor = torch.zeros([*shape, 2], dtype=tensor.dtype)[..., 0]
        tensors.append(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dp._tuning.HOST_CHUNK", chunk)
        patch.setattr("dp._tuning.SHORT_HOST_CHUNK", chunk)
        for parts in in_chunks(tensors):
            assert sum(part.numel() for part in parts) <= chunk
            with as_vector(parts, torch.device("cpu")) as vector:
                assert vector.is_contiguous()
                vector.add_(1)

    assert all((tensor == 1).all() for tensor in tensors)


def test_large_tensors_are_chunked_in_place():
    """A large gradient is noised through views: no copy of it is ever made."""
    large = torch.zeros(1000, 1000)

    for parts in in_chunks([large]):
        with as_vector(parts, torch.device("cpu")) as vector:
            assert len(parts) == 1
            assert vector.data_ptr() == parts[0].data_ptr()


@pytest.mark.parametrize("sizes", [(3, 4), (1, 0, 6), (7,), (0,), ()])
def test_parts_that_adjoin_are_noised_in_place(sizes):
    """Sums that lie behind one another are one vector without a copy."""
    memory = torch.zeros(9)
    parts = [*memory[1 : 1 + sum(sizes)].split(sizes or 0)]
    if not parts or 0 in sizes:  # An empty tensor lies nowhere: these are copied.
        parts = [memory[1:1], *parts]
    with as_vector(parts, torch.device("cpu")) as vector:
        vector.add_(1)

    assert memory.tolist() == [0.0, *[1.0] * sum(sizes), *[0.0] * (8 - sum(sizes))]


def test_parts_are_not_taken_for_one_beyond_their_memory():
    """Parts of two tensors that happen to be neighbours are no vector, nor are others."""
    one, other = torch.zeros(4), torch.zeros(4)
    for parts in ([one[2:], one[:2]], [one[:2], one[3:]], [one[::2], one[1::2]]):
        assert _adjoining(parts) is None
    assert _adjoining([one, other]) is None
    assert _adjoining([one[:3], one[3:]]) == 4


@pytest.mark.parametrize(("kernel", "num_threads"), [(None, 2), ("numba", 3)])
def test_threads_share_the_work_and_no_key(monkeypatch, kernel, num_threads):
    """Every element gets noise of its own, drawn under one key for each thread.

    In numpy there are no more than two, however many torch may use.
    """
    if kernel is not None:
        pytest.importorskip(kernel)
        kernel = verified_kernel()
    monkeypatch.setattr(add, "kernel_for", lambda _: kernel)
    keys = []
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda n: keys.append(urandom(n)) or keys[-1])
    monkeypatch.setattr("dp._tuning.HOST_CHUNK", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    sums = torch.zeros(20, 1000)
    GaussianNoise().add_([sums], stddev=1.0)

    assert len(set(keys)) == num_threads
    assert len({tuple(row) for row in sums.tolist()}) == 20
    assert sums.std().item() == pytest.approx(1, abs=0.03)


def test_a_keystream_is_aes_in_counter_mode(monkeypatch):
    """The bytes are AES-256 of 0, 1, 2, ... under the OS's key, over any calls."""
    key = bytes(range(32))
    asked = []
    monkeypatch.setattr(os, "urandom", lambda n: asked.append(n) or key[:n])
    counters = b"".join(i.to_bytes(16, "big") for i in range(8192))
    aes = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
    expected = aes.update(counters)
    stream = Keystream()
    drawn = [stream.integers(n, np.dtype(np.uint8)) for n in (1, 0, 15, 131_056)]

    assert asked == [32]
    assert np.concatenate(drawn).tobytes() == expected


def test_a_keystream_cannot_be_copied():
    """A second object with the same key would repeat the stream."""
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            duplicate(Keystream())


def test_memory_for_temporaries_has_one_user_at_a_time():
    """Random bits of two threads in the same memory would be equal, or torn."""
    mine = workspace.borrow()
    workspace.give_back(mine)
    borrowed = [workspace.borrow() for _ in range(3)]

    assert borrowed[0] is mine
    assert len(set(map(id, borrowed))) == 3


def test_memory_for_temporaries_is_kept_while_it_is_long_enough():
    """By name and type; a longer vector gets new memory."""
    arrays = workspace.Workspace()
    first = arrays.array("words", 10, np.uint16)

    assert arrays.array("words", 7, np.uint16).base is first.base
    assert len(arrays.array("words", 7, np.uint16)) == 7
    assert not np.shares_memory(first, arrays.array("points", 10, np.uint16))
    assert not np.shares_memory(first, arrays.array("words", 10, np.uint8))
    assert not np.shares_memory(first, arrays.array("words", 11, np.uint16))
