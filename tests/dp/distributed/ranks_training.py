"""Small private runs on every rank. Examples carry their index, so draws can be told."""

import warnings

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, PoissonSampling, PrivacyPlan


NUM_EXAMPLES = 23  # A prime: no number of ranks divides it.


def plan_of(*, q=0.4, **changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=q),
        "noise_multiplier": 0.0,
        "max_grad_norm": 0.7,
        "expected_batch_size": 9.0,
        "steps": 20,
        "target_delta": 1e-5,
    }
    return PrivacyPlan(**{**numbers, **changes})


def dataset_of(num_examples=NUM_EXAMPLES, *, poison=None):
    """Examples of five features, a target, and their own index."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_EXAMPLES, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(NUM_EXAMPLES, generator=generator, dtype=torch.float64)
    if poison is not None:
        x[poison] = torch.nan
    columns = x, y, torch.arange(NUM_EXAMPLES)
    return TensorDataset(*(column[:num_examples] for column in columns))


class Net(nn.Module):
    """A linear layer, a convolution over features, a norm, and a tied use."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.last = nn.Linear(18, 1)
        self.scale = nn.Parameter(torch.ones(3, 1))

    def forward(self, x):
        h = torch.tanh(self.norm(self.first(x)))
        h = self.conv(h[:, None]) * self.scale
        return self.last(torch.relu(h).flatten(1))


def _last_axis(parameter):
    """Shard by the last axis, where torch can."""
    is_even = parameter.shape[-1] % distributed.get_world_size() == 0
    return Shard(parameter.dim() - 1) if is_even else None


SHARDING = {
    "fsdp_axis": {"shard_placement_fn": _last_axis},
    "fsdp_kept": {"reshard_after_forward": False},
    "fsdp_low": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.float32)},
}


def model_of(kind="plain"):
    """Return the model as *kind* wraps it; every rank makes the same."""
    torch.manual_seed(0)
    net = Net().double()
    if kind == "plain":
        return net
    if kind.startswith(("fsdp", "hsdp")):
        size = distributed.get_world_size()
        shape = (size // 2, 2) if kind == "hsdp" else (size,)  # Copies, and shards.
        names = ("replicate", "shard")[-len(shape) :]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for layer in (net.first, net.conv, net.last):
            fully_shard(layer, mesh=mesh, **SHARDING.get(kind, {}))
        return fully_shard(net, mesh=mesh, **SHARDING.get(kind, {}))
    options = {
        "ddp": {},
        "ddp_unused": {"find_unused_parameters": True},
        "ddp_views": {"gradient_as_bucket_view": True},
    }[kind]
    return DistributedDataParallel(net, **options)


def losses_of(model, batch):
    x, y, _ = batch
    return (model(x).squeeze(1) - y).square()


def weights_of(model):
    """All parameters as one list of numbers, whole."""
    whole = [
        p.full_tensor() if hasattr(p, "full_tensor") else p
        for p in parameters_of(model)
    ]
    return torch.cat([p.detach().flatten() for p in whole]).tolist()


def parameters_of(model):
    return list(model.parameters())


def run_of(
    kind="plain",
    *,
    optimizer=torch.optim.SGD,
    lr=0.5,
    dataset=None,
    **plan,
):
    model = model_of(kind)
    plan = plan_of(**plan)
    loader = plan.loader(dataset_of() if dataset is None else dataset)
    private = DPOptimizer(
        optimizer(model.parameters(), lr=lr), plan=plan, loader=loader
    )
    return model, private, loader


def train(
    kind="plain",
    *,
    num_steps=4,
    num_parts=None,
    poison=None,
    num_examples=NUM_EXAMPLES,
    frozen=(),
    **changes,
):
    """Train; return the weights, the examples of every step, and what was charged."""
    dataset = dataset_of(num_examples, poison=poison)
    model, optimizer, loader = run_of(kind, dataset=dataset, **changes)
    freeze(model, frozen)
    drawn = []
    for batch, _ in zip(loader, range(num_steps), strict=False):
        drawn.append(batch[2].tolist())
        parts = 1 if num_parts is None else num_parts[distributed.get_rank()]
        for part in zip(*(t.tensor_split(parts) for t in batch), strict=True):
            optimizer.backward(losses_of(model, part))
        optimizer.step()
        optimizer.zero_grad()
    return {
        "weights": weights_of(model),
        "drawn": drawn,
        "ledger": optimizer.ledger.state_dict(),
        "segment": optimizer.ledger.segment,
        "epsilon": optimizer.spent().epsilon,
    }


def freeze(model, names):
    for name in names:
        model.get_submodule(name).requires_grad_(requires_grad=False)


def train_by_quantile(kind="plain", *, num_steps=4, noise_multiplier=0.0):
    """Train with a norm that follows a quantile; return norms, weights and draws."""
    model = model_of(kind)
    plan = plan_of(noise_multiplier=noise_multiplier)
    loader = plan.loader(dataset_of())
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.5),
        plan=plan,
        loader=loader,
        clipping=dp.QuantileClipping(max_grad_norm=0.7, count_stddev=3.0),
    )
    norms, drawn = [], []
    for batch, _ in zip(loader, range(num_steps), strict=False):
        drawn.append(batch[2].tolist())
        optimizer.backward(losses_of(model, batch))
        optimizer.step()
        norms.append(optimizer.max_grad_norm)
    return {"norms": norms, "weights": weights_of(model), "drawn": drawn}


