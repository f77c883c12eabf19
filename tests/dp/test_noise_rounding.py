"""That ``round(x + N)`` is right to the last digit, whichever stage decides it."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from dp import _tuning
from dp.noise import GaussianNoise
from dp.noise._host import exact, lattice


UINT64 = np.dtype(np.uint64)

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
        spacing = mpmath.mpf(lattice.granularity(stddev))
        return float(mpmath.nint((mpmath.mpf(x) + stddev * normal) / spacing) * spacing)


class ByCell:
    """A keystream, and the rest of the bits, which an element's first ones determine.

    So an element's normal does not depend on which others need more bits.
    """

    def __init__(self, words, seed=0):
        self.words = words
        self.more = words_of(1 << 16, UINT64, seed=seed + 1)
        self.rest = words_of(3 << 16, UINT64, seed=seed + 2).reshape(-1, 3)

    def fill(self, words):
        words[:] = self.words

    def decide(self, bits_E, fraction_E, *, scale, keystream):
        assert keystream is self
        script = Script(self.more[bits_E], *self.rest[bits_E])
        return DECIDE(bits_E, fraction_E, scale=scale, keystream=script)


DECIDE = exact.round_refined


def rounded(x, stddev, source, *, num_short=0):
    noisy = x.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lattice, "round_refined", source.decide)
        patch.setattr(_tuning, "SHORT_VECTOR", num_short)
        stage = lattice.RoundedGaussian(stddev=stddev, keystream=source)
        stage.add_(noisy.numpy())
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


@given(values, stddevs, dtypes, st.integers(0, 2**32))
def test_results_are_the_real_numbers_rounded(numbers, stddev, dtype, seed):
    """The result equals 400-bit arithmetic on the bits that were drawn."""
    x = torch.tensor(numbers, dtype=dtype)
    source = ByCell(words_of(len(numbers), np.uint16, seed=seed), seed=seed)
    noisy = rounded(x, stddev, source)

    for i, word in enumerate(source.words):
        normal = real_normal(exact._joined(word, source.more[word]), 80)
        expected = real_rounding(x[i].item(), normal, stddev)
        assert noisy[i].item() == torch.tensor(expected, dtype=dtype).item()


@given(values, stddevs, dtypes, st.integers(0, 2**32))
def test_a_short_vector_gets_what_a_long_one_gets(numbers, stddev, dtype, seed):
    """Which stage a vector starts with makes no difference to its noise."""
    x = torch.tensor([*numbers, math.inf, -math.inf, math.nan], dtype=dtype)
    source = ByCell(words_of(len(x), np.uint16, seed=seed), seed=seed)
    short = rounded(x, stddev, source, num_short=len(x))
    long = rounded(x, stddev, source, num_short=len(x) - 1)

    assert torch.equal(short.nan_to_num(), long.nan_to_num())
    assert torch.equal(short.isfinite(), long.isfinite())


@pytest.mark.parametrize("first", [0, 1, 2**15 - 1, 2**15, 2**16 - 2, 2**16 - 1])
@pytest.mark.parametrize("word", [0, 1, 2**40, 2**63, 2**64 - 1])
def test_the_ends_of_the_uniform_are_exact(first, word):
    """Tails beyond 4 standard deviations get all the bits they need, on both sides."""
    keystream = Script([word], [word, word, 1])
    steps = exact.round_refined(
        np.array([first], np.uint16), np.array([0.25]), scale=20.0, keystream=keystream
    )
    words = [word] if len(keystream.drawn) == 1 else [word, word, word, 1]
    uniform = exact._joined(first, *words)

    normal = real_normal(uniform, 16 + 64 * len(words))
    assert steps.tolist() == [mpmath.nint(0.25 + 20 * normal)]


def near_midpoints(num_elements):
    """Bits, and fractions that put each sum as near a midpoint as float64 can."""
    bits_E = words_of(num_elements, np.uint16, seed=1)
    words_E = words_of(num_elements, UINT64, seed=2)
    rest_E3 = words_of(3 * num_elements, UINT64, seed=3).reshape(-1, 3)
    fraction_E = np.zeros(num_elements)
    expected = []
    for i in range(num_elements):
        normal = real_normal(
            exact._joined(bits_E[i], words_E[i], *rest_E3[i]), 16 + 256
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
    words = [3 << 12, 0, 0, 0, 0]
    expected = int(mpmath.nint(0.1 + 20 * real_normal(3 << 268, 272)))

    assert exact.round_exact(words, 0.1, 20.0, expected + wrong) == expected


ALL_CELLS = np.random.default_rng(8).permutation(1 << 16).astype(np.uint16)


def rounded_in_all_cells(dtype, magnitude, num_cells=1 << 16):
    x = np.random.default_rng(7).normal(0, magnitude, num_cells)
    return rounded(torch.from_numpy(x).to(dtype), 1.99, ByCell(ALL_CELLS[:num_cells]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [0.0, 9.0, 999.0, 1e6, 1e12])
def test_all_stages_agree(monkeypatch, dtype, magnitude):
    """What float32 decides, float64 decides alike, with any number of bits."""
    by_float32 = rounded_in_all_cells(dtype, magnitude)
    monkeypatch.setattr(lattice, "FLOAT32_ERROR", 1.0)
    by_float64 = rounded_in_all_cells(dtype, magnitude)
    monkeypatch.setattr(lattice, "_FLOAT64_ERROR", 1.0)
    by_all_bits = rounded_in_all_cells(dtype, magnitude)

    assert torch.equal(by_float32, by_float64)
    assert torch.equal(by_float32, by_all_bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_resort_agrees_with_all_stages(monkeypatch, dtype):
    """What any stage decides, 320 bits decide alike."""
    by_stages = rounded_in_all_cells(dtype, 9.0, 600)
    monkeypatch.setattr(lattice, "FLOAT32_ERROR", 1.0)
    monkeypatch.setattr(lattice, "_FLOAT64_ERROR", 1.0)
    monkeypatch.setattr(exact, "SAFE_DISTANCE", -1.0)

    assert torch.equal(by_stages, rounded_in_all_cells(dtype, 9.0, 600))


def test_float64_leaves_sums_at_the_ends_of_cells_to_more_digits():
    """Its own error may hide that a cell reaches across a midpoint of the lattice.

    Every sum is, at the end of its cell, above a midpoint by less than float64 sees.
    """
    words = np.arange(1000, 64_000, 97).astype(np.uint16)
    stddev, scale = 1.25, 20.0  # The lattice is 1/16.
    fractions, expected = [], []
    with mpmath.workprec(400):
        for word in words:
            end = scale * real_normal((int(word) + 1 << 300) - 1, 316)
            midpoint = mpmath.floor(end) + mpmath.mpf(0.5)
            fractions.append(float(midpoint - end + mpmath.ldexp(1, -50)))
            expected.append((float(midpoint) + 0.5) / 16)
    source = ByCell(words)
    source.more[:] = source.rest[:] = 2**64 - 1
    x = torch.tensor(fractions, dtype=torch.float64) / 16

    assert rounded(x, stddev, source).tolist() == expected


@pytest.mark.parametrize("stage", ["FLOAT32_ERROR", "_FLOAT64_ERROR"])
def test_no_stage_could_decide_alone(monkeypatch, stage):
    """Twin of the tests above: without the next stage some roundings would be wrong."""
    right = rounded_in_all_cells(torch.float32, 9.0)
    monkeypatch.setattr(lattice, stage, -1.0)
    wrong = rounded_in_all_cells(torch.float32, 9.0)

    assert 10 < (right != wrong).sum() < 2000


def test_the_cells_end_where_the_normal_distribution_says():
    """Edges of cells are quantiles up to 2**-44, as exact arithmetic finds them."""
    cells = lattice._cells()[:, 0] + lattice._cells()[:, 1]
    with mpmath.workprec(100):
        for i in [*range(30), *range(30, 65_500, 97), *range(65_500, 65_535)]:
            edge, probability = mpmath.mpf(cells[i]), mpmath.mpf(i + 1) / (1 << 16)
            if i == 0:
                edge = mpmath.mpf(lattice._cells()[0, 0])
            assert mpmath.ncdf(edge - 2.0**-44) < probability
            assert mpmath.ncdf(edge + 2.0**-44) > probability


@pytest.mark.parametrize("magnitude", [0.0, 1.0, 300.0, 2.0**15])
@pytest.mark.parametrize("scale", [16.0, 31.99])
def test_float32_errs_less_than_its_bound(magnitude, scale):
    """In every cell the sum is within the bound of the argument, and not far below."""
    table, _reach = lattice.lattice_table(scale)
    centres = lattice._cells()[:, 0] * scale
    x = np.random.default_rng(0).uniform(-magnitude, magnitude, len(table))
    x = x.astype(np.float32)
    inner = np.isfinite(table)
    error = np.abs((x + table).astype(np.float64) - (x.astype(np.float64) + centres))

    bound = 2.0**-18 + 2.0**-24 * (magnitude + 2.0**6.4)
    assert bound / 8 < error[inner].max() < bound
    assert inner.sum() == pytest.approx(65_536 * (1 - 0.0124), abs=20)


def test_float64_errs_less_than_its_bound():
    """From the middle to the smallest tail it trusts, it stays below ``2**-38.5``."""
    bits_E = words_of(500, np.uint16, seed=1)
    words_E = words_of(500, UINT64, seed=2)
    bits_E[:100], words_E[:100] = 0, 1 << 40  # U is just above 2**-40.
    bits_E[100:200], words_E[100:200] = 2**16 - 1, 2**64 - 1 - (1 << 40)
    scale = 2.0**44
    steps_E, unsure_E = exact._in_float64(bits_E, words_E, np.zeros(500), scale)
    errors = [
        abs(steps / scale - real_normal(exact._joined(*words), 80))
        for steps, *words in zip(steps_E, bits_E, words_E, strict=True)
    ]

    assert not unsure_E.all()
    assert 2.0**-60 < max(errors) < 2.0**-38.5


@given(values, stddevs, st.integers(1, 2**20))
def test_whole_steps_of_the_lattice_only_move_the_result(numbers, stddev, num_steps):
    """Adding lattice points to the sum adds them to the result: no other effect."""
    x = torch.tensor([0.0, *numbers, 0.0, *numbers], dtype=torch.float64)
    spacing = lattice.granularity(stddev)
    steps = (x / 1e6 / spacing).round().clamp(-(2**52), 2**52)
    x = steps * spacing  # Sums that are exact to begin with, and when moved.
    source = ByCell(words_of(len(x), np.uint16, seed=0))
    moved = rounded(x + num_steps * spacing, stddev, source)

    assert torch.equal(moved, rounded(x, stddev, source) + num_steps * spacing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [4000, 1 << 17])
def test_zero_has_no_sign(dtype, count):
    """Which side of zero an inexact sum was on is more than the lattice point says."""
    sums = torch.full((count,), -0.03, dtype=dtype)
    GaussianNoise().add_([sums], stddev=1.9)

    assert (sums == 0).sum() > 20  # One in 77.
    assert not sums[sums == 0].signbit().any()


def test_infinite_sums_stay_without_a_value():
    """An overflowed sum gives no number, and does not stop the others' noise."""
    x = torch.tensor([math.inf, 0.0, math.nan, 0.0, -math.inf, 0.0])
    noisy = rounded(x, 1.0, ByCell(words_of(6, np.uint16, seed=0)))

    assert not noisy[[0, 2, 4]].isfinite().any()
    assert noisy[[1, 3, 5]].isfinite().all()
