"""Private runs of a model with two tables, whose rows are kept by noisy counts.

Shapes: ``B`` examples, ``V`` rows, ``D`` dimensions of a row, ``T`` tags of an example.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp._mechanism.row_map import RowMap
from dp.per_sample import Engine


V, D = 30, 4


class Clicks(nn.Module):
    """A table that is looked up once, and one for bags of up to three, of which 0 pads."""

    def __init__(self, num_rows=V, num_dims=D):
        super().__init__()
        self.items = nn.Embedding(num_rows, num_dims)
        self.tags = nn.EmbeddingBag(num_rows, num_dims, mode="sum", padding_idx=0)
        self.last = nn.Linear(num_dims, 1)

    def forward(self, batch):
        item_B, tags_BT, y_B = batch
        features_BD = self.items(item_B) + self.tags(tags_BT)
        return (self.last(features_BD).squeeze(1) - y_B).square()


def clicks(num_examples=40, num_rows=V):
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(
        torch.randint(num_rows, (num_examples,), generator=generator),
        torch.randint(num_rows, (num_examples, 3), generator=generator),
        torch.randn(num_examples, generator=generator),
    )


def rule_of(model, **options):
    numbers = {"max_grad_norm": 1.0, "rows_per_example": 4, **options}
    return dp.SparseClipping(tables=dp.SparseClipping.tables_of(model), **numbers)


def make_run(make_plan, *, model=None, data=None, rule=None, options=None, **changes):
    """A private model of clicks; every row that anyone touched is about as likely kept."""
    plan = make_plan(**{"expected_batch_size": 20.0, **changes})
    model = Clicks() if model is None else model
    loader = plan.loader(clicks() if data is None else data)
    norm = plan.max_grad_norm_at(0)
    rule = (
        rule_of(model, max_grad_norm=norm, **(options or {})) if rule is None else rule
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader, clipping=rule)
    return model, loader, optimizer


def train(model, loader, optimizer, num_steps=None):
    for index, batch in enumerate(loader):
        if index == num_steps:
            break
        optimizer.backward(model, batch)
        optimizer.step()


def counts_of(model, batch, **options):
    """Return the map of a batch, as a private step finds it."""
    parameters = list(model.parameters())
    gradients = Engine().gradients(model(batch), parameters)
    norms_GB = gradients.squared_norms([0] * len(parameters)).sqrt()
    return RowMap(rule_of(model, **options)).of(gradients, parameters, norms_GB, 1.0)
