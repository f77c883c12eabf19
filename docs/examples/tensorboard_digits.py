"""A plain torch loop whose epsilon is written to TensorBoard."""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from torch.utils.tensorboard import SummaryWriter

import dp
from dp.integrations.tensorboard import log_epsilon


def main(folder: str, steps: int = 20) -> float:
    """Train, and return the epsilon spent; look with ``tensorboard --logdir``."""
    images, labels = load_digits(return_X_y=True)
    train = TensorDataset(
        torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    )
    plan = dp.PrivacyPlan(
        sampling=dp.PoissonSampling(sampling_probability=0.1),
        noise_multiplier=4.0,
        max_grad_norm=1.0,
        expected_batch_size=180,
        steps=steps,
        target_delta=1e-4,
    )
    model = torch.nn.Linear(64, 10)
    loader = plan.loader(train)
    optimizer = dp.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), plan=plan, loader=loader
    )

    def loss_fn(batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return cross_entropy(model(x), y, reduction="none")

    with SummaryWriter(folder) as writer:
        log_epsilon(optimizer, writer, every=10)
        for batch in loader:
            optimizer.backward(loss_fn, batch)
            optimizer.step()
    return optimizer.guarantee().epsilon


if __name__ == "__main__":
    print(f"epsilon {main(tempfile.mkdtemp()):.2f}")  # noqa: T201
