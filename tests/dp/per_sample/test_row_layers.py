"""Linear layers that meet one row of each example take a short way.

Shapes: ``B`` examples.
"""

import gc
import weakref
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dp.exceptions import SampleMixingError, WrongGradientError
from dp.per_sample import Engine
from dp.per_sample._isolation.verification import Verification
from dp.per_sample._row_layers import OuterProducts, RowLayer, RowLayers


B = 5
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def short():
    """How many layers of each backward pass took the short way."""
    counts, made = [], RowLayers.__init__

    def counted(self, *args):
        made(self, *args)
        counts.append(len(self.layers))

    with patch.object(RowLayers, "__init__", counted):
        yield counts


def unverified():
    """Return an engine that makes one backward pass a batch."""
    return Engine(verification=Verification(first=0, every=1 << 60))


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def perceptron(*, bias=True):
    return nn.Sequential(
        nn.Linear(4, 7, bias=bias), nn.Tanh(), nn.Linear(7, 3, bias=bias)
    )


def with_a_frozen_bias():
    model = perceptron()
    model[0].bias.requires_grad_(False)  # noqa: FBT003 -- torch's signature
    return model


def with_a_frozen_weight():
    model = perceptron()
    model[0].weight.requires_grad_(False)  # noqa: FBT003 -- torch's signature
    return model


def between_others():
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)),
        nn.Conv1d(1, 2, 3),
        nn.Flatten(),
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 3),
    )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(self.layer(x)))


class OverPositions(nn.Module):
    """Three rows of each example, in one matrix."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(2, 3), nn.Linear(6, 3)

    def forward(self, x):
        rows = self.layer(torch.cat([x, x[:, :2]], 1).view(-1, 2))
        return self.head(rows.view(len(x), -1)[:, :6])


class Operands(nn.Module):
    """Weights and biases that are other things than parameters as they are."""

    def __init__(self):
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))
        self.b = nn.Parameter(torch.randn(1, 3))

    def forward(self, x):
        return torch.addmm(self.b, x, self.w) + x @ (2 * self.v)


MODELS = {
    "with biases": (perceptron, 2),
    "without biases": (lambda: perceptron(bias=False), 2),
    "a frozen bias": (with_a_frozen_bias, 2),
    "a frozen weight": (with_a_frozen_weight, 1),
    "between others": (between_others, 2),
    "a tied layer": (Tied, 1),
    "several positions": (OverPositions, 1),
    "other operands": (Operands, 0),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_loop(name, short, assert_exact, per_example):
    """At the first batch and later, of another size too, on the way that fits."""
    made, expected = MODELS[name]
    model, engine = made(), unverified()

    for rows in (B, B, B + 2, B):
        losses_B = per_example(model(torch.randn(rows, 4)))
        assert_exact(losses_B, trained(model), engine=engine)

    # A graph is walked in the first batch, and known in those after it.
    assert short == [0, *[expected] * 3]


@pytest.mark.parametrize("bias", [True, False])
def test_one_group_has_the_norms_of_all(bias, per_example):
    """Norms of weights and biases that are clipped together are added up at once."""
    model, engine = perceptron(bias=bias), unverified()
    x, parameters = torch.randn(B, 4), trained(model)
    each = [*range(len(parameters))]

    for _ in range(2):
        gradients = engine.gradients(per_example(model(x)), parameters)
        by_tensor = gradients.squared_norms(each)

    torch.testing.assert_close(
        gradients.squared_norms([0] * len(parameters))[0], by_tensor.sum(0)
    )


def known(model, x, per_example):
    """Return the gradients of a batch whose graph is known, and the losses' pass."""
    engine = unverified()
    engine.gradients(per_example(model(x)), trained(model))
    return engine.gradients(per_example(model(x)), trained(model))


def test_scaled_norms_are_those_of_every_tensor(by_loop, per_example):
    """Where coordinates are scaled before they are clipped."""
    model, x = perceptron(), torch.randn(B, 4)
    parameters = trained(model)
    expected = by_loop(per_example(model(x)), parameters)
    scales = [torch.rand_like(p) for p in parameters]

    found = known(model, x, per_example).squared_norms([0] * 4, scales)[0]

    true = sum(
        (rows * scale).flatten(1).square().sum(1)
        for rows, scale in zip(expected, scales, strict=True)
    )
    torch.testing.assert_close(found, true)


