"""That one kernel of Triton rounds as many of torch's operations do, bit for bit.

On a GPU; or on any machine that has Triton, by its interpreter, with
``TRITON_INTERPRET=1 python -m pytest tests/dp/gpu/test_rounding_kernel.py``.
"""

import math
import os

import pytest
import torch

from dp.noise._device import float32_stage
from dp.noise._device.chacha import ChaChaWords, kernel_on
from dp.noise._device.float32_stage import Lattice, TorchFloat32, TritonFloat32


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="no GPU"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # The interpreter's, of inf.
]

DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")
LARGEST = 5 if INTERPRETED else 3_000_001


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton")
    from dp.noise._device.kernels import (  # noqa: PLC0415
        chacha,
        rounding,
    )

    return chacha.write_blocks, rounding.round_in_float32


def in_both_ways(kernels, x, stddev):
    """Round with equal words; what is left to the next stage becomes zero."""
    write_blocks, round_in_float32 = kernels
    state, _num_blocks = ChaChaWords(DEVICE, write_blocks).blocks_for(0)
    words = float32_stage._Given(write_blocks, state)
    lattice = Lattice.on(DEVICE, stddev)
    found = []
    for stage, noisy in (
        (TritonFloat32(lattice, words, round_in_float32), x),
        (TorchFloat32(lattice, words), x.clone()),
    ):
        before = noisy.clone()
        left = stage.round_(noisy)
        assert torch.equal(left.x.nan_to_num(), before[left.indices].nan_to_num())
        noisy[left.indices] = 0.0
        found.append((noisy, left.indices, left.words))
    return found


@pytest.mark.parametrize("stddev", [1.0, 1.7, 1.99 * 2.0**-40, 1.37 * 2.0**50])
@pytest.mark.parametrize("magnitude", [0.0, 9.0, 2e4, 1e6])
@pytest.mark.parametrize("count", [1, 33, 4097, LARGEST])
def test_the_kernel_does_what_torch_does(kernels, count, magnitude, stddev):
    """Results, what is left and its bits, for any size of vectors and of sums."""
    x = torch.randn(count, device=DEVICE) * (magnitude * stddev)
    x[3:6] = torch.tensor([math.inf, math.nan, -1e35], device=DEVICE)[: len(x[3:6])]
    by_kernel, by_torch = in_both_ways(kernels, x, stddev)

    for ours, theirs in zip(by_kernel, by_torch, strict=True):
        assert torch.equal(ours, theirs)
    zeros = by_kernel[0][by_kernel[0] == 0]
    assert not zeros.signbit().any()


def test_it_writes_within_its_vector(kernels):
    """Neighbours in memory stay as they are, wherever the vector begins."""
    around = torch.zeros(1000, device=DEVICE)
    for start in (1, 2, 3, 7):
        by_kernel, by_torch = in_both_ways(kernels, around[start : start + 600], 1.7)

        assert torch.equal(by_kernel[0], by_torch[0])
        assert not around[:start].any()
        assert not around[start + 600 :].any()
        around.zero_()


@pytest.mark.skipif(INTERPRETED, reason="there is no GPU to choose it for")
def test_this_gpu_uses_the_kernel(recwarn):
    """It is found, compiled, compared and kept."""
    pytest.importorskip("triton")
    float32_stage.rounding_kernel_on.cache_clear()

    assert float32_stage.rounding_kernel_on(DEVICE, kernel_on(DEVICE))
    assert not recwarn.list
