"""The clients of DP-FedAvg: each trains on its own images and sends the change.

Nothing here is private by itself; the server clips and noises. One SuperNode stands for
many clients here, as a simulation does; in earnest each has its own.
"""

import copy
from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


IMAGES_EACH, STEPS = 5, 5

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return the changes of the clients that are asked for, one row a client."""
    model = nn.Linear(64, 10)
    model.load_state_dict(
        message.content.array_records["weights"].to_torch_state_dict()
    )
    first = int(context.node_config["first-client"])
    asked = message.content.config_records["asked"]["clients"]
    changes = [change_of(model, first + client) for client in asked]
    rows = {name: torch.stack([one[name] for one in changes]) for name in changes[0]}
    return Message(RecordDict({"changes": ArrayRecord(rows)}), reply_to=message)


def change_of(model: nn.Module, client: int) -> dict[str, Tensor]:
    """Return minus the change of each weight by training on a client's images.

    An optimizer subtracts gradients, hence minus.
    """
    pixels, labels = digits()
    own = slice(client * IMAGES_EACH, (client + 1) * IMAGES_EACH)
    images = torch.tensor(pixels[own] / 16).float()
    local = copy.deepcopy(model)
    sgd = torch.optim.SGD(local.parameters(), lr=0.5)
    for _ in range(STEPS):
        sgd.zero_grad()
        cross_entropy(local(images), torch.tensor(labels[own])).backward()
        sgd.step()
    after = local.state_dict()
    return {name: before - after[name] for name, before in model.state_dict().items()}


@cache
def digits() -> tuple[Any, Any]:
    """Return the pixels and labels of all images."""
    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels
