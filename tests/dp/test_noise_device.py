"""That sums are rounded on a device as they are on the host, to the last digit.

Nothing in the arithmetic of :mod:`dp.noise._device.noise` is special to a GPU, so that it is
tested on this device; ``gpu/test_noise.py`` shows that a GPU computes the same.
"""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from dp import _tuning
from dp._keystream import Keystream
from dp.noise import GaussianNoise, _gaussian
from dp.noise._device import float32_stage, float64_stage
from dp.noise._device.float32_stage import Lattice, TorchFloat32
from dp.noise._device.float64_stage import TorchFloat64
from dp.noise._device.host_words import HostWords
from dp.noise._device.noise import OnDevice
from dp.noise._host import (
    exact,
    lattice as host_lattice,
    rounded as host_rounded,
)
from dp.noise._host.verification import Verifier
from dp.noise._host.workspace import Workspace


CPU = torch.device("cpu")
ALL_CELLS = np.random.default_rng(8).permutation(1 << 16).astype(np.uint16)

dtypes = st.sampled_from([torch.float32, torch.float64])
stddevs = st.floats(2.0**-60, 2.0**60)
values = st.lists(
    st.floats(width=32) | st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40
)


@pytest.fixture
def here(monkeypatch):
    """Let tensors of this device be rounded as those of a GPU."""
    monkeypatch.setattr(_gaussian, "_WITH_FLOAT64", {"cpu"})


def noise_in_torch(stddev, words):
    lattice = Lattice.on(CPU, stddev)
    stages = TorchFloat32(lattice, words), TorchFloat64(lattice)
    return OnDevice(lattice, words, *stages)


class ByCell:
    """Words of which the first 16 bits of an element determine all that follow.

    So an element's normal does not depend on which others need more bits, and the host
    and a device can be given the same numbers.
    """

    def __init__(self, words_N, seed=0):
        rng = np.random.default_rng(seed)
        self.words_N = words_N
        # U has 16 + 64 + 192 bits; the host takes 24 first, and 8 zeros at the end.
        self.more = rng.integers(2**64 - 1, size=1 << 16, dtype=np.uint64)
        self.rest = rng.integers(2**64 - 1, size=(1 << 16, 3), dtype=np.uint64)
        self.queue = [words_N]

    def fill(self, words):
        words[:] = self.queue.pop(0).view(words.dtype)

    def draw(self, count, dtype):
        words = torch.empty(count, dtype=dtype)
        self.fill(words.numpy())
        return words

    def on_host(self, x, stddev):
        points_N = (self.more[self.words_N] >> np.uint64(56)).astype(np.uint8)
        words = np.concatenate((self.more[:, None], self.rest), axis=1)
        words, after = words << np.uint64(8), words >> np.uint64(56)
        words[:, :-1] |= after[:, 1:]

        def decide(bits_E, fraction_E, *, scale, keystream):
            self.queue += [words[bits_E >> 8, 0], *words[bits_E >> 8, 1:]]
            steps_E = DECIDE(bits_E, fraction_E, scale=scale, keystream=keystream)
            self.queue.clear()
            return steps_E

        noisy = x.clone()
        self.queue += [points_N]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exact, "round_refined", decide)
            noise = host_rounded.RoundedGaussian(
                stddev=stddev, keystream=self, kernel=None, workspace=Workspace()
            )
            noise.add_([noisy])
        return noisy

    def on_device(self, x, stddev):
        def in_float64(bits_S, more_S, fraction_S, scale):
            steps_S, unsure_S = IN_FLOAT64(bits_S, more_S, fraction_S, scale)
            self.queue += [*self.rest[bits_S[unsure_S]]]
            return steps_S, unsure_S

        def decide(noise, x_N, left):
            self.queue += [self.more[left.words.numpy().view(np.uint16)]]
            DECIDE_ON_DEVICE(noise, x_N, left)

        noisy = x.clone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(float64_stage, "in_float64", in_float64)
            patch.setattr(OnDevice, "_decide", decide)
            noise_in_torch(stddev, self).add_(noisy)
        assert not self.queue
        return noisy


