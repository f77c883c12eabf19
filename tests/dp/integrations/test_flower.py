"""The Flower example, where flwr is installed; messages are handed over in one process."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

import dp


identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity

APP = Path(__file__).parents[3] / "docs" / "examples" / "flower_digits"
NODES = (11, 22)


class Grid:
    """Hands messages to the client app of the SuperNode that they are for."""

    def __init__(self, client):
        self.client = client
        self.silent = None

    def get_node_ids(self):
        return list(NODES)

    def send_and_receive(self, messages):
        for message in messages:
            node = message.metadata.dst_node_id
            if node != self.silent:
                first = NODES.index(node) * 140
                context = SimpleNamespace(node_config={"first-client": first})
                yield self.client["train"](message, context)


@pytest.mark.parametrize("silent", [None, NODES[1]])
def test_the_flower_example_keeps_the_target_of_a_client(
    tmp_path, capsys, monkeypatch, silent
):
    """It learns, and a SuperNode that never answers costs nobody more."""
    for number in ("_run_id", "_task_id", "_node_id"):  # Flower's processes have them.
        monkeypatch.setattr(identity, number, 1)
    server = runpy.run_path(str(APP / "server_app.py"))
    grid = Grid(runpy.run_path(str(APP / "client_app.py")))
    grid.silent = silent
    file = tmp_path / "certificate.json"
    config = {
        "rounds": 20,
        "num-nodes": 2,
        "clients-each": 140,
        "epsilon": 8.0,
        "certificate": str(file),
    }

    server["main"](grid, SimpleNamespace(run_config=config))

    certificate = dp.Certificate.from_json(file.read_text("utf-8"))
    assert certificate.unit_of_privacy == "one client with all its images"
    assert 7.2 < certificate.epsilon <= 8.0
    assert dp.verify(certificate, quick=True).ok
    assert float(capsys.readouterr().out.split()[1]) > 0.5
