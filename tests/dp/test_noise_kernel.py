"""That the compiled loop does what numpy does, to the last bit, or is not used.

Where numba is missing, a stand-in in numpy is called in its place, so that everything
around the loop is tested; with numba the loop itself is as well.
"""

import ctypes
import math
import os
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from dp import _tuning
from dp._keystream import Keystream
from dp.noise import GaussianNoise
from dp.noise._host import add, compiled_stage
from dp.noise._host.compiled_stage import KernelInTime, Vectors, verified_kernel
from dp.noise._host.rounded import RoundedGaussian
from dp.noise._host.workspace import borrow


KERNEL = "dp.noise._host.kernels.rounding"
KEY = bytes(range(32))


def memory(address, count, dtype):
    """The numbers that are at an address."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype)


def round_(addresses, sizes, cursor, *rest):
    """What the loop does, in other words: from a list of every element's address."""
    words, points, chords, constants, step, where, x_C, bits = rest
    inverse, spacing, integers, safe, error_of_sum = constants
    dtype = inverse.dtype
    at = [
        address + i * dtype.itemsize
        for address, size in zip(addresses.tolist(), sizes.tolist(), strict=True)
        for i in range(size)
    ]
    start = int(sizes[: cursor[0]].sum()) + int(cursor[1])
    at = at[start : start + len(words)]
    x = np.array([memory(address, 1, dtype)[0] for address in at], dtype)
    first, reach = chords[words].T
    with np.errstate(all="ignore"):
        total = x * inverse + (reach * (points.astype(np.float32) * step) + first)
        steps = (total + integers) - integers
        distance = abs(total - steps) + reach + abs(steps) * error_of_sum
        is_safe = distance <= safe
        write(np.array(at)[is_safe], (steps * spacing)[is_safe])
    left = np.flatnonzero(~is_safe)
    where[: len(left)] = np.array(at)[left]
    x_C[: len(left)] = x[left]
    bits[: len(left)] = words[left].astype(np.int64) * 256 + points[left]
    ends = np.cumsum(sizes)
    cursor[0] = np.searchsorted(ends, start + len(words), side="right")
    cursor[1] = start + len(words) - int(sizes[: cursor[0]].sum())
    return len(left)


def write(where, values):
    """The other function of the module."""
    for address, value in zip(where.tolist(), values, strict=True):
        memory(address, 1, values.dtype)[0] = value


@pytest.fixture(autouse=True)
def _fresh():
    compiled_stage.verified_kernel.cache_clear()
    yield
    compiled_stage.verified_kernel.cache_clear()


def stand_in():
    module = types.ModuleType(KERNEL)
    module.round_, module.write = round_, write
    return module


@pytest.fixture
def module(monkeypatch):
    """A module in the kernel's place, on a machine that seems to have numba."""
    module = stand_in()
    monkeypatch.setitem(sys.modules, KERNEL, module)
    monkeypatch.setattr(compiled_stage, "find_spec", lambda name: name)
    return module


@pytest.fixture(params=["stand-in", "numba"])
def kernel(request):
    """A kernel that is used: the compiled one, where it can be."""
    if request.param == "stand-in":
        return stand_in()
    pytest.importorskip("numba")
    return verified_kernel()


@pytest.mark.slow
def test_a_kernel_that_does_what_numpy_does_is_used(module):
    """It is compared once in a process."""
    assert verified_kernel() is module

    module.round_ = None
    assert verified_kernel() is module


def a_wrong_result(sums, **_):
    sums[np.flatnonzero(sums == sums.round(4))[20]] += 1e-3


def a_negative_zero(sums, **_):
    sums[sums == 0] = -0.0


def a_wrong_sum(x_C, count, **_):
    x_C[count - 1] += 1


def a_wrong_bit(bits, count, **_):
    bits[count - 1] ^= 1


def a_wrong_place(where, count, **_):
    where[count - 1] = where[count - 2]


def a_cursor_that_stays(cursor, **_):
    cursor[:] = 0


