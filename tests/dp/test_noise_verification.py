"""That noise which is wrong in a share of the elements does not leave."""

import numpy as np
import pytest
import torch

from dp import _tuning
from dp._keystream import Keystream
from dp.exceptions import WrongNoiseError
from dp.noise import GaussianNoise
from dp.noise._host import add, compiled_stage, exact, rounded, verification
from dp.noise._host.float32_stage import Constants, NumpyFloat32
from dp.noise._host.lattice import Lattice
from dp.noise._host.rounded import RoundedGaussian
from dp.noise._host.verification import Chunk, Sample, Verifier
from dp.noise._host.workspace import Workspace


SIZES = (700, 1, 0, 299, 2000)


def sums(dtype=torch.float32):
    return [torch.linspace(-3, 5, size, dtype=dtype) for size in SIZES]


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """Several chunks and blocks of few elements."""
    monkeypatch.setattr(_tuning, "HOST_CHUNK", 1000)
    monkeypatch.setattr(_tuning, "HOST_BLOCK", 256)
    monkeypatch.setattr(add, "kernel_for", lambda _: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stddev", [1e-12, 1.0, 1.999, 7e8])
def test_noise_as_it_is_verifies(dtype, stddev):
    """Whatever the scale and the dtype, in all elements, NaN and infinity included."""
    noised = [stddev * values for values in sums(dtype)]
    noised[0][:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e7, 1e30])
    noise = GaussianNoise()

    for _ in range(3):
        assert noise.add_(noised, stddev=stddev) == stddev


def test_the_compiled_loop_verifies(monkeypatch):
    """Its bits lie where those of numpy's operations do."""
    pytest.importorskip("numba")
    kernel = compiled_stage.verified_kernel()
    monkeypatch.setattr(add, "kernel_for", lambda _: kernel)

    GaussianNoise().add_(sums(), stddev=1.0)


def test_views_are_noised_where_they_are():
    """What is not contiguous is noised as a copy, and written back."""
    square = torch.zeros(40, 50)
    GaussianNoise().add_([square.t()[::2]], stddev=1.0)

    assert square.t()[::2].count_nonzero() > 900
    assert not square.t()[1::2].any()


def a_part_without_noise(monkeypatch):
    chunks = add.in_chunks
    monkeypatch.setattr(add, "in_chunks", lambda *a, **k: list(chunks(*a, **k))[:-1])


def a_part_twice(monkeypatch):
    chunks = add.in_chunks
    monkeypatch.setattr(
        add, "in_chunks", lambda *a, **k: [*chunks(*a, **k), *chunks(*a, **k)]
    )


def a_chunk_that_is_not_drawn(monkeypatch):
    whole = RoundedGaussian.add_

    def add_(noise, parts):
        whole(noise, parts[:1])

    monkeypatch.setattr(RoundedGaussian, "add_", add_)


def bits_of_another_block(monkeypatch):
    """Every block is noised with the bits of the first one."""
    drawn = RoundedGaussian._drawn_blocks

    def same(noise, size):
        first = None
        for start, words, points in drawn(noise, size):
            first = first or (words.copy(), points.copy())
            yield start, first[0][: len(words)], first[1][: len(points)]

    monkeypatch.setattr(RoundedGaussian, "_drawn_blocks", same)


def less_noise(monkeypatch):
    of = Lattice.of
    monkeypatch.setattr(Lattice, "of", lambda stddev: of(0.99 * stddev))


def a_table_that_errs_upwards(monkeypatch, error=1.0):
    def noise(stage, words, points):
        values, reach = whole(stage, words, points)
        values[words < 1 << 14] += np.float32(error)
        return values, reach

    whole = NumpyFloat32._noise
    monkeypatch.setattr(NumpyFloat32, "_noise", noise)


def a_table_that_errs_downwards(monkeypatch):
    a_table_that_errs_upwards(monkeypatch, error=-1.0)


def sums_that_are_not_rounded(monkeypatch):
    """The noise is right: only the digits beyond the lattice tell of the sum."""
    of = Constants.of
    monkeypatch.setattr(
        Constants, "of", lambda *a: of(*a)._replace(integers=np.float32(0))
    )


