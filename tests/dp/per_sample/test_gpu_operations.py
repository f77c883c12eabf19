"""Operations that have kernels, and nodes of the graph, that only a GPU has.

All others run there by ``DP_TEST_DEVICE=cuda pytest tests/dp``.
"""

import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.fx.passes.split_module import split_module
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.utils import parametrizations

import dp
from dp.per_sample import Engine


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("float64", "_on_the_gpu"),
]

B, T = 5, 6


@pytest.fixture
def _on_the_gpu():
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


class Cells(nn.Module):
    """A recurrence by hand, whose cells are fused on a GPU."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell(4, 5)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return torch.cat(state, -1) if isinstance(state, tuple) else state


class Recurrent(nn.Module):
    """All that a recurrent layer returns."""

    def __init__(self, kind, **changes):
        super().__init__()
        self.layers = kind(4, 5, batch_first=True, **changes)

    def forward(self, x):
        outputs, states = self.layers(x)
        states = states if isinstance(states, tuple) else (states,)
        ends = [state.transpose(0, 1).flatten(1) for state in states]
        return torch.cat([outputs.flatten(1), *ends], 1)


class Attention(nn.Module):
    """Attention with a mask that is added, dropped out."""

    def __init__(self):
        super().__init__()
        self.qkv, self.mask = nn.Linear(8, 24), nn.Parameter(torch.randn(T, T))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mask = self.mask.expand(B, 2, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.2)


def sequences(size=4):
    return torch.randn(B, T, size)


def images(channels=4):
    return torch.randn(B, channels, 6, 6).to(memory_format=torch.channels_last)


# No rule serves these; the fallback does.
BY_NODE = {
    "cells of an LSTM": lambda: (Cells(nn.LSTMCell), sequences()),
    "cells of a GRU": lambda: (Cells(nn.GRUCell), sequences()),
    "a GRU": lambda: (Recurrent(nn.GRU, num_layers=2), sequences()),
    "an LSTM": lambda: (Recurrent(nn.LSTM, bidirectional=True), sequences()),
    "an LSTM, projected": lambda: (Recurrent(nn.LSTM, proj_size=3), sequences()),
    "an RNN without biases": lambda: (Recurrent(nn.RNN, bias=False), sequences()),
    "an RNN of ReLUs": lambda: (Recurrent(nn.RNN, nonlinearity="relu"), sequences()),
}
BY_RULES = {
    "attention with a trained mask": lambda: (Attention(), sequences(8)),
    "dropout": lambda: (
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2)),
        sequences(),
    ),
    "a convolution, channels last": lambda: (
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()),
        images(),
    ),
    "a convolution of many channels, channels last": lambda: (
        nn.Conv2d(64, 48, 3, padding=1),
        images(64),
    ),
    "a convolution in groups": lambda: (nn.Conv2d(4, 8, 3, groups=4), images()),
    "instance norm": lambda: (nn.InstanceNorm2d(4, affine=True), images()),
    "weight norm": lambda: (parametrizations.weight_norm(nn.Linear(4, 3)), sequences()),
    "a layer of a Transformer": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        sequences(8),
    ),
}


@pytest.mark.parametrize("name", [*BY_RULES, *BY_NODE])
def test_operations_of_a_gpu_are_exact(name, assert_exact, per_example):
    """To 1e-10, whichever kernel torch chooses, for one example too."""
    model, x = {**BY_RULES, **BY_NODE}[name]()
    parameters = list(model.parameters())
    with warnings.catch_warnings():
        if name in BY_NODE:
            warnings.filterwarnings("ignore", "no rule serves")
        assert_exact(per_example(model(x)), parameters, rtol=1e-10)
        if name != "attention with a trained mask":
            assert_exact(per_example(model(x[:1])), parameters, rtol=1e-10)


def test_recurrent_layers_without_cudnn_are_exact(assert_exact, per_example):
    """Their cells are fused; nothing else is."""
    model = Recurrent(nn.LSTM, num_layers=2)
    with torch.backends.cudnn.flags(enabled=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no rule serves ThnnFused")
        assert_exact(per_example(model(sequences())), [*model.parameters()], rtol=1e-10)


def test_a_loss_of_cudnn_keeps_examples_apart(assert_exact):
    """Connectionist temporal classification, of targets on the host."""
    model = nn.Linear(4, 7)
    log_probs = model(sequences()).float().log_softmax(-1).transpose(0, 1)
    targets = torch.randint(1, 7, (2 * B,), dtype=torch.int32, device="cpu")
    lengths = torch.full((B,), T, dtype=torch.int32, device="cpu")
    num_targets = torch.full((B,), 2, dtype=torch.int32, device="cpu")
    losses_B = F.ctc_loss(log_probs, targets, lengths, num_targets, reduction="none")

    assert_exact(losses_B.double(), list(model.parameters()), rtol=1e-4)


def test_batch_norm_of_cudnn_is_refused():
    """Under its other name, too."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).float()
    losses_B = model(images().float()).flatten(1).square().sum(1)

    with pytest.raises(dp.SampleMixingError, match="Use GroupNorm"):
        Engine().gradients(losses_B, list(model.parameters()))


def test_parameters_that_are_frozen_or_unused_are_left_out(assert_exact, per_example):
    model, unused = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), nn.Linear(2, 2)
    model[0].bias.requires_grad_(requires_grad=False)
    trained = [p for p in model.parameters() if p.requires_grad]

    assert_exact(per_example(model(sequences())), [*trained, *unused.parameters()])


@pytest.mark.skipif(
    "tuple_return" not in inspect.signature(split_module).parameters,
    reason="this torch is older than dp asks for",
)
@pytest.mark.filterwarnings("ignore:::torch")
def test_a_model_that_inductor_compiles_is_exact(assert_exact, per_example):
    """By Triton's kernels."""
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16))
    compiled = torch.compile(model, backend=dp.compile_backend)

    assert_exact(per_example(compiled(sequences(8))), [*model.parameters()])