DECIDE = exact.round_refined
IN_FLOAT64 = float64_stage.in_float64
DECIDE_ON_DEVICE = OnDevice._decide


@pytest.mark.slow
@given(values, stddevs, dtypes, st.integers(0, 2**32))
def test_a_device_rounds_as_the_host_does(numbers, stddev, dtype, seed):
    """Equal words give equal results, whatever the sums are, NaN and infinite ones too."""
    x = torch.tensor(numbers, dtype=dtype)
    words_N = np.random.default_rng(seed).integers(
        1 << 16, size=len(x), dtype=np.uint16
    )

    on_device = ByCell(words_N, seed).on_device(x, stddev)
    on_host = ByCell(words_N, seed).on_host(x, stddev)
    assert torch.equal(on_device.nan_to_num(7.7), on_host.nan_to_num(7.7))


def in_all_cells(place, dtype, magnitude, num_cells=1 << 16):
    x = np.random.default_rng(7).normal(0, magnitude, num_cells)
    source = ByCell(ALL_CELLS[:num_cells])
    return getattr(source, place)(torch.from_numpy(x).to(dtype), 1.99)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [0.0, 9.0, 999.0, 1e6, 1e12])
def test_a_device_rounds_every_cell_as_the_host_does(dtype, magnitude):
    """No cell, and no size of a sum, is decided otherwise than on the host."""
    on_device = in_all_cells("on_device", dtype, magnitude)

    assert torch.equal(on_device, in_all_cells("on_host", dtype, magnitude))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_resort_is_the_hosts(monkeypatch, dtype):
    """Where float64 is not sure, 320 bits decide from the bits that were drawn."""
    by_stages = in_all_cells("on_host", dtype, 9.0, 600)
    monkeypatch.setattr(float32_stage, "FLOAT32_ERROR", 1.0)
    monkeypatch.setattr(float64_stage, "SAFE_DISTANCE", -1.0)

    assert torch.equal(by_stages, in_all_cells("on_device", dtype, 9.0, 600))


def test_float32_could_not_decide_alone(monkeypatch):
    """Twin of the tests above: without its bound some roundings would be wrong."""
    right = in_all_cells("on_host", torch.float32, 9.0)
    monkeypatch.setattr(float32_stage, "FLOAT32_ERROR", -1.0)
    wrong = in_all_cells("on_device", torch.float32, 9.0)

    assert 10 < (right != wrong).sum() < 2000


def test_large_sums_take_their_part_of_the_bound(monkeypatch):
    """In the widest cells of the first stage, it is what keeps float32 from erring."""
    cells = np.flatnonzero(np.abs(np.abs(host_lattice.cells()[0]) - 2.45) < 0.05)
    rng = np.random.default_rng(5)
    source = ByCell(rng.choice(cells.astype(np.uint16), 1 << 15))
    x = torch.from_numpy(rng.uniform(2.0**13, 2.0**14, 1 << 15)).float()
    right = source.on_host(x, 1.99)
    source.queue = [source.words_N]
    assert torch.equal(source.on_device(x, 1.99), right)

    source.queue = [source.words_N]
    monkeypatch.setattr(float32_stage, "FLOAT32_ERROR_OF_SUM", 0.0)
    assert (source.on_device(x, 1.99) != right).sum() > 10


def test_a_huge_sum_makes_the_others_no_harder(monkeypatch):
    """The bound is each element's own: 2 to 4 percent are left to float64, as ever."""
    counts = []
    monkeypatch.setattr(
        OnDevice, "_decide", lambda _noise, _x, left: counts.append(len(left.x))
    )
    x = torch.zeros(1 << 16)
    x[:3] = torch.tensor([1e30, math.nan, -math.inf])
    source = ByCell(ALL_CELLS)
    noise_in_torch(1.7, source).add_(x)

    assert 0.02 < sum(counts) / len(x) < 0.045


def test_candidates_are_decided_some_at_a_time(monkeypatch):
    """However many there are, temporaries of 8 bytes are of a bounded size."""
    monkeypatch.setattr(_tuning, "CANDIDATES_AT_ONCE", 100)
    in_parts = in_all_cells("on_device", torch.float32, 1e12, 1050)

    assert torch.equal(in_parts, in_all_cells("on_host", torch.float32, 1e12, 1050))


