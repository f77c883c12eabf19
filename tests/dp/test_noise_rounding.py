"""That ``round(x + N)`` is right to the last digit, whichever stage decides it."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from dp import _tuning
from dp.noise import GaussianNoise
from dp.noise._host import exact, float32_stage, lattice
from dp.noise._host.compiled_stage import verified_kernel
from dp.noise._host.float32_stage import NumpyFloat32
from dp.noise._host.lattice import Lattice
from dp.noise._host.rounded import RoundedGaussian
from dp.noise._host.workspace import Workspace


UINT64 = np.dtype(np.uint64)
WAYS = ("numpy", "numba")

dtypes = st.sampled_from([torch.float32, torch.float64])
stddevs = st.floats(2.0**-60, 2.0**60)
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


class Script:
    """A keystream whose first words are given, and the rest of which is seeded."""

    def __init__(self, *words, seed=0):
        self.words = list(words)
        self.drawn = []
        self.rng = np.random.default_rng(seed)

    def fill(self, words):
        if self.words:
            given = self.words.pop(0)
            assert len(given) == len(words)
            words[:] = given
        else:
            words[:] = self.rng.integers(
                np.iinfo(words.dtype).max,
                size=len(words),
                dtype=words.dtype,
                endpoint=True,
            )
        self.drawn.append(words.copy())


def words_of(count, dtype, *, seed):
    drawn = np.empty(count, dtype)
    Script(seed=seed).fill(drawn)
    return drawn


def real_normal(uniform, num_bits):
    """The quantile of the middle of what *num_bits* leave open, with 400 bits."""
    with mpmath.workprec(400):
        u = mpmath.ldexp(2 * int(uniform) + 1, -num_bits - 1)
        return mpmath.sqrt(2) * mpmath.erfinv(2 * u - 1)


def real_rounding(x, normal, stddev):
    """The multiple of the granularity next to ``x + stddev * normal``."""
    with mpmath.workprec(400):
        spacing = mpmath.mpf(exact.granularity(stddev))
        return float(mpmath.nint((mpmath.mpf(x) + stddev * normal) / spacing) * spacing)


class ByCell:
    """A keystream, and the rest of the bits, which an element's first 16 determine.

    So an element's normal does not depend on which others need more bits.
    """

    def __init__(self, words, seed=0):
        self.words = words
        self.points = words_of(1 << 16, np.uint8, seed=seed + 3)
        self.more = words_of(1 << 16, UINT64, seed=seed + 1)
        self.rest = words_of(3 << 16, UINT64, seed=seed + 2).reshape(-1, 3)
        self.start = {np.uint16: 0, np.uint8: 0}

    def fill(self, words):
        stream = {np.uint16: self.words, np.uint8: self.points[self.words]}
        kind = words.dtype.type
        start = self.start[kind]
        self.start[kind] += len(words)
        words[:] = stream[kind][start : start + len(words)]

    def first_bits(self, word):
        return (int(word) << 8) + int(self.points[word])

    def decide(self, bits_E, fraction_E, *, scale, keystream):
        assert keystream is self
        cells_E = bits_E >> 8
        assert (self.points[cells_E] == bits_E & 255).all()
        script = Script(self.more[cells_E], *self.rest[cells_E])
        return DECIDE(bits_E, fraction_E, scale=scale, keystream=script)


DECIDE = exact.round_refined


def kernel_of(way):
    """The compiled loop, where numba is installed, or none."""
    if way == "numpy":
        return None
    pytest.importorskip("numba")
    return verified_kernel()


def rounded(x, stddev, source, *, way="numpy", block=None):
    noisy = x.clone()
    source.start = dict.fromkeys(source.start, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "round_refined", source.decide)
        if block is not None:
            patch.setattr(_tuning, "HOST_BLOCK", block)
        noise = RoundedGaussian(
            stddev=stddev,
            keystream=source,
            kernel=kernel_of(way),
            workspace=Workspace(),
        )
        noise.add_([noisy])
    return noisy


@given(stddevs)
def test_the_granularity_is_a_power_of_two_near_a_sixteenth(stddev):
    """Dividing by it is exact, and rounding to it adds 0.04 % to the variance."""
    spacing = GaussianNoise().granularity(stddev=stddev)

    assert math.frexp(spacing)[0] == 0.5
    assert stddev / 32 < spacing <= stddev / 16


@given(values, stddevs, dtypes)
def test_every_result_lies_on_the_lattice(numbers, stddev, dtype):
    """The last digits of a sum cannot show through the noise: there are none."""
    sums = torch.tensor(numbers, dtype=dtype)
    noise = GaussianNoise()
    noise.add_([sums], stddev=stddev)

    steps = sums.double() / noise.granularity(stddev=stddev)
    assert torch.equal(steps, steps.round())


def test_floating_point_noise_lies_on_no_lattice():
    """Twin of the test above: it tells the fast generator from the exact one."""
    sums = torch.zeros(40)
    GaussianNoise(rng="fast").add_([sums], stddev=1.0)

    steps = sums.double() / GaussianNoise().granularity(stddev=1.0)
    assert not torch.equal(steps, steps.round())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@given(values, stddevs, dtypes, st.integers(0, 2**32))
def test_results_are_the_real_numbers_rounded(way, numbers, stddev, dtype, seed):
    """The result equals 400-bit arithmetic on the bits that were drawn."""
    x = torch.tensor(numbers, dtype=dtype)
    source = ByCell(words_of(len(numbers), np.uint16, seed=seed), seed=seed)
    noisy = rounded(x, stddev, source, way=way)

    for i, word in enumerate(source.words):
        bits = exact._joined(source.first_bits(word), source.more[word])
        expected = real_rounding(x[i].item(), real_normal(bits, 88), stddev)
        assert noisy[i].item() == torch.tensor(expected, dtype=dtype).item()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@given(values, dtypes, st.integers(0, 2**32), st.integers(1, 9))
def test_noise_does_not_depend_on_blocks(way, numbers, dtype, seed, block):
    """How many elements are rounded at once makes no difference to their noise."""
    x = torch.tensor([*numbers, math.inf, -math.inf, math.nan], dtype=dtype)
    source = ByCell(words_of(len(x), np.uint16, seed=seed), seed=seed)
    whole = rounded(x, 1e3, source, way=way)
    in_blocks = rounded(x, 1e3, source, way=way, block=block)

    assert torch.equal(whole.nan_to_num(), in_blocks.nan_to_num())
    assert torch.equal(whole.isfinite(), in_blocks.isfinite())


@pytest.mark.parametrize("first", [0, 1, 2**23 - 1, 2**23, 2**24 - 2, 2**24 - 1])
@pytest.mark.parametrize("word", [0, 1, 2**40, 2**63, 2**64 - 1])
def test_the_ends_of_the_uniform_are_exact(first, word):
    """Tails beyond 4 standard deviations get all the bits they need, on both sides."""
    keystream = Script([word], [word, word, 1])
    steps = exact.round_refined(
        np.array([first]), np.array([0.25]), scale=20.0, keystream=keystream
    )
    words = [word] if len(keystream.drawn) == 1 else [word, word, word, 1]
    uniform = exact._joined(first, *words)

    normal = real_normal(uniform, 24 + 64 * len(words))
    assert steps.tolist() == [mpmath.nint(0.25 + 20 * normal)]


def near_midpoints(num_elements):
    """Bits, and fractions that put each sum as near a midpoint as float64 can."""
    bits_E = words_of(num_elements, np.int64, seed=1) % (1 << 24)
    words_E = words_of(num_elements, UINT64, seed=2)
    rest_E3 = words_of(3 * num_elements, UINT64, seed=3).reshape(-1, 3)
    fraction_E = np.zeros(num_elements)
    expected = []
    for i in range(num_elements):
        normal = real_normal(
            exact._joined(bits_E[i], words_E[i], *rest_E3[i]), 24 + 256
        )
        with mpmath.workprec(400):
            fraction_E[i] = float(
                mpmath.floor(20 * normal) + mpmath.mpf(0.5) - 20 * normal
            )
            expected.append(int(mpmath.nint(fraction_E[i] + 20 * normal)))
    return bits_E, fraction_E, words_E, rest_E3, expected


def test_what_float64_cannot_decide_is_decided_by_more_digits():
    """Sums within 1e-16 of a midpoint of the lattice are rounded as real numbers."""
    bits_E, fraction_E, words_E, rest_E3, expected = near_midpoints(64)
    keystream = Script(words_E, *rest_E3)
    steps_E = exact.round_refined(bits_E, fraction_E, scale=20.0, keystream=keystream)

    assert steps_E.tolist() == expected


def test_float64_alone_errs_near_midpoints():
    """Twin of the test above: without the last resort it would fail."""
    bits_E, fraction_E, words_E, _rest, expected = near_midpoints(64)
    steps_E, unsure_E = exact._in_float64(bits_E, words_E, fraction_E, 20.0)

    assert steps_E.tolist() != expected
    assert unsure_E.all()


@pytest.mark.parametrize("wrong", [-3, 0, 4])
def test_the_last_resort_does_not_depend_on_its_guess(wrong):
    """Exact arithmetic finds the lattice point, wherever it starts to look."""
    words = [3 << 20, 0, 0, 0, 0]
    expected = int(mpmath.nint(0.1 + 20 * real_normal(3 << 276, 280)))
    found = exact.round_exact(words, 0.1, 20.0, expected + wrong, num_bits=280)

    assert found == expected


def test_a_sum_without_a_value_asks_for_no_digits():
    """Its search would have no end, also where the tail needs more than float64."""
    keystream = Script([0, 0])
    steps = exact.round_refined(
        np.array([0, 0]),
        np.array([math.nan, math.nan]),
        scale=20.0,
        keystream=keystream,
    )

    assert np.isnan(steps).all()
    assert len(keystream.drawn) == 1


ALL_CELLS = np.random.default_rng(8).permutation(1 << 16).astype(np.uint16)


def rounded_in_all_cells(dtype, magnitude, num_cells=1 << 16, way="numpy"):
    x = np.random.default_rng(7).normal(0, magnitude, num_cells)
    source = ByCell(ALL_CELLS[:num_cells])
    return rounded(torch.from_numpy(x).to(dtype), 1.99, source, way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [0.0, 9.0, 999.0, 1e6, 1e12])
def test_both_stages_agree(monkeypatch, way, dtype, magnitude):
    """What float32 decides by 24 bits, float64 decides alike by 88."""
    by_float32 = rounded_in_all_cells(dtype, magnitude, way=way)
    monkeypatch.setattr(float32_stage, "FLOAT32_ERROR", 1.0)
    by_float64 = rounded_in_all_cells(dtype, magnitude, way=way)

    assert torch.equal(by_float32, by_float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_resort_agrees_with_all_stages(monkeypatch, dtype):
    """What any stage decides, 320 bits decide alike."""
    by_stages = rounded_in_all_cells(dtype, 9.0, 600)
    monkeypatch.setattr(float32_stage, "FLOAT32_ERROR", 1.0)
    monkeypatch.setattr(exact, "SAFE_DISTANCE", -1.0)

    assert torch.equal(by_stages, rounded_in_all_cells(dtype, 9.0, 600))


@pytest.mark.slow
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_sums_at_the_ends_of_intervals_are_left_to_more_digits(way, end):
    """The bits that were not drawn may carry a sum across a midpoint of the lattice.

    Every sum is, at one end of what 24 bits leave, beyond a midpoint by less than float32
    sees, and short of it everywhere else.
    """
    words = np.arange(30, 65_500, 97).astype(np.uint16)
    stddev, scale = 1.25, 20.0  # The lattice is 1/16.
    source = ByCell(words)
    source.more[:] = source.rest[:] = end * (2**64 - 1)
    fractions, expected = [], []
    with mpmath.workprec(400):
        for word in words:
            first = source.first_bits(word)
            at_end = scale * real_normal((first + end << 300) - end, 324)
            beyond = mpmath.ldexp(1 if end else -1, -50)
            midpoint = mpmath.floor(at_end) + mpmath.mpf(0.5)
            fractions.append(float(midpoint - at_end + beyond))
            expected.append((float(midpoint) + (0.5 if end else -0.5)) / 16)
    x = torch.tensor(fractions, dtype=torch.float64) / 16

    assert rounded(x, stddev, source, way=way).tolist() == expected


@pytest.mark.parametrize("way", WAYS)
def test_float32_could_not_decide_alone(monkeypatch, way):
    """Twin of the tests above: without the next stage some roundings would be wrong."""
    right = rounded_in_all_cells(torch.float32, 3e4, way=way)
    monkeypatch.setattr(float32_stage, "FLOAT32_ERROR", -1.0)
    wrong = rounded_in_all_cells(torch.float32, 3e4, way=way)

    assert 10 < (right != wrong).sum() < 2000


@pytest.mark.slow
def test_every_point_is_within_its_reach():
    """What 24 bits leave is no further from its point than the table says.

    In float64, for all 16 million intervals that float32 may decide, and both ends of
    each: the quantile function is monotone.
    """
    scale = 1.0
    first, reach = lattice._chords(scale)[0].astype(np.float64)
    ratios = []
    for start in range(0, 1 << 16, 1 << 12):
        cells = np.arange(start, start + (1 << 12))
        ends = np.arange(start << 8, (start + (1 << 12) << 8) + 1) / (1 << 24)
        quantiles = exact.quantiles(ends)
        points = np.arange(256) / 4 * reach[cells, None] + first[cells, None]
        inner = np.flatnonzero(np.isfinite(points[:, 0]))
        left = quantiles[:-1].reshape(-1, 256)[inner] - points[inner]
        right = quantiles[1:].reshape(-1, 256)[inner] - points[inner]
        distances = np.maximum(abs(left), abs(right)).max(1)
        ratios.append((distances - 2.0**-23) / reach[cells[inner]])  # Of the table.
    ratios = np.concatenate(ratios)

    assert len(ratios) == pytest.approx(65_536 * (1 - 0.00032), abs=2)
    assert 0.8 < ratios.max() < 1


def test_the_cells_end_where_the_normal_distribution_says():
    """Edges of cells are quantiles up to 2**-44, as exact arithmetic finds them."""
    centres, halves = lattice.cells()
    edges = centres + halves
    with mpmath.workprec(100):
        for i in [*range(30), *range(30, 65_500, 97), *range(65_500, 65_535)]:
            edge, probability = mpmath.mpf(edges[i]), mpmath.mpf(i + 1) / (1 << 16)
            if i == 0:
                edge = mpmath.mpf(centres[0])
            assert mpmath.ncdf(edge - 2.0**-44) < probability
            assert mpmath.ncdf(edge + 2.0**-44) > probability


@pytest.mark.parametrize("magnitude", [0.0, 1.0, 300.0, 2.0**15])
@pytest.mark.parametrize("stddev", [1.0, 1.999])
def test_float32_errs_less_than_its_bound(magnitude, stddev):
    """In every cell the sum is within the bound of the argument, and not far below."""
    table = Lattice.of(stddev)
    words = np.arange(1 << 16).astype(np.uint16)
    points = words_of(1 << 16, np.uint8, seed=1)
    noise, _reach = NumpyFloat32(table, Workspace())._noise(words, points)
    centres, halves = lattice.cells()
    inner = np.isfinite(noise)
    parts = (points[inner].astype(np.float64) * 2 - 255) / 256
    real = (centres[inner] + halves[inner] * parts) * table.scale
    x = np.random.default_rng(0).uniform(-magnitude, magnitude, inner.sum())
    x = x.astype(np.float32)
    error = np.abs(
        (x + noise[inner]).astype(np.float64) - (x.astype(np.float64) + real)
    )

    bound = 2.0**-17 + 2.0**-23 + 2.0**-25 + 2.0**-24 * (magnitude + 2.0**7)
    assert bound / 8 < error.max() < bound


@pytest.mark.slow
def test_float64_errs_less_than_its_bound():
    """From the middle to the smallest tail it trusts, it stays below ``2**-38.5``."""
    bits_E = words_of(500, np.int64, seed=1) % (1 << 24)
    words_E = words_of(500, UINT64, seed=2)
    bits_E[:100], words_E[:100] = 0, 1 << 48  # U is just above 2**-40.
    bits_E[100:200], words_E[100:200] = 2**24 - 1, 2**64 - 1 - (1 << 48)
    scale = 2.0**44
    steps_E, unsure_E = exact._in_float64(bits_E, words_E, np.zeros(500), scale)
    errors = [
        abs(steps / scale - real_normal(exact._joined(*words), 88))
        for steps, *words in zip(steps_E, bits_E, words_E, strict=True)
    ]

    assert not unsure_E.all()
    assert 2.0**-60 < max(errors) < 2.0**-38.5


@given(values, stddevs, st.integers(1, 2**20))
def test_whole_steps_of_the_lattice_only_move_the_result(numbers, stddev, num_steps):
    """Adding lattice points to the sum adds them to the result: no other effect."""
    x = torch.tensor([0.0, *numbers, 0.0, *numbers], dtype=torch.float64)
    spacing = exact.granularity(stddev)
    steps = (x / 1e6 / spacing).round().clamp(-(2**52), 2**52)
    x = steps * spacing  # Sums that are exact to begin with, and when moved.
    source = ByCell(words_of(len(x), np.uint16, seed=0))
    moved = rounded(x + num_steps * spacing, stddev, source)

    assert torch.equal(moved, rounded(x, stddev, source) + num_steps * spacing)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("error", [lattice.FLOAT32_ERROR, 1.0])
def test_zero_has_no_sign(monkeypatch, way, dtype, error):
    """Which side of zero an inexact sum was on is more than the lattice point says.

    Neither where float32 decides it nor where float64 does.
    """
    monkeypatch.setattr(float32_stage, "FLOAT32_ERROR", error)
    x = torch.full((4000,), -0.03, dtype=dtype)
    noisy = rounded(x, 1.9, ByCell(words_of(4000, np.uint16, seed=0)), way=way)

    assert (noisy == 0).sum() > 20  # One in 77.
    assert not noisy[noisy == 0].signbit().any()


@pytest.mark.parametrize("way", WAYS)
def test_infinite_sums_stay_without_a_value(way):
    """An overflowed sum gives no number, and does not stop the others' noise."""
    x = torch.tensor([math.inf, 0.0, math.nan, 0.0, -math.inf, 0.0])
    noisy = rounded(x, 1.0, ByCell(words_of(6, np.uint16, seed=0)), way=way)

    assert not noisy[[0, 2, 4]].isfinite().any()
    assert noisy[[1, 3, 5]].isfinite().all()
