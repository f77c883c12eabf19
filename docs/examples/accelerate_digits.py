"""Digits with accelerate: the lines that make it private are marked with '+'."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import dp  # +
from dp.integrations.accelerate import prepare, private_loss, private_optimizer  # +


def main(steps: int = 60) -> tuple[float, float]:
    """Train, and return the accuracy on test images and the epsilon spent."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32)
    labels = torch.tensor(labels)
    train = TensorDataset(images[:1400], labels[:1400])

    plan = dp.plan_for(  # + Public numbers, decided in advance.
        target_epsilon=3.0,
        target_delta=1e-4,
        sampling_probability=0.25,
        steps=steps,
        expected_batch_size=350,
        max_grad_norm=1.0,
    )
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = torch.nn.Linear(64, 10)
    loader = plan.loader(train)  # + Draws batches; was a DataLoader.
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)
    optimizer = dp.DPOptimizer(optimizer, plan=plan, loader=loader)  # +
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    model, optimizer, loader, scheduler = prepare(  # + Was accelerator.prepare(
        accelerator, model, optimizer, loader, scheduler
    )

    def loss_fn(batch: list[torch.Tensor]) -> torch.Tensor:  # +
        x, y = batch
        return cross_entropy(model(x), y, reduction="none")  # + One per image.

    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(private_loss(loss_fn, optimizer, batch))  # +
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    device = accelerator.device
    guesses = model(images[1400:].to(device)).argmax(1).cpu()
    accuracy = (guesses == labels[1400:]).float().mean().item()
    return accuracy, private_optimizer(optimizer).guarantee().epsilon


if __name__ == "__main__":
    reached, spent = main()
    print(f"accuracy {reached:.3f} at epsilon {spent:.2f}")  # noqa: T201
