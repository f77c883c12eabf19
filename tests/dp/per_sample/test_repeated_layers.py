"""Linear layers that are used at many steps are served as one use.

Shapes: ``B`` examples, ``T`` steps.
"""

from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dp.exceptions import SampleMixingError, WrongGradientError
from dp.per_sample import Engine, _backward_pass
from dp.per_sample._isolation.verification import Verification
from dp.per_sample._parts.part import MaterializedGrads
from dp.per_sample._repeated_layers import parts_of_steps


B, T = 5, 4
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def joined():
    """How many steps of each layer were served as one, in the order of the passes."""
    counts = []

    def counted(layer, *args):
        counts.append(len(layer.steps))
        return parts_of_steps(layer, *args)

    with patch.object(_backward_pass, "parts_of_steps", counted):
        yield counts


def unverified():
    """Return an engine that makes one backward pass a batch."""
    return Engine(verification=Verification(first=0, every=1 << 60))


class Recurrent(nn.Module):
    """A layer of torch's, over T steps of each example."""

    def __init__(self, kind=nn.GRU, **kwargs):
        super().__init__()
        self.layer = kind(3, 4, batch_first=True, **kwargs)

    def forward(self, x):
        return self.layer(x)[0].flatten(1)


class Steps(nn.Module):
    """A recurrence that is written out: h = tanh(hidden(h) + x_t)."""

    def __init__(self, *, bias=True):
        super().__init__()
        self.hidden = nn.Linear(3, 3, bias=bias)

    def forward(self, x):
        h = torch.zeros(len(x), 3)
        for x_t in x.unbind(1):
            h = (self.hidden(h) + x_t).tanh()
        return h


class AlsoElsewhere(Steps):
    """The same weight once more, over all steps at once."""

    def forward(self, x):
        return super().forward(x) + (x @ self.hidden.weight).sum(1)


class BiasElsewhere(Steps):
    """The same bias once more, in a sum."""

    def forward(self, x):
        return super().forward(x) + self.hidden.bias


def with_a_frozen_bias():
    model = Steps()
    model.hidden.bias.requires_grad_(False)  # noqa: FBT003 -- torch's signature
    return model


MODELS = {
    "a GRU": (Recurrent, [T]),
    "two layers": (lambda: Recurrent(num_layers=2), [T, T]),
    "both directions": (lambda: Recurrent(bidirectional=True), [T, T]),
    "torch's plain layer": (lambda: Recurrent(nn.RNN), [T]),
    "steps by hand": (Steps, [T]),
    "no bias": (lambda: Steps(bias=False), [T]),
    "a frozen bias": (with_a_frozen_bias, [T]),
    "a weight that is used elsewhere": (AlsoElsewhere, []),
    "a bias that is used elsewhere": (BiasElsewhere, []),
}


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_loop(name, joined, assert_exact, per_example):
    """At the first batch and later, of another size too."""
    made, expected = MODELS[name]
    model, engine = made(), unverified()

    for rows in (B, B, B + 2, B):
        losses_B = per_example(model(torch.randn(rows, T, 3)))
        assert_exact(losses_B, trained(model), engine=engine)

    # A graph is walked in the first batch, and known in those after it.
    assert joined == 3 * expected


class Packed(Recurrent):
    """Sequences of any length: fewer of them at every step."""

    LENGTHS = torch.tensor([4, 4, 3, 2, 1])

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, self.LENGTHS, batch_first=True)
        return self.layer(packed)[1][0]


class InColumns(Packed):
    """Another layer, whose rows lie along the other axis."""

    def __init__(self):
        super().__init__(nn.RNN)
        self.w = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return super().forward(torch.stack([(self.w @ s.mT).mT for s in x]))


PACKED = {
    "a GRU": (Packed, [T]),
    "torch's plain layer": (lambda: Packed(nn.RNN), [T]),
    "no bias": (lambda: Packed(bias=False), [T]),
    "a layer in columns": (InColumns, [T]),
}


@pytest.mark.parametrize("name", PACKED)
def test_steps_may_have_rows_of_some_units_alone(
    name, joined, assert_exact, per_example
):
    """As of sequences of different lengths, whose units are given."""
    made, expected = PACKED[name]
    model, engine = made(), unverified()

    for _ in range(4):
        losses_B = per_example(model(torch.randn(B, T, 3)))
        units = torch.arange(B)
        assert_exact(losses_B, trained(model), engine=engine, units=units)

    assert joined == 3 * expected


