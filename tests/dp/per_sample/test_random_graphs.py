"""Random graphs of operations that may mix examples are served exactly, or refused.

Shapes: four examples of four numbers.
"""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.exceptions import SampleMixingError
from dp.per_sample import Engine

from .ragged_models import assert_as_by_loop
from .test_units_apart import Moved


pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:no rule serves"),
]

# Random graphs: operations on [B, 4] that may mix or not, by an index or an axis.
STEPS = {
    "linear": lambda h, i, _axis, layers: layers[len(i) % 2](h),
    "tanh": lambda h, _i, _axis, _layers: h.tanh(),
    "gate": lambda h, _i, _axis, _layers: h.clamp(min=0.3),
    "dropout": lambda h, _i, _axis, _layers: F.dropout(h, 0.5),
    "softmax": lambda h, _i, axis, _layers: h.softmax(axis),
    "centre": lambda h, _i, axis, _layers: h - h.mean(axis, keepdim=True),
    "scale": lambda h, _i, axis, _layers: h / (1 + h.square().sum(axis, keepdim=True)),
    "index": lambda h, i, _axis, _layers: h + h[i],
    "move": lambda h, i, _axis, _layers: h[i],
    "and back": lambda h, i, _axis, layers: layers[0](h[i])[i.argsort()],
    "index_add": lambda h, i, _axis, _layers: h.index_add(0, i, h.sin()),
    "gather": lambda h, i, _axis, _layers: h.gather(1, (i[:, None] + i) % 4),
    "flip": lambda h, _i, axis, _layers: h.flip(axis),
    "cumsum": lambda h, _i, axis, _layers: h.cumsum(axis),
    "mask": lambda h, i, _axis, _layers: h * (i > 1)[:, None],
    "where": lambda h, i, _axis, _layers: torch.where((i > 2)[:, None], h, h.flip(1)),
    "view": lambda h, _i, _axis, _layers: h.view(2, -1).sin().view(-1, 4),
    "transpose": lambda h, _i, _axis, layers: layers[1](h.T.contiguous().T),
    "halves": lambda h, _i, _axis, _layers: torch.cat([h[:2].sin(), h[2:]]),
    "max": lambda h, _i, axis, _layers: h - h.amax(axis, keepdim=True),
    "custom": lambda h, i, _axis, _layers: Moved.apply(h, i),
}
INDICES = st.one_of(
    st.just(tuple(range(4))),
    st.permutations(range(4)).map(tuple),
    st.lists(st.integers(0, 3), min_size=4, max_size=4).map(tuple),
)


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), INDICES, st.sampled_from([0, 1])),
        min_size=1,
        max_size=5,
    ),
    st.lists(INDICES, min_size=1, max_size=2),
    st.booleans(),
    st.integers(0, 1 << 16),
)
@settings(deadline=None, max_examples=300)
def test_a_random_graph_is_exact_or_refused(steps, others, with_units, seed):
    """Never anything else, for the first batch and for later ones with other indices."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    parameters = [p for layer in layers for p in layer.parameters()]
    engine = Engine()
    for index in (None, *others):
        x = torch.randn(4, 4)

        def hidden(row, index=index, x=x):
            """Return the outputs, of inputs of which one row was changed."""
            torch.manual_seed(seed)
            changed = x.clone()
            if row is not None:
                changed[row] += 1.0
            h = layers[0](changed)
            for name, given_index, axis in steps:
                i = torch.tensor(given_index if index is None else index)
                h = STEPS[name](h, i, axis, layers)
            return layers[1](h).sin().sum(1)

        losses = hidden(None)
        units = torch.arange(4) if with_units else None
        try:
            gradients = engine.gradients(losses, parameters, units=units)
        except SampleMixingError:
            continue
        assert_as_by_loop(gradients, hidden(None), parameters)
        for row in range(4):  # A loss follows one row of the data, and that its own.
            follows = (hidden(row) != hidden(None)).nonzero().flatten().tolist()
            assert len(follows) <= 1
            assert with_units or follows in ([], [row])
