"""Norms and clipped sums are of full precision, whatever the model is allowed."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

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


def norms_of_small_factors(positions, data, slope, *, is_scaled):
    """Yield norms of an example with such factors and of an ordinary one, and both."""
    layer = nn.Linear(100, 100, bias=False)  # Too large to hold gradients of.
    x = torch.full((2, *positions, 100), data)
    x[1] = 1.0  # An ordinary example beside it.
    slopes = torch.tensor([slope, 1.0]).view(2, *[1] * (x.dim() - 1))
    num_positions = x[0].numel() // 100
    expected_B = num_positions * 100 * torch.tensor([data * slope, 1.0])
    scales = [torch.ones_like(layer.weight)] if is_scaled else []

    engine = Engine()
    for _ in range(2):  # A known graph may be served in another way.
        losses = (layer(x) * slopes).flatten(1).sum(1)
        gradients = engine.gradients(losses, [layer.weight])
        norms_GB = gradients.squared_norms([0], scales).sqrt()
        yield norms_GB[0], expected_B


small_factors = [
    pytest.mark.parametrize("is_scaled", [False, True]),
    pytest.mark.parametrize("positions", [(), (3,)], ids=str),
    # The squares of the larger one add up to infinity, or do not.
    pytest.mark.parametrize(
        ("data", "slope"),
        [(1e-23, 1e19), (1e19, 1e-23), (1e-23, 1e17), (1e17, 1e-23)],
    ),
]


def with_small_factors(test):
    for mark in small_factors:
        test = mark(test)
    return test


@with_small_factors
def test_the_square_of_a_small_factor_is_not_lost(positions, data, slope, is_scaled):
    """In float32 1e-23 squared is 0, and the gradient is 1e-4 or 1e-6 an element."""
    for norms_B, expected_B in norms_of_small_factors(
        positions, data, slope, is_scaled=is_scaled
    ):
        torch.testing.assert_close(norms_B, expected_B, rtol=1e-5, atol=0)


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize(("data", "slope"), [(1e-23, 1e19), (1e19, 1e-23)])
@pytest.mark.parametrize("units", [(0, 1, 1, 1, 2), (0, 1, 0, 2, 2)], ids=str)
def test_nor_is_that_of_units_with_several_rows(units, data, slope, is_scaled):
    """Some of whose buckets have their squares in float64, and others not."""
    layer = nn.Linear(100, 100, bias=False)
    unit_B = torch.tensor(units)
    is_small_B = unit_B == 0
    x = torch.where(is_small_B, data, 1.0)[:, None].expand(5, 100)
    slopes_B = torch.where(is_small_B, slope, 1.0)
    num_rows_U = unit_B.bincount()
    expected_U = 100 * num_rows_U * torch.tensor([1e-4, 1.0, 1.0])
    scales = [torch.ones_like(layer.weight)] if is_scaled else []

    engine = Engine()
    for _ in range(2):
        losses_B = layer(x).sum(1) * slopes_B
        gradients = engine.gradients(losses_B, [layer.weight], units=unit_B)
        norms_GU = gradients.squared_norms([0], scales).sqrt()

        torch.testing.assert_close(norms_GU[0], expected_U, rtol=1e-5, atol=0)


@with_small_factors
def test_an_accelerator_takes_for_lost_what_may_be(
    positions, data, slope, is_scaled, monkeypatch
):
    """It would have to wait to be asked: norms are no smaller, and ordinary ones equal."""
    monkeypatch.setattr("dp.per_sample._parts.part.is_far", lambda _: True)
    for norms_B, expected_B in norms_of_small_factors(
        positions, data, slope, is_scaled=is_scaled
    ):
        # Or NaN, where the other factor's square is infinite: it is clipped to nothing.
        assert not norms_B[0] < expected_B[0] * (1 - 1e-5)
        # From Gram matrices, norms of float32 are a hair larger in any case.
        torch.testing.assert_close(norms_B[1], expected_B[1], rtol=1e-4, atol=0)


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


class Scaled(nn.Module):
    """A parametrization that rounds: the weight is a multiple of its parameter."""

    def forward(self, weight):
        return weight * 0.7311


class Narrowed(nn.Module):
    """One that rounds on the way, between a wide parameter and a wide weight."""

    def forward(self, weight):
        return (weight.bfloat16() * 0.7311).float()


def scaled(layer, kind=Scaled):
    parametrize.register_parametrization(layer, "weight", kind())
    return layer


ROUNDED = {
    "weight norm, bfloat16": lambda layer: parametrizations.weight_norm(
        layer
    ).bfloat16(),
    "weight norm, float16": lambda layer: parametrizations.weight_norm(layer).half(),
    "a multiple, bfloat16": lambda layer: scaled(layer).bfloat16(),
    "narrow in between": lambda layer: scaled(layer, Narrowed),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", ROUNDED.values(), ids=ROUNDED)
def test_clipped_sums_are_of_the_gradients_that_norms_are_of(make):
    """Where a parametrization rounds to 16 bits, also of the only example: <= C.

    A sum that went back through it once was rounded anew: 1.0003 C was seen.
    """
    for seed in range(8):
        torch.manual_seed(seed)
        layer = make(nn.Linear(64, 64))
        x = 10 * torch.randn(3, 64).to(layer.bias.dtype)
        x[1:] = 0  # Their gradients reach the bias alone.
        parameters = [*layer.parameters()]
        for batch in (x[:1], x):
            gradients = Engine().gradients(
                layer(batch).float().square().sum(1), parameters
            )
            groups = [0] * len(parameters)
            factors = FlatClipping(max_grad_norm=1.0).factors(
                gradients.squared_norms(groups).sqrt()
            )
            factors[:, 1:] = 0
            sums = [torch.zeros(p.shape) for p in parameters]
            gradients.add_weighted_sum(factors, groups, sums)
            again = [torch.ones(p.shape) for p in parameters]
            gradients.add_weighted_sum(factors, groups, again, beta=1)
            norm = torch.cat([s.double().flatten() for s in sums]).norm()

            assert 0.999 < norm <= 1.0
            for once, added in zip(sums, again, strict=True):
                torch.testing.assert_close(added, once + 1)