def test_units_may_have_several_rows_of_each_step(joined, by_loop, per_example):
    """As of users with several losses, in any order."""
    model, engine, units = Steps(), unverified(), torch.tensor([1, 0, 1, 2, 0])
    parameters = trained(model)

    for _ in range(2):
        losses_B = per_example(model(torch.randn(B, T, 3)))
        rows = [r.flatten(1) for r in by_loop(losses_B, parameters)]
        by_unit = torch.zeros(3, 12).index_add(0, units, torch.cat(rows, 1))
        gradients = engine.gradients(losses_B, parameters, units=units)

    norms = gradients.squared_norms([0] * len(parameters))[0]
    torch.testing.assert_close(norms, by_unit.square().sum(1))
    assert joined == [T]


def test_two_steps_are_served_one_by_one(joined, assert_exact, per_example):
    """They are not worth the copy."""
    model, engine = Steps(), unverified()

    for _ in range(2):
        losses_B = per_example(model(torch.randn(B, 2, 3)))
        assert_exact(losses_B, trained(model), engine=engine)

    assert joined == []


@pytest.mark.parametrize("width", [8, 65])
def test_gradients_are_held_where_they_are_small(width, per_example):
    """As of a layer of several positions: large ones are held as their factors."""
    model, engine, kinds = nn.RNN(3, width, batch_first=True), unverified(), []

    def noted(*args):
        parts = parts_of_steps(*args)
        kinds.append({i: isinstance(p, MaterializedGrads) for i, p in parts.items()})
        return parts

    with patch.object(_backward_pass, "parts_of_steps", noted):
        for _ in range(2):
            losses_B = per_example(model(torch.randn(B, T, 3))[0].flatten(1))
            engine.gradients(losses_B, trained(model))

    assert kinds == [{1: width**2 <= 4096, 3: True}]


def test_steps_that_nothing_reaches_add_nothing(per_example):
    """Their gradients are None, as of what a custom function cuts off."""
    model, engine, found = Steps(), unverified(), []

    def cut(layer, inputs, grads, context):
        assert parts_of_steps(layer, inputs, [None] * T, context) == {}
        zeros = [torch.zeros_like(grads[0]), *grads[1:]]
        for some in (zeros, [None, *grads[1:]]):
            parts = parts_of_steps(layer, inputs, some, context)
            found.append({i: part.gradients(slice(None)) for i, part in parts.items()})
        return parts

    with patch.object(_backward_pass, "parts_of_steps", cut):
        for _ in range(2):
            losses_B = per_example(model(torch.randn(B, T, 3)))
            engine.gradients(losses_B, trained(model))

    torch.testing.assert_close(*found)


def test_steps_that_differ_are_served_one_by_one(joined, assert_exact, per_example):
    """No form and no size of a graph shows the factor of a product."""
    w, b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))
    engine = unverified()

    for alpha in (1, 1, 2):
        h = torch.randn(B, 3)
        for _ in range(T):
            h = torch.addmm(b, h, w.t(), alpha=alpha).tanh()
        assert_exact(per_example(h), [w, b], engine=engine)

    assert joined == [T]


def test_a_checkpoint_is_not_read(joined, assert_exact, per_example):
    """What it keeps would be computed again, so that its steps take the usual way."""
    model, engine = Steps(), unverified()

    for checkpointed in (False, False, True):
        x = torch.randn(B, T, 3)
        outputs = (
            checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        )
        assert_exact(per_example(outputs), trained(model), engine=engine)

    assert joined == [T]


DEFECTS = {
    "a step is left out": (lambda grads: [None, *grads[1:]], WrongGradientError),
    "a step of another unit": (
        lambda grads: [grads[0].roll(1, 0), *grads[1:]],
        SampleMixingError,
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_wrong_steps_are_noticed(name, per_example):
    """What all steps add up to is compared with torch's own backward pass."""
    model, engine = Steps(), Engine()
    change, error = DEFECTS[name]
    engine.gradients(per_example(model(torch.randn(B, T, 3))), trained(model))

    def wrong(layer, inputs, grads, context):
        return parts_of_steps(layer, inputs, change(grads), context)

    with (
        patch.object(_backward_pass, "parts_of_steps", wrong),
        pytest.raises(error, match=r"torch's own|mixed"),
    ):
        engine.gradients(per_example(model(torch.randn(B, T, 3))), trained(model))
