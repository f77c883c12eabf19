"""Weights without elements, and examples without positions, against a loop, in float64.

A rank of 0, no registers beside a class token, a feature group that a data set lacks.

Shapes: ``B`` examples, ``T`` positions.
"""

import warnings

import pytest
import torch
from torch import nn

from dp.per_sample import Engine


B, T = 5, 3
pytestmark = pytest.mark.usefixtures("float64")


class Module(nn.Module):
    """A module of a function of itself and its input, beside a linear layer."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def rows(*shape):
    return torch.randn(B, *shape)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def beside(forward):
    """The outputs of the linear layer and others, side by side."""
    return lambda m, x: torch.cat([m.linear(x), forward(m, x)], -1)


def time_major(m, x):
    steps = x.transpose(0, 1).flatten(0, 1)
    outputs = m.linear(steps) + m.layer(steps[:, :0])
    return outputs.unflatten(0, (T, B)).transpose(0, 1)


def number(x):
    return torch.arange(len(x)) % 3


EMPTY = {
    "outputs": lambda: (
        Module(beside(lambda m, x: m.layer(x)), layer=nn.Linear(4, 0)),
        rows(4),
    ),
    "inputs": lambda: (
        Module(lambda m, x: m.linear(x) + m.layer(x[:, :0]), layer=nn.Linear(0, 2)),
        rows(4),
    ),
    "inputs of sequences": lambda: (
        Module(lambda m, x: m.linear(x) + m.layer(x[..., :0]), layer=nn.Linear(0, 2)),
        rows(T, 4),
    ),
    "inputs of sequences, time-major": lambda: (
        Module(time_major, layer=nn.Linear(0, 2)),
        rows(T, 4),
    ),
    "layers that are alike": lambda: (
        Module(
            beside(lambda m, x: torch.cat([layer(x) for layer in m.layers], 1)),
            layers=nn.ModuleList([nn.Linear(4, 0) for _ in range(8)]),
        ),
        rows(4),
    ),
    "a rank": lambda: (
        Module(
            lambda m, x: m.linear(x) + x @ m.a @ m.b,
            a=parameter(4, 0),
            b=parameter(0, 2),
        ),
        rows(T, 4),
    ),
    "a rank, merged": lambda: (
        Module(
            lambda m, x: x @ (m.linear.weight.T + m.a @ m.b),
            a=parameter(4, 0),
            b=parameter(0, 2),
        ),
        rows(4),
    ),
    "matrices": lambda: (
        Module(
            beside(lambda m, x: torch.bmm(x, m.w.expand(len(x), -1, -1))),
            w=parameter(1, 4, 0),
        ),
        rows(T, 4),
    ),
    "a vector": lambda: (
        Module(lambda m, x: m.linear(x) + (x[:, :0] @ m.w)[:, None], w=parameter(0)),
        rows(4),
    ),
    "columns of a table": lambda: (
        Module(beside(lambda m, x: m.table(number(x))), table=nn.Embedding(3, 0)),
        rows(4),
    ),
    "columns of a table of bags": lambda: (
        Module(
            beside(lambda m, x: m.table(number(x)[:, None])),
            table=nn.EmbeddingBag(3, 0, mode="sum"),
        ),
        rows(4),
    ),
    "columns of indexed rows": lambda: (
        Module(beside(lambda m, x: m.w[number(x)]), w=parameter(3, 0)),
        rows(4),
    ),
    "a layer norm": lambda: (
        Module(beside(lambda m, x: m.norm(x[:, :0])), norm=nn.LayerNorm(0)),
        rows(4),
    ),
    "registers": lambda: (
        Module(
            lambda m, x: m.linear(
                torch.cat([m.token, m.registers], 1).expand(len(x), -1, -1) + x
            ),
            token=parameter(1, 1, 4),
            registers=parameter(1, 0, 4),
        ),
        rows(T, 4),
    ),
    "a penalty": lambda: (
        Module(lambda m, x: m.linear(x) + m.w.square().sum(), w=parameter(0, 2)),
        rows(4),
    ),
}
# Examples of no positions; the last axis is summed away before the linear layer.
NO_POSITIONS = {
    "linear": lambda: (nn.Linear(4, 4), rows(0, 4)),
    "layer norm": lambda: (nn.LayerNorm(4), rows(0, 4)),
    "embedding": lambda: (nn.Embedding(3, 4), torch.zeros(B, 0, dtype=torch.long)),
    "product": lambda: (Module(lambda m, x: x * m.w, w=parameter(4)), rows(0, 4)),
    "sum": lambda: (Module(lambda m, x: x + m.w, w=parameter(1, 4)), rows(0, 4)),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", EMPTY)
def test_weights_without_elements_change_nothing(name, assert_exact, per_example):
    """They are served by rules, alone and with layers that are alike."""
    model, x = EMPTY[name]()
    parameters, engine = list(model.parameters()), Engine()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_exact(per_example(model(x)), parameters, engine=engine)
        assert_exact(per_example(model(x)), parameters, engine=engine)  # As known.


@pytest.mark.parametrize("name", NO_POSITIONS)
def test_examples_without_positions_add_nothing(name, assert_exact, per_example):
    """As of sequences that are all empty, which other parts of a model still serve."""
    model, x = NO_POSITIONS[name]()
    head = nn.Linear(4, 2)

    losses_B = per_example(head(model(x).sum(1)))
    assert_exact(losses_B, [*model.parameters(), *head.parameters()])