def adam_of(model, plan, loader, **options):
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    return DPOptimizer(adam, plan=plan, loader=loader, **options)


def train_by_adam(kind="plain", *, scaled, noise_multiplier=0.0, num_steps=4):
    """Train with scaled gradients or with corrected moments; return weights and draws."""
    model = model_of(kind)
    plan = plan_of(noise_multiplier=noise_multiplier)
    loader = plan.loader(dataset_of())
    optimizer = adam_of(model, plan, loader, **adaptive(scaled=scaled))
    drawn = []
    for batch, _ in zip(loader, range(num_steps), strict=False):
        drawn.append(batch[2].tolist())
        optimizer.backward(losses_of(model, batch))
        optimizer.step()
    return {"weights": weights_of(model), "drawn": drawn}


def adaptive(*, scaled):
    if scaled:
        return {"clipping": dp.ScaledClipping(max_grad_norm=0.7, stability=0.1)}
    return {"bias_correction": dp.AdamBiasCorrection(floor=1e-4)}


def train_alone_by_adam(drawn, *, scaled):
    """Train in one process on given batches; return the weights."""
    columns = dataset_of().tensors
    model = model_of()
    plan = plan_of(sampling=dp.Unamplified())
    optimizer = adam_of(model, plan, None, **adaptive(scaled=scaled))
    with warnings.catch_warnings():  # A draw may be larger than its expected size.
        warnings.filterwarnings("ignore", "backward was given more losses")
        for indices in drawn:
            batch = [column[indices] for column in columns]
            optimizer.backward(losses_of(model, batch))
            optimizer.step()
    return weights_of(model)


def scale_shards(kind="fsdp"):
    """Return the error of scaled gradients of sharded parameters."""
    model = model_of(kind)
    plan = plan_of()
    loader = plan.loader(dataset_of())
    optimizer = adam_of(model, plan, loader, **adaptive(scaled=True))
    try:
        optimizer.backward(losses_of(model, next(iter(loader))))
    except dp.UnsupportedOperationError as error:
        return str(error)
    return "none"


def train_alone_by_quantile(drawn):
    """Train in one process on given batches; return norms and weights."""
    columns = dataset_of().tensors
    model = model_of()
    plan = plan_of(sampling=dp.Unamplified())
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.5),
        plan=plan,
        clipping=dp.QuantileClipping(max_grad_norm=0.7, count_stddev=3.0),
    )
    norms = []
    with warnings.catch_warnings():  # A draw may be larger than its expected size.
        warnings.filterwarnings("ignore", "backward was given more losses")
        for indices in drawn:
            batch = [column[indices] for column in columns]
            optimizer.backward(losses_of(model, batch))
            optimizer.step()
            norms.append(optimizer.max_grad_norm)
    return norms, weights_of(model)


def train_alone(drawn, *, poison=None, frozen=(), **changes):
    """Train in one process on given batches; return the weights."""
    columns = dataset_of(poison=poison).tensors
    model = model_of()
    freeze(model, frozen)
    plan = plan_of(sampling=dp.Unamplified(), **changes)
    optimizer = DPOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), plan=plan)
    with warnings.catch_warnings():  # A draw may be larger than its expected size.
        warnings.filterwarnings("ignore", "backward was given more losses")
        for indices in drawn:
            batch = [column[indices] for column in columns]
            optimizer.backward(losses_of(model, batch))
            optimizer.step()
    return weights_of(model)


def witness(model, optimizer, loader):
    """Train; return what this rank saw of each step, its charges and its parameters."""
    seen = []
    for batch in loader:
        seen.append(batch[-1].tolist())
        optimizer.backward(losses_of(model, batch))
        optimizer.step()
    weights = [p.detach().flatten().tolist() for p in model.parameters()]
    return seen, optimizer.ledger.state_dict(), weights


def total_at_fixed_weights(model, optimizer, loader):
    """Return the sums of all batches, and of one batch of all examples."""
    total = 0.0
    for batch in loader:
        optimizer.backward(losses_of(model, batch))
        optimizer.step()
        total += model.first.bias.grad.clone()
    model, optimizer, loader = run_of(q=1.0, lr=0.0)
    optimizer.backward(losses_of(model, next(iter(loader))))
    optimizer.step()
    return total.tolist(), model.first.bias.grad.tolist()