def noise_that_a_sum_repels(monkeypatch):
    """Sums are noised the other way round: of the right law, but with other bits."""
    whole = NumpyFloat32._noise

    def noise(stage, words, points):
        values, reach = whole(stage, words, points)
        return -values, reach

    monkeypatch.setattr(NumpyFloat32, "_noise", noise)


def temporaries_in_one_place(monkeypatch):
    """Words and points lie in the same memory."""
    whole = Workspace.array

    def array(workspace, name, size, dtype):
        shared = "words" if name == "points" else name
        return (
            whole(workspace, shared, 2 * size, np.uint16).view(dtype)[:size]
            if (name in {"words", "points"})
            else whole(workspace, name, size, dtype)
        )

    monkeypatch.setattr(Workspace, "array", array)


def undecided_sums_without_noise(monkeypatch):
    """Float32 decides nothing, and what it leaves stays as it is."""
    monkeypatch.setattr(NumpyFloat32, "_noise", nothing_decided)
    monkeypatch.setattr(rounded, "decide", lambda x, _bits, **_: x)


def nothing_decided(_stage, words, _points):
    return np.full(len(words), np.nan, np.float32), np.zeros(len(words), np.float32)


DEFECTS = (
    a_part_without_noise,
    a_part_twice,
    a_chunk_that_is_not_drawn,
    bits_of_another_block,
    less_noise,
    a_table_that_errs_upwards,
    a_table_that_errs_downwards,
    sums_that_are_not_rounded,
    noise_that_a_sum_repels,
    temporaries_in_one_place,
    undecided_sums_without_noise,
)


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_the_noise_is_noticed(monkeypatch, defect):
    """In chunks, blocks, tables, stages and memory, before anything is released."""
    defect(monkeypatch)

    with pytest.raises(WrongNoiseError, match="did not get the noise"):
        GaussianNoise().add_(sums(), stddev=1.0)


def test_what_is_left_to_more_bits_verifies(monkeypatch):
    """The twin: with all elements left to the second stage, nothing is wrong."""
    monkeypatch.setattr(NumpyFloat32, "_noise", nothing_decided)

    GaussianNoise().add_(sums(), stddev=1.0)


def test_chunks_that_share_bits_are_noticed():
    """Two elements with the same bits would have the same noise."""
    values = [torch.zeros(30), torch.zeros(30)]
    sample, keystream = Sample.of(values), Keystream("noise")
    noise = RoundedGaussian(
        stddev=1.0, keystream=keystream, kernel=None, workspace=Workspace()
    )
    noise.add_(values[:1])
    values[1].copy_(values[0])  # As if its bits had been the same.
    shared = [Chunk(values[:1], keystream, 0), Chunk(values[1:], keystream, 0)]

    with pytest.raises(WrongNoiseError):
        sample.check(shared, 1.0)


def test_another_standard_deviation_is_noticed():
    """As if the stage had been told another one than was charged."""
    values, keystream = [torch.zeros(1000)], Keystream("noise")
    sample = Sample.of(values)
    RoundedGaussian(
        stddev=0.98, keystream=keystream, kernel=None, workspace=Workspace()
    ).add_(values)

    with pytest.raises(WrongNoiseError):
        sample.check([Chunk(values, keystream, 0)], 1.0)


def test_the_first_releases_are_verified_and_others_at_random(monkeypatch):
    """The operating system picks; a copy begins with verifications again."""
    verifier = Verifier()
    monkeypatch.setattr(verification.secrets, "randbelow", lambda n: n - 1)
    first = [verifier.is_due() for _ in range(5)]
    monkeypatch.setattr(verification.secrets, "randbelow", lambda _: 0)

    assert first == [True, True, True, False, False]
    assert verifier.is_due()


def test_a_keystream_gives_again_what_it_gave():
    """From any byte on; what was not drawn yet is refused."""
    keystream = Keystream("noise")
    drawn = keystream.integers(100, np.dtype(np.uint8)).tobytes()

    assert keystream.again(0, 100) == drawn
    assert keystream.again(37, 50) == drawn[37:87]
    with pytest.raises(ValueError, match="not drawn yet"):
        keystream.again(37, 64)


def test_the_lattice_is_the_one_of_the_stages():
    """Verification and stages divide by the same spacing."""
    assert Lattice.of(1.7).spacing == exact.granularity(1.7)
