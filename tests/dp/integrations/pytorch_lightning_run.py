"""One private run by one line, and one by the callback, with ``pytorch_lightning``.

Called by test_pytorch_lightning.py in a process of its own; ``alone`` stands for an
installation without the package ``lightning``.
"""

import sys
import warnings


if "alone" in sys.argv:
    sys.modules["lightning"] = None

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import dp
from dp.integrations.lightning import PrivacyCallback


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 3)

    def losses(self, batch):
        x, y = batch
        return cross_entropy(self.net(x), y, reduction="none")

    def training_step(self, batch, batch_idx):
        del batch_idx
        return self.losses(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Private(Classifier):
    def __init__(self, plan, loader):
        super().__init__()
        self.plan, self.loader = plan, loader

    def training_step(self, batch, batch_idx):
        del batch_idx
        return self.optimizers().private_loss(self.losses, batch)

    def configure_optimizers(self):
        return dp.DPOptimizer(
            super().configure_optimizers(), plan=self.plan, loader=self.loader
        )


def rows():
    return TensorDataset(torch.randn(60, 8), torch.randint(3, (60,)))


def trainer(**more):
    return Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )


def by_one_line(folder):
    private = dp.private(
        trainer(default_root_dir=folder), epsilon=3.0, delta=1e-4, dataset_size=60
    )
    private.fit(Classifier(), DataLoader(rows(), batch_size=10))
    return private.private_optimizer, private.certificate().epsilon


def by_callback(*callbacks):
    plan = dp.plan_for(
        target_epsilon=3.0,
        target_delta=1e-4,
        steps=12,
        sampling_probability=1 / 6,
        max_grad_norm=1.0,
        expected_batch_size=10.0,
    )
    loader = plan.loader(rows())
    fitted = trainer(callbacks=[*callbacks])
    fitted.fit(Private(plan, loader), loader)
    return fitted.optimizers[0], fitted.callback_metrics


if __name__ == "__main__":
    warnings.filterwarnings("ignore", ".*does not have many workers")
    optimizer, epsilon = by_one_line(sys.argv[1])
    assert optimizer.ledger.steps == 12
    assert 2.9 < epsilon <= 3.0
    optimizer, metrics = by_callback(PrivacyCallback())
    assert optimizer.ledger.steps == 12
    assert 0 < metrics["epsilon"] <= 3.0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            by_callback()
        except dp.BudgetExhaustedError:
            told.append("it did not stop by itself")
    assert any("without PrivacyCallback" in str(each) for each in told)
    sys.stdout.write("done")
