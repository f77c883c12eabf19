"""Compiled models have the gradients that they have without being compiled.

Most are compiled by ``aot_eager``, which makes the same opaque nodes as inductor, in
a tenth of the time.

Shapes: ``B`` examples.
"""

import functools
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import dp
from dp.exceptions import UnsupportedOperationError
from dp.per_sample import Engine


pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("float64", "_afresh"),
    # Of Dynamo and inductor themselves.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script"),
]
aot_eager = functools.partial(dp.compile_backend, inner="aot_eager")


@pytest.fixture
def _afresh():
    """Nothing is left of what another test compiled, or set."""
    torch.compiler.reset()
    before = torch._functorch.config.donated_buffer
    yield
    torch._functorch.config.donated_buffer = before


class Counting:
    """The backend, and how often it was called."""

    def __init__(self, inner="aot_eager"):
        self.inner = inner
        self.calls = 0

    def __call__(self, graph, inputs):
        self.calls += 1
        return dp.compile_backend(graph, inputs, inner=self.inner)


class Words(nn.Module):
    """A small Transformer, with positions and a tied output layer."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(9, 8), nn.Embedding(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 9, dropout=0.0, batch_first=True)

    def forward(self, x):
        h = self.words(x) + self.positions(torch.arange(x.shape[1]))
        logits = self.layer(h) @ self.words.weight.T
        nll = F.cross_entropy(logits.transpose(1, 2), x, reduction="none")
        return nll.square().sum(1)


class Changing(nn.Module):
    """In-place operations, contexts and constants: what may not trade places."""

    def __init__(self):
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(4, 4))
        self.second = nn.Linear(4, 4)
        self.register_buffer("mask", torch.eye(4))

    def forward(self, x):
        h = self.first(x).mul_(2)
        h[:, 0] = 1
        with torch.no_grad():
            shift = h.amax(1, keepdim=True)
        with torch.autocast("cpu", enabled=False):
            h = F.silu(h + shift).sin() @ (self.mask * self.second.weight)
        h = checkpoint(self.second, h, use_reentrant=False)
        tall = h.relu().exp().view(2 * h.shape[0], 2).sum(1)
        return tall.view(-1, 2).sum(1) * x.shape[1]


class Pictures(nn.Module):
    """Convolutions with a shortcut and an activation in place."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.second, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.norm(self.first(x)))
        return (F.silu(self.second(h)) + h).mean((2, 3)).square().sum(1)