def test_sums_may_be_wider_than_gradients(per_example):
    """Sums in float64 of gradients in float32."""
    model, x = perceptron().float(), torch.randn(B, 4, dtype=torch.float32)
    gradients = known(model, x, per_example)
    narrow = [torch.zeros_like(p) for p in trained(model)]
    wide = [total.double() for total in narrow]
    factors_GB = torch.rand(1, B, dtype=torch.float32)

    for sums in (narrow, wide):
        gradients.add_weighted_sum(factors_GB, [0] * 4, sums)

    for one, other in zip(narrow, wide, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_is_left_out(per_example):
    """Of one example alone, whose factor is 0 then."""
    model, x = perceptron(), torch.randn(B, 4)
    parameters = trained(model)
    spoiled = x.clone()
    spoiled[1] = torch.inf
    factors_GB = torch.ones(1, B)
    factors_GB[:, 1] = 0
    sums = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]

    for data, some in zip((x, spoiled), sums, strict=True):
        known(model, data, per_example).add_weighted_sum(factors_GB, [0] * 4, some)

    for one, other in zip(*sums, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_a_layer_is_freed_when_its_sum_is_there(per_example):
    """Nothing holds the data once the gradients were used up."""
    gradients = known(perceptron(), torch.randn(B, 4), per_example)
    held = [weakref.ref(one) for one in gradients._rows._inputs]
    assert len(held) == 2

    shapes = ((7, 4), (7,), (3, 7), (3,))
    gradients.weighted_sums(
        torch.ones(1, B), [0] * 4, lambda _: [*map(torch.empty, shapes)]
    )
    gc.collect()

    assert [reference() for reference in held] == [None, None]


class Cut(torch.autograd.Function):
    """A user's function that sends nothing back."""

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, _grad):
        return None


def test_layers_that_nothing_reaches_have_gradients_of_zero(assert_exact, per_example):
    """As of what a custom function cuts off."""
    model, engine = perceptron(), unverified()
    for _ in range(2):
        hidden = Cut.apply(model[0](torch.randn(B, 4)))
        assert_exact(per_example(model[2](hidden)), trained(model), engine=engine)


@pytest.mark.parametrize("change", [{"alpha": 2}, {"beta": 3}])
def test_factors_of_a_product_are_looked_at_in_every_batch(
    change, short, assert_exact, per_example
):
    """No form and no size of a graph shows them."""
    w, b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    engine = unverified()

    for kwargs in ({}, {}, change):
        outputs = torch.addmm(b, torch.randn(B, 4), w.t(), **kwargs)
        assert_exact(per_example(outputs), [w, b], engine=engine)

    assert short == [0, 1, 0]


def test_a_checkpoint_is_not_read(short, assert_exact, per_example):
    """What it keeps would be computed again, so that its layers take the usual way."""
    model, engine = perceptron(), unverified()

    for checkpointed in (False, False, True):
        x = torch.randn(B, 4)
        outputs = (
            checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        )
        assert_exact(per_example(outputs), trained(model), engine=engine)

    assert short == [0, 2, 0]


def test_memory_that_is_freed_before_a_layer_is_left_to_others():
    """What a layer frees, less what is held of it, the use before it may take."""
    layers = [RowLayer(i, i, None, "_saved_self", 3, torch.float64) for i in (0, 2, 3)]
    rows = RowLayers([], [])
    rows.layers, rows.inputs = layers, [torch.zeros(2, 4)] * 3
    held = 8 * 2 * (4 + 3)

    freed = rows.bytes_freed([1000.0, 2000.0, 3000.0, 4000.0])

    assert freed[1] == 2000 + 3000 + 4000 - 2 * held
    assert rows.bytes_freed([1.0] * 3) == [1.0] * 3  # Nobody else is there.


DEFECTS = {
    "sums that are too small": (lambda factors_B: factors_B / 2, WrongGradientError),
    "factors of another unit": (lambda factors_B: factors_B.roll(1), SampleMixingError),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_wrong_sums_are_noticed(name, per_example):
    """What the short way finds is compared with torch's own backward pass."""
    model, engine, found = perceptron(), Engine(), OuterProducts.add_weighted_sums
    change, error = DEFECTS[name]
    engine.gradients(per_example(model(torch.randn(B, 4))), trained(model))

    def wrong(self, factors, *args, **kwargs):
        return found(self, [*map(change, factors)], *args, **kwargs)

    with (
        patch.object(OuterProducts, "add_weighted_sums", wrong),
        pytest.raises(error, match=r"torch's own|mixed"),
    ):
        engine.gradients(per_example(model(torch.randn(B, 4))), trained(model))


def test_norms_that_are_too_small_are_noticed(per_example):
    """A norm that leaves out the weights lets examples contribute too much."""
    model, engine = perceptron(), Engine()
    engine.gradients(per_example(model(torch.randn(B, 4))), trained(model))

    def of_biases(self, norms, group_of):
        for layer, grads_BO in zip(self._layers, self._grads, strict=True):
            norms[group_of[layer.bias]] += grads_BO.square().sum(1)

    with (
        patch.object(OuterProducts, "add_squared_norms", of_biases),
        pytest.raises(WrongGradientError, match="torch's own"),
    ):
        engine.gradients(per_example(model(torch.randn(B, 4))), trained(model))