@pytest.mark.parametrize("x", [math.inf, -math.inf, math.nan])
def test_the_last_resort_leaves_nan_and_infinity(x):
    """An overflowed sum stays one, in the rarest of tails as well."""
    lattice = Lattice.on(CPU, 1.7)

    assert repr(float64_stage.last_resort(x, [0] * 5, lattice)) == repr(x)


def test_long_vectors_are_rounded_in_parts(monkeypatch):
    """Every part has words of its own, and none is left out."""
    monkeypatch.setattr(_tuning, "LONGEST_IN_TORCH", 4000)
    drawn = []

    class Words:
        def draw(self, count, dtype):
            drawn.append(count)
            return torch.randint(-(1 << 15), 1 << 15, (count,)).to(dtype)

    x = torch.zeros(2500)
    noise_in_torch(2.0, Words()).add_(x)

    assert drawn[::2] == [1000, 1000, 500]
    assert all((part != 0).float().mean() > 0.9 for part in x.split(1000))


def test_float64_computes_the_same_on_both_sides(monkeypatch):
    """Each step up to the quantile is equal, at the ends of the uniform as well.

    If both go on after as many bits; the host has drawn eight more by then.
    """
    monkeypatch.setattr(exact, "FIRST_BITS", 16)
    rng = np.random.default_rng(0)
    bits_E = rng.integers(1 << 16, size=4096, dtype=np.uint16)
    bits_E[:200] = 0
    bits_E[200:400] = 2**16 - 1
    more_E = rng.integers(2**64 - 1, size=4096, dtype=np.uint64, endpoint=True)
    more_E[100:300] >>= np.uint64(30)
    more_E[:4] = more_E[396:400] = [0, 1, 2**63, 2**64 - 1]
    fraction_E = rng.uniform(-0.5, 0.5, 4096)
    # So large a scale that a step is a float64's last digits, or nearly.
    scale = 2.0**44
    steps, unsure = exact._in_float64(bits_E, more_E, fraction_E, scale)
    on_device = float64_stage.in_float64(
        torch.from_numpy(bits_E.astype(np.int64)),
        torch.from_numpy(more_E.view(np.int64)),
        torch.from_numpy(fraction_E),
        scale,
    )

    assert on_device[0].tolist() == steps.tolist()
    assert on_device[1].tolist() == unsure.tolist()
    assert 100 < unsure.sum() < 4096


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_has_no_sign(dtype):
    """Which side of zero an inexact sum was on is more than the lattice point says."""
    sums = torch.full((1 << 17,), -0.03, dtype=dtype)
    GaussianNoise().add_([sums], stddev=1.9)

    assert (sums == 0).sum() > 1000
    assert not sums[sums == 0].signbit().any()


@pytest.mark.usefixtures("here")
def test_empty_sums_are_legal_on_a_device():
    """Nothing is left for the last stage, as with a few elements it often is."""
    assert GaussianNoise().add_([torch.zeros(0, 3)], stddev=1.0) == 1.0


@pytest.mark.usefixtures("here")
def test_tensors_of_every_kind_are_noised():
    """Views, small tensors, float64, an empty one: each element gets noise of its own."""
    sums = [
        torch.zeros(70, 60).t(),
        torch.zeros(9, 7, 4)[..., 1],
        torch.zeros(800, dtype=torch.float64),
        torch.zeros(0, 3),
        *torch.zeros(300, 9),
    ]
    GaussianNoise().add_(sums, stddev=2.0)
    drawn = torch.cat([s.double().flatten() for s in sums])

    assert torch.equal(drawn * 8, (drawn * 8).round())  # The lattice is 1/8.
    assert drawn.std().item() == pytest.approx(2, abs=0.15)  # 6 sigma
    assert (drawn == 0).float().mean() < 0.06  # 2.5 % of a lattice's points are 0.
    assert len({tuple(s.tolist()) for s in sums[4:]}) == 300