MODELS = {
    "words": (Words, lambda size: torch.randint(0, 9, (size, 5))),
    "changing": (Changing, lambda size: torch.randn(size, 4)),
    "pictures": (Pictures, lambda size: torch.randn(size, 2, 6, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_compiled_models_are_exact_for_batches_of_any_size(name, assert_exact):
    """It compiles for two sizes, and then only for one example and for none."""
    make, data = MODELS[name]
    model, backend, engine = make(), Counting(), Engine()
    compiled = torch.compile(model, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (5, 7, 3, 4, 6, 1, 8):
            losses_B = compiled(data(size))
            assert_exact(losses_B, list(model.parameters()), engine=engine)

    assert backend.calls == 3
    nobody = engine.gradients(compiled(data(0)), list(model.parameters()))
    assert nobody.num_samples == 0
    assert "CompiledFunctionBackward" in names_below(losses_B)


def names_below(losses_B):
    seen, pending = set(), [losses_B.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(child for child, _ in node.next_functions)
    return {type(node).__name__ for node in seen}


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="inductor needs a C++ compiler, and there is none",
)
def test_inductor_is_the_default(assert_exact):
    """What torch.compile itself would take compiles the parts."""
    model = Pictures()
    compiled = torch.compile(model, backend=dp.compile_backend)
    for size in (5, 3):
        losses_B = compiled(torch.randn(size, 2, 6, 6))
        assert "CompiledFunctionBackward" in names_below(losses_B)
        assert_exact(losses_B, list(model.parameters()))


def as_losses(optimizer, model, batch):
    optimizer.backward(model(batch[0]).squeeze(1))


def as_a_function(optimizer, model, batch):
    optimizer.backward(lambda batch: model(batch[0]).squeeze(1), batch)


def as_a_trainer(optimizer, model, batch):
    optimizer.private_loss(lambda batch: model(batch[0]).squeeze(1), batch).backward()


@pytest.mark.parametrize("backward", [as_losses, as_a_function, as_a_trainer])
def test_private_training_takes_a_compiled_model(backward):
    """Batches of a Poisson loader vary, and each step is charged.

    Within a trainer's ``loss.backward()``, too: what a compiled function saved is dropped
    where a backward pass that does not retain its graph comes by.
    """
    model = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Softmax(1), nn.Linear(4, 1))
    data = torch.utils.data.TensorDataset(torch.randn(12, 3))
    plan = dp.plan_for(
        target_epsilon=3.0,
        target_delta=1e-5,
        sampling_probability=0.5,
        steps=4,
        expected_batch_size=6,
        max_grad_norm=1.0,
    )
    loader = plan.loader(data)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)
    compiled = torch.compile(model, backend=aot_eager)
    for batch in loader:
        backward(optimizer, compiled, batch)
        optimizer.step()

    assert 2.5 < optimizer.spent().epsilon <= 3.0


def test_evaluation_compiles_the_whole_model():
    """Without gradients there is nothing to take apart."""
    model, parts = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), []

    def backend(graph, inputs):
        found = dp.compile_backend(graph, inputs, inner="aot_eager")
        parts.append(found)
        return found

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        outputs = compiled(torch.randn(5, 4))

    assert not isinstance(parts[0], torch.fx.GraphModule)
    assert outputs.shape == (5, 2)


def test_views_of_inputs_pass_compiled_parts(assert_exact):
    """A part may return what it was given, or something without a graph."""
    layer, model = nn.Linear(4, 4), nn.Linear(4, 4)

    @functools.partial(torch.compile, backend=aot_eager)
    def losses(x):
        h = layer(x)
        seen = h.sin().cos().view(-1, 2, 2)
        mask = (x > 0).logical_not()
        return model(h.view(-1, 4)) * seen.flatten(1) * mask

    x = torch.randn(5, 4)
    parameters = [*layer.parameters(), *model.parameters()]
    assert_exact(losses(x).square().sum(1), parameters)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_other_backends_are_refused(backend):
    """Their nodes hold parameters, and would hide examples that are mixed."""
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("inductor needs a C++ compiler, and there is none")
    model = nn.Linear(3, 3)
    losses_B = torch.compile(model, backend=backend)(torch.randn(5, 3)).square().sum(1)

    told = r"parameters of shape \(3, 3\).*backend=dp\.compile_backend"
    with pytest.raises(UnsupportedOperationError, match=told):
        Engine().gradients(losses_B, list(model.parameters()))


def test_functions_without_parameters_are_refused_of_other_backends():
    """A loss may be divided by a count over the batch, and nothing would show it."""
    model = nn.Linear(3, 3)
    known = torch.tensor([1.0, 1, 0, 1, 1])

    def losses(outputs):
        return outputs.square().sum(1) * known / known.sum()

    compiled = torch.compile(losses, backend="aot_eager")(model(torch.randn(5, 3)))
    with pytest.raises(UnsupportedOperationError, match=r"a compiled function is one"):
        Engine().gradients(compiled, list(model.parameters()))
    mixed = torch.compile(losses, backend=aot_eager)(model(torch.randn(5, 3)))
    with pytest.raises(dp.SampleMixingError, match="DivBackward0 scales the losses"):
        Engine().gradients(mixed, list(model.parameters()))


def test_weights_made_outside_of_what_is_compiled_are_refused():
    """The part that takes them cannot tell them from data; the walk can."""
    a, b = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))

    @functools.partial(torch.compile, backend=aot_eager)
    def losses(x, weight):
        return (x @ weight).sin().square().sum(1)

    with pytest.raises(UnsupportedOperationError, match="compile that together"):
        Engine().gradients(losses(torch.randn(5, 3), a @ b), [a, b])


def test_the_eager_backend_leaves_the_graph():
    """It compiles nothing, so nothing is hidden."""
    model = nn.Linear(3, 3)
    losses_B = torch.compile(model, backend="eager")(torch.randn(5, 3)).square().sum(1)

    assert Engine().gradients(losses_B, list(model.parameters())).num_samples == 5
