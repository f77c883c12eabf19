"""Functions of one's own, with and without a rule of one's own.

Shapes: ``B`` examples.
"""

import warnings

import pytest
import torch
from torch import nn

from dp.exceptions import UnsupportedOperationError
from dp.per_sample import Engine, rule_for
from dp.per_sample._rules import custom


B = 5
pytestmark = pytest.mark.usefixtures("float64", "_no_rules")


@pytest.fixture
def _no_rules(monkeypatch):
    monkeypatch.setattr(custom, "_RULES", {})


def function():
    """A function with a number between its tensors, and two outputs."""

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, power, w, frozen):
            ctx.save_for_backward(x, w)
            ctx.power = power
            return x**power * w, x + frozen

        @staticmethod
        def backward(ctx, grad, other):
            x, w = ctx.saved_tensors
            power = ctx.power
            to_x = grad * power * x ** (power - 1) * w + other
            return to_x, None, (grad * x**power).flatten(0, -2).sum(0), None

    return Scale


def correct(ctx, grad, _other):
    x, _ = ctx.saved_tensors
    weighted = grad * x**ctx.power
    return None, None, weighted.flatten(1, -2).sum(1) if x.dim() > 2 else weighted, None


def used(scale, x, w):
    return scale.apply(x, 3, w, torch.ones(3))


@pytest.fixture
def weights():
    return nn.Parameter(torch.randn(3))


@pytest.mark.filterwarnings("ignore:no rule serves")
@pytest.mark.parametrize("output", [0, 1])
def test_arguments_that_are_no_tensors_change_nothing(output, weights, assert_exact):
    """Gradients are those of the parameter, wherever it stands among them."""
    layer = nn.Linear(3, 3)
    outputs = used(function(), layer(torch.randn(B, 3)), weights)

    losses_B = outputs[output].sin().sum(1)
    assert_exact(losses_B, [weights, *layer.parameters()])


@pytest.mark.parametrize("shape", [(B, 3), (1, 3), (B, 4, 3)], ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_a_rule_serves_a_function(shape, learned, weights, assert_exact):
    """No warning, and exact, at the end of the graph and in its middle."""
    scale, layer = function(), nn.Linear(3, 3).requires_grad_(requires_grad=learned)
    rule_for(scale)(correct)
    engine = Engine()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            hidden = layer(torch.randn(shape))
            powers, _ = used(scale, hidden, weights)
            losses_B = powers.sin().flatten(1).sum(1)
            parameters = [p for p in (weights, *layer.parameters()) if p.requires_grad]
            assert_exact(losses_B, parameters, engine=engine)


def test_a_rule_that_errs_is_refused(weights):
    """The function itself says what is right, the first time that there is anything."""
    scale = function()

    @rule_for(scale)
    def doubled(ctx, grad, other):
        return None, None, 2 * correct(ctx, grad, other)[2], None

    x, engine = torch.randn(B, 3), Engine()
    nothing, _ = used(scale, x * 0, weights)
    assert not engine.gradients(nothing.sum(1), [weights]).squared_norms([0]).any()
    powers, _ = used(scale, x, weights)
    with pytest.raises(UnsupportedOperationError, match=r"rule for Scale errs by \d"):
        engine.gradients(powers.sum(1), [weights])


@pytest.mark.parametrize("answer", [None, torch.ones(3)], ids=["none", "summed"])
def test_a_rule_answers_a_row_an_example(answer, weights):
    """A gradient that is missing or summed up is never taken for zero or spread."""
    scale = function()
    rule_for(scale)(lambda _ctx, _grad, _other: (None, None, answer, None))
    powers, _ = used(scale, torch.randn(B, 3), weights)

    with pytest.raises(UnsupportedOperationError, match=r"shape \(5, 3\), for a param"):
        Engine().gradients(powers.sum(1), [weights])


@pytest.mark.filterwarnings("ignore:no rule serves")
def test_a_rule_waits_for_examples_in_front(weights, assert_exact):
    """Where they are elsewhere, the function's own backward serves."""
    scale = function()
    rule_for(scale)(correct)
    powers, _ = used(scale, torch.randn(4, B, 3), weights)

    assert_exact(powers.sin().sum((0, 2)), [weights])


def test_a_rule_is_for_a_function_of_autograd():
    """Anything else would never meet a node."""
    with pytest.raises(TypeError, match=r"subclass of torch\.autograd\.Function, got"):
        rule_for(nn.Linear)
