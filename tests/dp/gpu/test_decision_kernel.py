"""That Triton's kernels decide what is left as torch's operations do.

On a GPU; or on any machine that has Triton, by its interpreter, with
``TRITON_INTERPRET=1 python -m pytest tests/dp/gpu/test_decision_kernel.py``.
"""

import os

import pytest
import torch

from dp.noise._device import float64_stage, noise
from dp.noise._device.float32_stage import Lattice, TritonFloat32, Undecided
from dp.noise._device.float64_stage import TorchFloat64, TritonFloat64


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="no GPU"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # The interpreter's, of inf.
]

DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")
SMALLEST_TAILS = 2000


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton")
    from dp.noise._device.kernels import decision  # noqa: PLC0415

    return decision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [0.0, 9.0, 1e6, 1e15, 3e16])
@pytest.mark.parametrize("count", [1, 255, 257, 20_000])
def test_the_kernels_do_what_torch_does(kernels, count, magnitude, dtype):
    """Results, and for which more digits are wanted, in the tails as well."""
    for stddev in (1.7, 2.0**-40 * 1.99):
        lattice = Lattice.on(DEVICE, stddev)
        x = torch.randn(count, device=DEVICE, dtype=torch.float64)
        x = (x * (magnitude * stddev)).to(dtype)
        indices = torch.randperm(count, device=DEVICE)
        words = torch.randint(-(1 << 15), 1 << 15, (count,), device=DEVICE)
        words[:SMALLEST_TAILS] = torch.randint(2, words.shape)[:SMALLEST_TAILS] - 1
        more = torch.randint(-(1 << 63), (1 << 63) - 1, (count,), device=DEVICE)
        more[:SMALLEST_TAILS] >>= (torch.arange(count, device=DEVICE) % 64)[
            :SMALLEST_TAILS
        ]
        left = Undecided(indices, x[indices], words.to(torch.int16))
        ours, theirs = torch.full_like(x, 7.0), x.clone()
        unsure = TritonFloat64(lattice, kernels).round_(ours, left, more)
        expected = TorchFloat64(lattice).round_(theirs, left, more)
        theirs[indices[expected]] = 7.0

        assert torch.equal(unsure, expected)
        assert torch.equal(ours, theirs)
        assert not ours[indices[~unsure]][ours[indices[~unsure]] == 0].signbit().any()


@pytest.mark.skipif(INTERPRETED, reason="there is no GPU to choose them for")
def test_this_gpu_uses_all_kernels(recwarn):
    """They are found, compiled, compared and kept; nothing warns."""
    pytest.importorskip("triton")
    float64_stage.last_stage_on.cache_clear()
    stage = noise._noise_on(DEVICE, 1.7, None, 1)

    assert isinstance(stage._first_stage, TritonFloat32)
    assert isinstance(stage._last_stage, TritonFloat64)
    assert not recwarn.list
