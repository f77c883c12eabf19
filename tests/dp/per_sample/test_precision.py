"""Norms and clipped sums are of full precision, whatever the model is allowed."""

import threading

import pytest
import torch
from torch import nn

from dp.clipping import FlatClipping
from dp.per_sample import Engine
from dp.per_sample._full_precision import FullPrecision


BACKENDS = {
    "cuda matmul": torch.backends.cuda.matmul,
    "cudnn conv": torch.backends.cudnn.conv,
    "mkldnn matmul": torch.backends.mkldnn.matmul,
    "mkldnn conv": torch.backends.mkldnn.conv,
}


@pytest.fixture
def tf32():
    """Allow what torch allows, as users of recent GPUs do."""
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    yield allowed()
    torch.backends.mkldnn.conv.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def allowed():
    return {name: backend.fp32_precision for name, backend in BACKENDS.items()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 80), nn.Tanh(), nn.Linear(80, 70))


def clipped(losses_B, parameters):
    gradients = Engine().gradients(losses_B, parameters)
    groups = [0] * len(parameters)
    norms_GB = gradients.squared_norms(groups).sqrt()
    factors_GB = FlatClipping(max_grad_norm=0.01).factors(norms_GB)
    sums = [torch.zeros_like(p) for p in parameters]
    gradients.add_weighted_sum(factors_GB, groups, sums)
    return norms_GB, sums


def losses_of(model):
    x = torch.linspace(-1, 1, 4 * 3 * 6).view(4, 3, 6)
    return model(x).float().square().mean((1, 2))


def test_an_autocast_around_the_backward_does_not_reach_clipping(model):
    """Its norms and sums are those outside of it, bit for bit."""
    parameters = [*model.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        outside = losses_of(model)
    expected = clipped(outside, parameters)

    with torch.autocast("cpu", torch.bfloat16):
        norms_GB, sums = clipped(losses_of(model), parameters)

    torch.testing.assert_close((norms_GB, sums), expected, rtol=0, atol=0)


def test_one_example_is_not_longer_than_the_bound_under_autocast(model):
    parameters = [*model.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        _, sums = clipped(losses_of(model)[:1], parameters)

    length = torch.cat([total.flatten() for total in sums]).double().norm()

    assert 0.0099 < length <= 0.01


def test_products_are_not_rounded_while_norms_and_sums_are_found(
    tf32, model, monkeypatch
):
    seen = []
    product = torch.Tensor.addmm_

    def watched(*args, **kwargs):
        seen.append(allowed())
        return product(*args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "addmm_", watched)

    clipped(losses_of(model), [*model.parameters()])

    assert tf32["mkldnn matmul"] == tf32["mkldnn conv"] == "bf16"
    assert seen
    for some in seen:
        assert {some["mkldnn matmul"], some["mkldnn conv"]} <= {"ieee", "none"}
    assert allowed() == tf32


@pytest.mark.parametrize("device_types", [{"cuda"}, {"cpu", "cuda"}, {"xpu"}])
def test_an_accelerator_rounds_no_products_either(tf32, device_types):
    assert "tf32" in tf32.values()

    with FullPrecision(device_types):
        assert {*allowed().values()} <= {"ieee", "none"}
    assert allowed() == tf32


def test_what_an_accelerator_may_do_is_left_alone_by_the_host(tf32):
    """Another thread's model may be trained there meanwhile."""
    with FullPrecision({"cpu"}):
        found = allowed()

    assert found["cuda matmul"] == tf32["cuda matmul"]
    assert found["cudnn conv"] == tf32["cudnn conv"]


def test_settings_return_with_the_last_thread(tf32):
    """One that ends early does not allow TF32 to one that has not ended."""
    entered, leave = threading.Event(), threading.Event()

    def other():
        with FullPrecision({"cuda"}):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with FullPrecision({"cuda"}):
        thread.start()
        entered.wait()
    try:
        assert {*allowed().values()} <= {"ieee", "none"}
    finally:
        leave.set()
        thread.join()
    assert allowed() == tf32


def test_settings_return_after_an_error(tf32):
    with pytest.raises(RuntimeError, match="half-way"), FullPrecision({"cpu"}):
        raise RuntimeError("half-way")

    assert allowed() == tf32
