"""Private training on a GPU: what only a GPU has, and what crosses to the host.

All else runs there as it does on the host: ``DP_TEST_DEVICE=cuda pytest tests/dp``.

Shapes: ``B`` examples, ``T`` positions, ``D`` features.
"""

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, PoissonSampling
from dp.audit import replay, training
from dp.clipping import FlatClipping
from dp.per_sample import Engine


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

B = 6
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def by_loop(losses_B, parameters):
    return [
        torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses_B
    ]


def clipped(losses_B, parameters, bound=1e-3):
    gradients = Engine().gradients(losses_B, parameters)
    groups = [0] * len(parameters)
    norms_GB = gradients.squared_norms(groups).sqrt()
    factors_GB = FlatClipping(max_grad_norm=bound).factors(norms_GB)
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    gradients.add_weighted_sum(factors_GB, groups, sums)
    return norms_GB[0], sums


def length(tensors):
    return torch.cat([t.double().flatten().cpu() for t in tensors]).norm().item()


class Attention(nn.Module):
    def __init__(self, backend, dtype):
        super().__init__()
        self.backend = backend
        self.qkv = nn.Linear(32, 96, dtype=dtype)
        self.out = nn.Linear(32, 5, dtype=dtype)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(self.backend):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        (SDPBackend.MATH, torch.float64),
        (SDPBackend.EFFICIENT_ATTENTION, torch.float32),
        (SDPBackend.FLASH_ATTENTION, torch.bfloat16),
        (SDPBackend.CUDNN_ATTENTION, torch.bfloat16),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.filterwarnings("error:no rule serves")
def test_every_kernel_of_attention_keeps_examples_apart(backend, dtype):
    model = Attention(backend, dtype).to(CUDA)
    x = torch.randn(B, 8, 32, device=CUDA, dtype=dtype)
    losses_B = model(x).float().square().mean((1, 2))
    parameters = [*model.parameters()]

    expected = [length(grads) for grads in by_loop(losses_B, parameters)]

    norms_B, _ = clipped(losses_B, parameters)

    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 2e-2)
    assert norms_B.tolist() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.filterwarnings("ignore:no rule serves")
def test_recurrent_layers_of_cudnn_are_exact(kind):
    model = getattr(nn, kind)(5, 7, num_layers=2, bidirectional=True, batch_first=True)
    model.to(CUDA, torch.float64)
    x = torch.randn(B, 4, 5, device=CUDA, dtype=torch.float64)
    losses_B = model(x)[0].square().mean((1, 2))
    parameters = [*model.parameters()]

    expected = [length(grads) for grads in by_loop(losses_B, parameters)]

    norms_B, _ = clipped(losses_B, parameters)

    assert norms_B.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["conv", "wide", "long"])
def test_nothing_is_longer_than_the_bound_where_tf32_is_allowed(name):
    """TF32 keeps 10 bits of a factor, which would show in the fourth digit."""
    model, x = {
        "conv": (nn.Conv2d(16, 32, 3), torch.randn(1, 16, 20, 20)),
        "wide": (nn.Linear(512, 700), torch.randn(1, 512)),
        "long": (nn.Linear(512, 700), torch.randn(1, 4, 512)),
    }[name]
    model.to(CUDA)
    torch.set_float32_matmul_precision("high")
    try:
        losses_B = model(x.to(CUDA)).flatten(1).square().sum(1)
        _, sums = clipped(losses_B, [*model.parameters()])
    finally:
        torch.set_float32_matmul_precision("highest")

    assert 0.99999e-3 < length(sums) <= 1e-3 * (1 + 1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_with_a_scaler_trains(make_plan, dtype):
    """The scale leaves no trace: the noise that is released is that of the plan."""
    model = nn.Sequential(nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, 300)).to(CUDA)
    plan = make_plan(noise_multiplier=2.0, max_grad_norm=0.5)
    loader = plan.loader(TensorDataset(torch.randn(20, 20)), pin_memory=True)
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = DPOptimizer(inner, plan=plan, loader=loader)
    scaler = GradScaler("cuda")
    before = [p.detach().clone() for p in model.parameters()]

    for (x,), _ in zip(loader, range(2), strict=False):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            losses_B = model(x.to(CUDA)).float().square().mean(1)
            loss = optimizer.private_loss(losses_B)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    spread = torch.cat([m.flatten() for m in moved]).std().item()
    expected = 2.0 * 0.5 / plan.expected_batch_size * 2**0.5
    assert spread == pytest.approx(expected, rel=0.02)
    assert optimizer.ledger.steps == 2


