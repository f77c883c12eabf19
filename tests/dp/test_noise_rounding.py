"""That ``round(x + N)`` is right to the last digit, whichever stage decides it."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from dp.noise import GaussianNoise, _refinement, _rounding


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

    def integers(self, count, dtype):
        if self.words:
            drawn = np.asarray(self.words.pop(0), dtype=dtype)
            assert len(drawn) == count
        else:
            ends = np.iinfo(dtype)
            drawn = self.rng.integers(
                ends.min, ends.max, count, dtype=dtype, endpoint=True
            )
        self.drawn.append(drawn)
        return drawn


def real_normals(u, v, num_bits):
    """Box-Muller of the middle of what *num_bits* leave open, with 400 bits."""
    with mpmath.workprec(400):
        uniform = mpmath.ldexp(2 * int(u) + 1, -num_bits - 1)
        angle = mpmath.pi * mpmath.ldexp(2 * int(v) + 1, -num_bits - 1)
        radius = mpmath.sqrt(-2 * mpmath.log(uniform))
        return radius * mpmath.cos(angle), radius * mpmath.sin(angle)


def real_rounding(x, normal, stddev):
    """The multiple of the granularity next to ``x + stddev * normal``."""
    with mpmath.workprec(400):
        spacing = mpmath.mpf(_rounding.granularity(stddev))
        return float(mpmath.nint((mpmath.mpf(x) + stddev * normal) / spacing) * spacing)


def rounded(x, stddev, keystream):
    noisy = x.clone()
    _rounding.RoundedGaussian(stddev=stddev, keystream=keystream).add_(noisy.numpy())
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
    x = torch.tensor(numbers * 2, dtype=dtype)
    keystream = Script(seed=seed)
    noisy = rounded(x, stddev, keystream)
    u, v = keystream.drawn[0].reshape(2, -1)

    for i in range(len(numbers)):
        normals = real_normals(u[i] & 0x7FFFFFFF, v[i], 31)
        for at, normal in zip((i, i + len(numbers)), normals, strict=True):
            expected = real_rounding(x[at].item(), normal, stddev)
            assert noisy[at].item() == torch.tensor(expected, dtype=dtype).item()


@pytest.mark.parametrize(
    "first", [0, 1, 2**15, 2**16 - 1, 2**16, 2**31 - 2**18, 2**31 - 2, 2**31 - 1]
)
@pytest.mark.parametrize("word", [0, 1, 2**52, 2**63, 2**64 - 1])
def test_the_ends_of_the_uniform_are_exact(first, word):
    """Radii near zero, and tails beyond 6.6, get all the bits they need."""
    fractions = np.array([[0.25], [-0.25]])
    keystream = Script([word, 77], [word, word, word, 1, 2, 3])
    steps = _refinement.decide(
        np.array([[first], [123_456_789]]), fractions, scale=20.0, keystream=keystream
    )

    more = ([word, word, word, word], [77, 1, 2, 3])
    if len(keystream.drawn) == 1:  # Float64 was enough; the rest cannot matter.
        more = ([word], [77])
    u, v = (
        _refinement._joined(head, *words)
        for head, words in zip((first, 123_456_789), more, strict=True)
    )
    normals = real_normals(u, v, 31 + 64 * len(more[0]))
    expected = [
        mpmath.nint(f + 20 * n) for f, n in zip(fractions[:, 0], normals, strict=True)
    ]
    assert steps[:, 0].tolist() == expected


def near_midpoints(num_pairs):
    """Bits, and fractions that put each cosine as near a midpoint as float64 can."""
    bits_2P = Script(seed=1).integers(2 * num_pairs, np.dtype(np.int32)).reshape(2, -1)
    bits_2P[0] &= 0x7FFFFFFF
    words = Script(seed=2).integers(2 * num_pairs, UINT64).reshape(2, -1)
    rest = Script(seed=3).integers(6 * num_pairs, UINT64).reshape(-1, 6)
    fraction_2P = np.zeros((2, num_pairs))
    expected = []
    for i in range(num_pairs):
        u = _refinement._joined(bits_2P[0, i], words[0, i], *rest[i, :3])
        v = _refinement._joined(bits_2P[1, i], words[1, i], *rest[i, 3:])
        cosine, _sine = real_normals(u, v, 31 + 256)
        with mpmath.workprec(400):
            fraction_2P[0, i] = float(
                mpmath.floor(20 * cosine) + mpmath.mpf(0.5) - 20 * cosine
            )
            expected.append(int(mpmath.nint(fraction_2P[0, i] + 20 * cosine)))
    return bits_2P, fraction_2P, words, rest, expected


def test_what_float64_cannot_decide_is_decided_by_more_digits():
    """Sums within 1e-16 of a midpoint of the lattice are rounded as real numbers."""
    bits_2P, fraction_2P, words, rest, expected = near_midpoints(64)
    keystream = Script(words.reshape(-1), *rest)
    steps_2P = _refinement.decide(bits_2P, fraction_2P, scale=20.0, keystream=keystream)

    assert steps_2P[0].tolist() == expected


def test_float64_alone_errs_near_midpoints():
    """Twin of the test above: without the last resort it would fail."""
    bits_2P, fraction_2P, words, _rest, expected = near_midpoints(64)
    steps_2P, unsure_P = _refinement._in_float64(bits_2P, words, fraction_2P, 20.0)

    assert steps_2P[0].tolist() != expected
    assert unsure_P.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_stages_agree(monkeypatch, dtype):
    """What float32 decides, float64 decides alike, and so do 320 bits."""
    x = torch.from_numpy(np.random.default_rng(7).normal(0, 99, 4000)).to(dtype)
    by_float32 = rounded(x, 3.3, Script())
    monkeypatch.setattr(_rounding, "_SAFE_DISTANCE", -1.0)
    by_float64 = rounded(x, 3.3, Script())
    monkeypatch.setattr(_refinement, "_SAFE_DISTANCE", -1.0)
    exact = rounded(x, 3.3, Script())

    assert torch.equal(by_float32, by_float64)
    assert torch.equal(by_float32, exact)


def test_float32_alone_errs():
    """Twin of the tests above: without refinement some roundings would be wrong."""
    x = torch.zeros(1 << 18)
    right = rounded(x, 1.99, Script())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rounding, "decide", lambda _bits, fraction_2P, **_: fraction_2P)
        patch.setattr(_rounding, "_SAFE_DISTANCE", 0.5)
        wrong = rounded(x, 1.99, Script())

    assert 0 < (right != wrong).sum() < 1000


def test_float32_errs_less_than_its_bound():
    """Over 4 million normals the error stays below the 2**-16.6 of the argument."""
    num_pairs = 1 << 21
    bits_2P = Script().integers(2 * num_pairs, np.dtype(np.int32)).reshape(2, -1)
    stage = _rounding.RoundedGaussian(stddev=1.0, keystream=Script())
    normals_2P, radius_P = stage._normals(bits_2P)
    u_P, v_P = (bits_2P[0] & 0x7FFFFFFF) + 0.5, bits_2P[1] + 0.5
    true_radius_P = np.sqrt(-2 * np.log(u_P * 2.0**-31))
    true_P = true_radius_P * np.cos(v_P * (math.pi * 2.0**-31))
    trusted_P = (radius_P > 2.0**-5) & (radius_P < 4.5)

    error_P = np.abs(normals_2P[0].astype(np.float64) - true_P)[trusted_P]
    assert 2.0**-24 < error_P.max() < 2.0**-16.6


def test_float64_errs_less_than_its_bound():
    """On 500 pairs, and at the smallest radii trusted, it stays below ``2**-41.6``."""
    bits_2P = Script().integers(1000, np.dtype(np.int32)).reshape(2, -1)
    bits_2P[0] &= 0x7FFFFFFF
    bits_2P[0, :250] = 2**31 - 2**11  # Just above the smallest trusted radius.
    words = Script(seed=9).integers(1000, UINT64).reshape(2, -1)
    errors = []
    for i, scale in enumerate([2.0**30] * bits_2P.shape[1]):
        at = slice(i, i + 1)
        zero = np.zeros((2, 1))
        steps_2, _ = _refinement._in_float64(bits_2P[:, at], words[:, at], zero, scale)
        u, v = (_refinement._joined(bits_2P[j, i], words[j, i]) for j in (0, 1))
        cosine, sine = real_normals(u, v, 31 + 64)
        errors += [
            abs(steps_2[0, 0] / scale - cosine),
            abs(steps_2[1, 0] / scale - sine),
        ]

    assert max(errors) < 2.0**-31 + 2.0**-41.6


@given(values, stddevs, st.integers(1, 2**20))
def test_whole_steps_of_the_lattice_only_move_the_result(numbers, stddev, num_steps):
    """Adding lattice points to the sum adds them to the result: no other effect."""
    x = torch.tensor([0.0, *numbers, 0.0, *numbers], dtype=torch.float64)
    spacing = _rounding.granularity(stddev)
    steps = (x / 1e6 / spacing).round().clamp(-(2**52), 2**52)
    x = steps * spacing  # Sums that are exact to begin with, and when moved.
    moved = rounded(x + num_steps * spacing, stddev, Script())

    assert torch.equal(moved, rounded(x, stddev, Script()) + num_steps * spacing)


def test_infinite_sums_stay_without_a_value():
    """An overflowed sum gives no number, and does not stop the others' noise."""
    x = torch.tensor([math.inf, 0.0, math.nan, 0.0])
    noisy = rounded(x, 1.0, Script())

    assert not noisy[[0, 2]].isfinite().any()
    assert noisy[[1, 3]].isfinite().all()
