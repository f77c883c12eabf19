"""The server of DP-FedAvg: it draws clients, and clips and noises what they send.

The unit of privacy is a client with all its images. A plan, its loader and a
``DPOptimizer`` do what they do with examples: every client is drawn by a coin of its
own, the change that it sends is clipped as a whole, and the sum is noised and charged
before the new weights go out. Clients trust the server, which sees their changes.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dp


Client = tuple[int, int]  # A SuperNode, and which of its clients.

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds; print the accuracy, and what it cost each client."""
    config = context.run_config
    clients = [
        (node, client)
        for node in connected(grid, int(config["num-nodes"]))
        for client in range(int(config["clients-each"]))
    ]
    plan = dp.plan_for(
        target_epsilon=float(config["epsilon"]),
        target_delta=1e-3,
        sampling_probability=0.25,  # Of each client.
        steps=int(config["rounds"]),
        expected_batch_size=0.25 * len(clients),  # How many there are is public here.
        max_grad_norm=0.5,  # Of a client's change.
        unit_of_privacy="one client with all its images",
    )
    loader = plan.loader(clients, collate_fn=list, empty_batch=[])
    model = nn.Linear(64, 10)
    server = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = dp.DPOptimizer(server, plan=plan, loader=loader)
    for drawn in loader:
        changes = list(asked(grid, model, drawn))
        if changes:  # If nobody was drawn, the step is noise alone.
            for name, parameter in model.named_parameters():
                # [clients, ...], clipped and added by the step like gradients.
                parameter.grad_sample = torch.cat([one[name] for one in changes])
        optimizer.step()
    certificate = optimizer.certificate()
    if config["certificate"]:
        Path(str(config["certificate"])).write_text(certificate.to_json(), "utf-8")
    print(f"accuracy {accuracy(model):.3f} at epsilon {certificate.epsilon:.2f}")  # noqa: T201


def connected(grid: Grid, num_nodes: int) -> list[int]:
    """Return the SuperNodes, once so many are there."""
    nodes: Sequence[int] = ()
    while len(nodes) < num_nodes:
        nodes = sorted(grid.get_node_ids())
    return list(nodes)


def asked(
    grid: Grid, model: nn.Module, drawn: Sequence[Client]
) -> Iterable[dict[str, Tensor]]:
    """Yield the changes of the clients that were drawn, one row a client.

    A client that does not answer, or in error, adds zero, which is never more than its
    clipped change.
    """
    weights = ArrayRecord(model.state_dict())
    of_nodes: dict[int, list[int]] = {}
    for node, client in drawn:
        of_nodes.setdefault(node, []).append(client)
    messages = [
        Message(
            content=RecordDict(
                {"weights": weights, "asked": ConfigRecord({"clients": places})}
            ),
            message_type="train",
            dst_node_id=node,
        )
        for node, places in of_nodes.items()
    ]
    answered = {}
    for reply in grid.send_and_receive(messages):
        node = reply.metadata.src_node_id
        if reply.has_error():  # If all do, every step is noise alone.
            warnings.warn(f"SuperNode {node} answered: {reply.error}", stacklevel=2)
        else:
            answered[node] = reply.content.array_records["changes"]
    for node, places in of_nodes.items():
        changes = (
            answered[node].to_torch_state_dict()
            if node in answered
            else {
                name: torch.zeros(len(places), *weight.shape)
                for name, weight in model.state_dict().items()
            }
        )
        if any(len(change) != len(places) for change in changes.values()):
            raise ValueError(
                f"SuperNode {node} was asked for the changes of {len(places)} clients"
                " and sent another number of rows"
            )
        yield changes


def accuracy(model: nn.Module) -> float:
    """Return the accuracy on images that no client has."""
    pixels, labels = load_digits(return_X_y=True)
    guesses = model(torch.tensor(pixels[1400:] / 16).float()).argmax(1)
    return (guesses == torch.tensor(labels[1400:])).float().mean().item()
