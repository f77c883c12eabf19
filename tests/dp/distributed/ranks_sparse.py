"""Private runs on every rank that keep rows of a table by counts over all ranks."""

import warnings

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import dp


NUM_ROWS, NUM_EXAMPLES = 50, 23


class Clicks(nn.Module):
    """A table, and a layer behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(NUM_ROWS, 3, dtype=torch.float64)
        self.last = nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, batch):
        return (self.last(self.table(batch[0])).squeeze(1) - 1).square()


def dataset_of():
    """Items of which two examples have each of the first, and their own index."""
    index = torch.arange(NUM_EXAMPLES)
    return TensorDataset(index // 2, index)


def optimizer_of(model, *, noise_multiplier=0.0, sampling=None):
    plan = dp.PrivacyPlan(
        sampling=sampling or dp.PoissonSampling(sampling_probability=0.4),
        noise_multiplier=noise_multiplier,
        max_grad_norm=0.7,
        expected_batch_size=9.0,
        steps=20,
        target_delta=1e-5,
    )
    loader = plan.loader(dataset_of()) if sampling is None else None
    return dp.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.5),
        plan=plan,
        loader=loader,
        clipping=dp.SparseClipping(max_grad_norm=0.7, tables=(0,), threshold=0.5),
    )


def train(*, wrapped, noise_multiplier=0.0, num_steps=3):
    """Train; return the gradient of the table at each step, what was drawn and charged."""
    model = Clicks()
    optimizer = optimizer_of(
        DistributedDataParallel(model) if wrapped else model,
        noise_multiplier=noise_multiplier,
    )
    gradients, drawn = [], []
    for batch, _ in zip(optimizer.mechanism.loader, range(num_steps), strict=False):
        drawn.append(batch[1].tolist())
        optimizer.backward(model(batch))
        optimizer.step()
        gradients.append(model.table.weight.grad.tolist())
    return {
        "gradients": gradients,
        "drawn": drawn,
        "charged": optimizer.ledger.state_dict(),
    }


def train_alone(drawn):
    """Train in one process on given batches; return the gradients of the table."""
    model = Clicks()
    optimizer = optimizer_of(model, sampling=dp.Unamplified())
    gradients = []
    with warnings.catch_warnings():  # A draw may be larger than its expected size.
        warnings.filterwarnings("ignore", "backward was given more losses")
        for indices in drawn:
            optimizer.backward(
                model([column[indices] for column in dataset_of().tensors])
            )
            optimizer.step()
            gradients.append(model.table.weight.grad.tolist())
    return gradients


def shard():
    """Return the error of a table that is sharded."""
    model = Clicks()
    mesh = distributed.init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(model, mesh=mesh)
    try:
        optimizer_of(model)
    except dp.UnsupportedOperationError as error:
        return str(error)
    return "none"