@pytest.mark.parametrize(
    "options",
    [{"foreach": True}, {"fused": True}, {"capturable": True}],
    ids=lambda options: next(iter(options)),
)
def test_kinds_of_adam_take_the_same_step(make_plan, options):
    """Without noise, that of the ordinary Adam on the clipped gradient."""
    model = nn.Linear(3, 1).to(CUDA)
    twin = nn.Linear(3, 1).to(CUDA)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(20, 3)
    sampling = PoissonSampling(sampling_probability=1.0)
    plan = make_plan(sampling=sampling, noise_multiplier=0.0, max_grad_norm=1e6)
    loader = plan.loader(TensorDataset(x))
    inner = torch.optim.Adam(model.parameters(), **options)
    optimizer = DPOptimizer(inner, plan=plan, loader=loader)
    ordinary = torch.optim.Adam(twin.parameters())

    for (batch,), _ in zip(loader, range(3), strict=False):
        optimizer.backward(model(batch.to(CUDA)).square().flatten())
        optimizer.step()
        ordinary.zero_grad()
        loss = twin(x.to(CUDA)).square().sum() / plan.expected_batch_size
        loss.backward()
        ordinary.step()

    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_crosses_to_the_host_and_back(make_plan, tmp_path):
    plan = make_plan()
    data = TensorDataset(torch.randn(20, 3))
    path = tmp_path / "state.pt"
    state = None
    for steps, device in enumerate((CUDA, torch.device("cpu"), CUDA), start=1):
        model = nn.Linear(3, 1).to(device)
        loader = plan.loader(data)
        inner = torch.optim.Adam(model.parameters())
        optimizer = DPOptimizer(inner, plan=plan, loader=loader)
        if state is not None:
            optimizer.load_state_dict(torch.load(path, map_location=device))
        (x,) = next(iter(loader))
        optimizer.backward(model(x.to(device)).square().flatten())
        optimizer.step()
        state = optimizer.state_dict()
        torch.save(state, path)

        assert optimizer.ledger.steps == steps
        assert inner.state[model.weight]["exp_avg"].device.type == device.type


def test_a_model_on_two_devices_is_one_model(make_plan):
    """Norms run over both, and noise is drawn on each."""
    first, second = nn.Linear(3, 4), nn.Linear(4, 2).to(CUDA)
    parameters = [*first.parameters(), *second.parameters()]
    x = torch.randn(B, 3)
    losses_B = second(torch.tanh(first(x)).to(CUDA)).square().sum(1)

    expected = [length(grads) for grads in by_loop(losses_B, parameters)]

    norms_B, _ = clipped(losses_B, parameters)

    assert norms_B.tolist() == pytest.approx(expected, rel=1e-5)
    plan = make_plan()
    loader = plan.loader(TensorDataset(torch.randn(20, 3)))
    inner = torch.optim.SGD(parameters, lr=1.0)
    optimizer = DPOptimizer(inner, plan=plan, loader=loader)
    before = [p.detach().clone() for p in parameters]
    (x,) = next(iter(loader))
    optimizer.backward(second(torch.tanh(first(x)).to(CUDA)).square().sum(1))
    optimizer.step()
    assert all((p != b).any() for p, b in zip(parameters, before, strict=True))


def test_an_empty_batch_is_a_step(make_plan):
    model = nn.Linear(3, 1).to(CUDA)
    plan = make_plan(sampling=PoissonSampling(sampling_probability=1e-9))
    loader = plan.loader(TensorDataset(torch.randn(20, 3)))
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = DPOptimizer(inner, plan=plan, loader=loader)
    before = model.weight.detach().clone()
    (x,) = next(iter(loader))

    optimizer.backward(model(x.to(CUDA)).square().flatten())
    optimizer.step()

    assert len(x) == 0
    assert (model.weight != before).any()


def test_a_check_finds_what_is_wrong_on_a_gpu():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).to(CUDA)

    report = dp.check(
        model,
        lambda model, batch: model(batch).square().flatten(),
        torch.randn(B, 3, device=CUDA),
    )

    assert not report.ok
    assert "BatchNorm" in str(report)


class Far(nn.Module):
    """Takes batches of the host, and returns their losses."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, batch):
        x, y_B = (part.to(self.layers[0].weight.device) for part in batch)
        return F.cross_entropy(self.layers(x), y_B, reduction="none")


def test_a_run_on_a_gpu_replays(make_plan):
    """One record moves sums by the clipping norm, and nothing else."""
    plan = make_plan(max_grad_norm=0.5, expected_batch_size=20.0)
    x = torch.randn(40, 4)
    x[-1] = 50.0
    data = TensorDataset(x, torch.randint(3, (40,)))

    report = replay(training(plan), Far().to(CUDA), data)

    assert report.ok, str(report)
    assert "of 0.5 allowed" in report.findings[0].detail


def test_gradients_of_single_examples_are_not_all_held():
    """They would take 17 GB. What is held is of the size of the model."""
    model = nn.Sequential(
        *[nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()) for _ in range(8)]
    ).to(CUDA)
    x = torch.randn(512, 1024, device=CUDA)
    parameters = [*model.parameters()]
    clipped(model(x).square().sum(1), parameters)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    clipped(model(x).square().sum(1), parameters)

    num_bytes = sum(p.numel() * 4 for p in parameters)
    assert torch.cuda.max_memory_allocated() - before < 3 * num_bytes