CHANGES = (
    a_wrong_result,
    a_negative_zero,
    a_wrong_sum,
    a_wrong_bit,
    a_wrong_place,
    a_cursor_that_stays,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_kernel_that_errs_anywhere_is_not_used(module, change):
    """A result, the sign of a zero, or what is said of an element that is left."""

    def wrong(addresses, sizes, cursor, *rest):
        count = round_(addresses, sizes, cursor, *rest)
        where, x_C, bits = rest[-3:]
        sums = memory(int(addresses[-1]), int(sizes[-1]), rest[3][0].dtype)
        change(sums=sums, where=where, x_C=x_C, bits=bits, count=count, cursor=cursor)
        return count

    module.round_ = wrong
    refuses(module)


@pytest.mark.slow
def test_a_kernel_that_forgets_an_element_is_not_used(module):
    """One that is left, or one that is to be written."""
    module.round_ = lambda *arguments: round_(*arguments) - 1
    refuses(module)

    compiled_stage.verified_kernel.cache_clear()
    module.round_ = round_
    module.write = lambda where, values: write(where[:-1], values[:-1])
    refuses(module)


def refuses(module):
    """The kernel is not used, and a warning says so once."""
    assert sys.modules[KERNEL] is module
    with pytest.warns(RuntimeWarning, match="as safe and slower.*from those of numpy"):
        assert verified_kernel() is None
    assert verified_kernel() is None


def test_a_kernel_that_does_not_compile_is_not_used(module):
    """The warning gives the cause, as a version of numpy that numba does not take."""

    def broken(*_):
        raise ImportError("Numba needs NumPy 2.4 or less")

    module.round_ = broken
    with pytest.warns(RuntimeWarning, match="on the host.*Numba needs NumPy"):
        assert verified_kernel() is None


def test_without_numba_there_is_no_kernel(module, monkeypatch):
    """No warning: there is nothing that could be used."""
    monkeypatch.setattr(compiled_stage, "find_spec", lambda _: None)

    assert verified_kernel() is None
    assert module.round_ is round_


@pytest.mark.slow
def test_little_noise_does_not_load_numba(module):
    """It is loaded once it would have saved as much time as loading takes."""
    kernel_for = KernelInTime()
    half = torch.zeros(1).expand(
        _tuning.DRAWN_BEFORE_NUMBA // 2 - _tuning.CALL_IN_ELEMENTS
    )

    assert kernel_for([half[1:]]) is None
    assert kernel_for([half[1:]]) is None
    assert kernel_for([half[:1]]) is module


@pytest.mark.slow
def test_noise_of_a_large_model_loads_numba_at_once(module):
    """What is loaded is used from then on, for little noise and by everyone."""
    large = torch.zeros(1).expand(_tuning.DRAWN_BEFORE_NUMBA)

    assert KernelInTime()([large]) is module
    assert KernelInTime()([large[:1]]) is module


def test_memory_that_is_not_dense_on_the_host_has_no_address():
    """Sums of other devices, and views with gaps, are copied to a vector first."""
    dense = torch.zeros(3, 4)

    assert Vectors.of([dense, dense[1:]]).sizes.tolist() == [12, 8]
    assert Vectors.of([dense, dense[:, 1:]]) is None
    assert Vectors.of([dense.t()]) is None
    assert Vectors.of([torch.zeros(3, device="meta")]) is None


def noised(tensors, kernel, monkeypatch, *, stddev=1.7):
    """Noise under a fixed key."""
    copies = [tensor.clone() for tensor in tensors]
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", lambda n: KEY[:n])
        patch.setattr(add, "kernel_for", lambda _: kernel)
        GaussianNoise().add_(copies, stddev=stddev)
    return [copy.nan_to_num(1e9, 1e10, -1e10) for copy in copies]


@pytest.mark.slow
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=9),
    st.floats(2.0**-60, 2.0**60),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([3, 16, 1000]),
    st.integers(0, 2**32),
)
def test_under_one_key_the_noise_is_numpys(sizes, stddev, dtype, block, seed):
    """Whatever the sums, tensors and blocks are, no bit of a result differs."""
    rng = np.random.default_rng(seed)
    magnitude = stddev * 10.0 ** rng.integers(-3, 6)
    tensors = [torch.from_numpy(rng.normal(0, magnitude, n)).to(dtype) for n in sizes]
    if sizes[0] > 2:
        tensors[0][:3] = torch.tensor([math.nan, math.inf, -math.inf])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tuning, "HOST_BLOCK", block)
        by_numpy = noised(tensors, None, patch, stddev=stddev)
        kernels = [stand_in()]
        if "numba" in LOADED:
            kernels.append(verified_kernel())
        for kernel in kernels:
            by_kernel = noised(tensors, kernel, patch, stddev=stddev)
            assert all(map(torch.equal, by_numpy, by_kernel))


try:
    import numba  # noqa: F401
except ImportError:
    LOADED = frozenset()
else:
    LOADED = frozenset({"numba"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_sums_get_numpys_noise(kernel, monkeypatch, dtype):
    """In chunks and blocks, dense and not, with sums that stay undecided."""
    monkeypatch.setattr(_tuning, "HOST_CHUNK", 20_000)
    monkeypatch.setattr(_tuning, "HOST_BLOCK", 1 << 13)
    rng = np.random.default_rng(0)
    numbers = torch.from_numpy(rng.normal(0, 1e3, 60_000)).to(dtype)
    tensors = [
        numbers[:50_000],
        numbers[50_000:].view(100, 100).t(),
        numbers[:3000].view(30, 100)[:, :50],
        *numbers[:400].split(7),
    ]
    by_kernel = noised(tensors, kernel, monkeypatch)

    assert all(map(torch.equal, noised(tensors, None, monkeypatch), by_kernel))


def test_sums_with_gaps_between_them_get_numpys_noise(kernel, monkeypatch):
    """They are put together, and copied back."""
    around = torch.linspace(-1e3, 1e3, 64).view(8, 8)
    by_numpy, by_kernel = around.clone(), around.clone()
    for sums, some in ((by_numpy, None), (by_kernel, kernel)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "urandom", lambda n: KEY[:n])
            noise = RoundedGaussian(
                stddev=1.7,
                keystream=Keystream("noise"),
                kernel=some,
                workspace=borrow(),
            )
        noise.add_([sums[:, 1:5], sums[:, 6]])

    assert torch.equal(by_kernel, by_numpy)
    assert torch.equal(by_kernel[:, 0], around[:, 0])
    assert torch.equal(by_kernel[:, 5], around[:, 5])
    assert not torch.equal(by_kernel[:, 1:5], around[:, 1:5])


def test_noise_touches_no_memory_but_the_sums(kernel, monkeypatch):
    """Neighbours of a view stay what they are, before it, behind it and between."""
    around = torch.full((1000,), 7.0)
    views = [around[10:300], around[301:900]]
    with monkeypatch.context() as patch:
        patch.setattr(add, "kernel_for", lambda _: kernel)
        GaussianNoise().add_(views, stddev=1.0)

    assert (around[:10] == 7).all()
    assert around[300] == 7
    assert (around[900:] == 7).all()
    assert all((view != 7).float().mean() > 0.9 for view in views)
