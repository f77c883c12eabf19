"""Images with augmentation multiplicity and averaged weights, at epsilon 3.

Every image is seen in several random views, whose gradients are averaged before the
image's gradient is clipped once (De et al. 2022, arXiv:2204.13650). A moving average of
the weights is post-processing of what was released. Neither costs any privacy.

Shapes: ``B`` images, ``K`` views of each.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

import dp


def shifted(images_B: Tensor) -> Tensor:
    """Return every image moved by up to one pixel, in a direction of its own."""
    size = images_B.shape[-1]
    rows, columns = torch.randint(3, (2, len(images_B), 1, 1, 1))
    pixels = torch.arange(size)
    padded = pad(images_B, (1, 1, 1, 1))
    padded = padded.gather(2, (rows + pixels[:, None]).expand(-1, 1, -1, size + 2))
    return padded.gather(3, (columns + pixels).expand(-1, 1, size, -1))


def make_model() -> nn.Module:
    """Return a network whose normalisation does not mix images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def main(num_views: int = 4, steps: int = 80) -> tuple[float, float, float]:
    """Train; return the accuracy of the weights and of their average, and epsilon."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    plan = dp.plan_for(  # Public numbers, decided in advance.
        target_epsilon=3.0,
        target_delta=1e-4,
        sampling_probability=0.25,
        steps=steps,
        expected_batch_size=350,
        max_grad_norm=1.0,
    )
    loader = plan.loader(TensorDataset(images[:1400], labels[:1400]))
    model = make_model()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    sgd = torch.optim.SGD(model.parameters(), lr=3.0)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)

    def loss_fn(batch: list[Tensor]) -> Tensor:
        x, y = (part.repeat_interleave(num_views, dim=0) for part in batch)
        return cross_entropy(model(shifted(x)), y, reduction="none")

    for batch in loader:
        units = torch.arange(len(batch[0])).repeat_interleave(num_views)
        optimizer.backward(loss_fn, batch, units=units, reduction="mean")
        optimizer.step()
        average.update_parameters(model)

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            guesses = network(images[1400:]).argmax(1)
        return (guesses == labels[1400:]).float().mean().item()

    return accuracy(model), accuracy(average), optimizer.guarantee().epsilon


if __name__ == "__main__":
    last, averaged, spent = main()
    print(f"accuracy {last:.3f}, averaged {averaged:.3f}, at epsilon {spent:.2f}")  # noqa: T201