@pytest.mark.parametrize("place", [{"cpu"}, set()])
def test_torchs_default_device_has_no_effect(monkeypatch, place):
    """Memory of the host is asked for by name: users set the default to their GPU."""
    monkeypatch.setattr(_gaussian, "_WITH_FLOAT64", place)
    sums = torch.zeros(20_000)
    with torch.device("meta"):
        GaussianNoise().add_([sums], stddev=2.0)

    assert sums.std().item() == pytest.approx(2, abs=0.06)  # 6 sigma


@pytest.mark.usefixtures("here")
def test_each_tensor_is_rounded_where_it_is(monkeypatch):
    """The host's way is for devices without float64 alone."""
    placed = []
    monkeypatch.setattr(_gaussian, "add_on_host", lambda sums, *_: placed.extend(sums))
    monkeypatch.setattr(Verifier, "is_due", lambda _: False)  # There are no values.
    sums = [torch.zeros(30), torch.zeros(3, device="meta")]
    GaussianNoise().add_(sums, stddev=1.0)

    assert [tensor.device.type for tensor in placed] == ["meta"]
    assert sums[0].any()


def test_a_device_with_float64_rounds_its_own(monkeypatch):
    """It is told by its type; the host's tensors stay on the host."""
    monkeypatch.setattr(_gaussian, "_WITH_FLOAT64", {"meta"})
    here, there = torch.zeros(3), torch.zeros(3, dtype=torch.float64, device="meta")
    on_host, on_device, dtypes = _gaussian._by_place([here, there])

    assert [id(t) for t in (*on_host, *on_device)] == [id(here), id(there)]
    assert (len(on_host), dtypes) == (1, {torch.float32, torch.float64})


@pytest.mark.usefixtures("here")
def test_every_call_has_a_key_of_its_own(monkeypatch):
    """A key lives for one call, one device and one thread's part of it."""
    keys = []
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda n: keys.append(urandom(n)) or keys[-1])
    noise = GaussianNoise()
    drawn = []
    for _ in range(3):
        sums = [torch.zeros(100), torch.zeros(100, dtype=torch.float64)]
        noise.add_(sums, stddev=1.0)
        drawn += [tuple(s.tolist()) for s in sums]

    assert [len(key) for key in keys] == [32] * 3
    assert len(set(keys)) == 3
    assert len(set(drawn)) == 6


@pytest.mark.usefixtures("here")
def test_threads_that_noise_on_a_device_share_no_stream():
    """Eight threads that use one stage at once draw eight different streams."""
    noise = GaussianNoise()
    drawn = [()] * 8

    def work(i):
        sums = torch.zeros(4096)
        noise.add_([sums], stddev=1.0)
        drawn[i] = tuple(sums.tolist())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(drawn))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(drawn)) == len(drawn)
    assert all(0.9 < np.std(values) < 1.1 for values in drawn)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_words_are_shared_out_among_threads(monkeypatch, dtype):
    """Every thread fills its part from a keystream of its own, which goes on after."""
    monkeypatch.setattr("dp._tuning.LEAST_KEYSTREAM_SHARE", 1000)
    keys = [bytes([i]) * 32 for i in range(3)]
    given_keys = list(keys)
    monkeypatch.setattr(os, "urandom", lambda _: given_keys.pop(0))
    with ThreadPoolExecutor(3) as pool:
        words = HostWords(CPU, pool=pool, num_threads=3)
        drawn = [words.draw(count, dtype) for count in (10, 3000, 0)]

    monkeypatch.setattr(os, "urandom", lambda _: keys.pop(0))
    size = dtype.itemsize
    parts = [10 * size + 1000 * size, 1000 * size, 1000 * size]
    streams = [Keystream().integers(count, np.dtype(np.uint8)) for count in parts]
    assert [w.dtype for w in drawn] == [dtype] * 3
    assert drawn[0].numpy().tobytes() == streams[0][: 10 * size].tobytes()
    streams[0] = streams[0][10 * size :]
    assert drawn[1].numpy().tobytes() == np.concatenate(streams).tobytes()
    assert not drawn[2].numel()
    assert not keys
