"""Federated averaging (DP-FedAvg): the unit of privacy is a client with all its data.

Every round, each client is drawn by a coin, trains a copy of the model on its own images
for several steps, and sends the change of its weights. The change is clipped as a whole,
the sum is noised, and the server's optimizer applies it (McMahan et al. 2018,
arXiv:1710.06963). All clients are simulated in this process.

Shapes: ``B`` clients of a round.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import dp


NUM_CLIENTS, IMAGES_EACH = 280, 5


def change_of(client: list[Tensor], model: nn.Module, steps: int = 5) -> list[Tensor]:
    """Return minus the change of each weight by training on the images of a client.

    An optimizer subtracts gradients, hence minus.
    """
    images, labels = client
    local = copy.deepcopy(model)
    sgd = torch.optim.SGD(local.parameters(), lr=0.5)
    for _ in range(steps):
        sgd.zero_grad()
        cross_entropy(local(images), labels).backward()
        sgd.step()
    pairs = zip(model.parameters(), local.parameters(), strict=True)
    return [(before - after).detach() for before, after in pairs]


def main(rounds: int = 60) -> tuple[float, float]:
    """Train, and return the accuracy on test images and the epsilon spent."""
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16).float(), torch.tensor(labels)
    clients = TensorDataset(
        images[: NUM_CLIENTS * IMAGES_EACH].view(NUM_CLIENTS, IMAGES_EACH, 64),
        labels[: NUM_CLIENTS * IMAGES_EACH].view(NUM_CLIENTS, IMAGES_EACH),
    )
    plan = dp.plan_for(
        target_epsilon=8.0,
        target_delta=1e-3,
        sampling_probability=0.25,  # Of each client.
        steps=rounds,
        expected_batch_size=70,  # Clients; their number is public here.
        max_grad_norm=0.5,  # Of a client's change.
        unit_of_privacy="one client with all its images",
    )
    loader = plan.loader(clients)
    model = nn.Linear(64, 10)
    server = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = dp.DPOptimizer(server, plan=plan, loader=loader)
    for batch in loader:
        changes = [change_of(client, model) for client in zip(*batch, strict=True)]
        if changes:  # Without a client there is only noise.
            for parameter, of_clients in zip(
                model.parameters(), zip(*changes, strict=True), strict=True
            ):
                # [B, ...], clipped and added by the step like gradients.
                parameter.grad_sample = torch.stack(of_clients)
        optimizer.step()
    guesses = model(images[1400:]).argmax(1)
    accuracy = (guesses == labels[1400:]).float().mean().item()
    return accuracy, optimizer.guarantee().epsilon


if __name__ == "__main__":
    reached, spent = main()
    print(f"accuracy {reached:.3f} at epsilon {spent:.2f} for each client")  # noqa: T201
