"""Breast cancer with Lightning: the lines that make it private are marked with '+'."""

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_breast_cancer
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import dp  # +
from dp.integrations.lightning import PrivacyCallback  # +


class Classifier(LightningModule):
    """Two layers on thirty measurements of a cell."""

    def __init__(self, plan: dp.PrivacyPlan, loader: dp.PoissonLoader) -> None:
        super().__init__()
        self.plan, self.loader = plan, loader  # +
        self.net = torch.nn.Sequential(
            torch.nn.Linear(30, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
        )

    def losses(self, batch: list[torch.Tensor]) -> torch.Tensor:  # +
        """Return one loss for each patient."""
        x, y = batch
        return cross_entropy(self.net(x), y, reduction="none")  # +

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss that Lightning differentiates."""
        return self.optimizers().private_loss(self.losses, batch)  # +

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return a private Adam."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return dp.DPOptimizer(optimizer, plan=self.plan, loader=self.loader)  # +


def main(steps: int = 60) -> tuple[float, float]:
    """Train, and return the accuracy on test patients and the epsilon spent."""
    x, y = load_breast_cancer(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order], torch.tensor(y)[order]
    # Ranges that a textbook gives, not statistics of these patients.
    x = (x / torch.tensor([20, 20, 100, 1000, *[0.1] * 6] * 3)).clamp(0, 3)

    plan = dp.plan_for(  # + Public numbers, decided in advance.
        target_epsilon=3.0,
        target_delta=1e-4,
        sampling_probability=0.25,
        steps=steps,
        expected_batch_size=100,
        max_grad_norm=1.0,
    )
    loader = plan.loader(TensorDataset(x[:400], y[:400]))  # + Was a DataLoader.
    module = Classifier(plan, loader)
    trainer = Trainer(
        callbacks=[PrivacyCallback()],  # + Logs epsilon and ends at the budget.
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)

    accuracy = (module.net(x[400:]).argmax(1) == y[400:]).float().mean().item()
    return accuracy, trainer.callback_metrics["epsilon"].item()


if __name__ == "__main__":
    reached, spent = main()
    print(f"accuracy {reached:.3f} at epsilon {spent:.2f}")  # noqa: T201
