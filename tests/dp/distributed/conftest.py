"""Processes that train together, kept for many tests.

Rank-side code is in ``ranks_*.py``: a function there is called on every rank by name,
and what it returns comes back as a list. Nothing else is shared but the process group.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Listener
from pathlib import Path

import pytest


HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path.append(str(HERE))  # Rank-side files import each other, here as on the ranks.
# 4 by a command: DP_TEST_WORLD_SIZE=4 python -m pytest tests/dp/distributed
WORLD_SIZE = int(os.environ.get("DP_TEST_WORLD_SIZE", "2"))
PATIENCE_S = 120


class Ranks:
    """A running group of processes that wait for calls."""

    def __init__(self, connections, processes):
        self.size = len(connections)
        self.is_sound = True
        self.processes = processes
        self._connections = connections

    def __call__(self, name, **arguments):
        """Call ``file:function`` on every rank, and return all results."""
        self.start(name, **arguments)
        return self.results()

    def start(self, name, **arguments):
        for connection in self._connections:
            connection.send((name, arguments))

    def results(self):
        found = [self.result(rank) for rank in range(self.size)]
        failures = [error for ok, error in found if not ok]
        if failures:
            self.is_sound = False
            pytest.fail("\n".join(failures), pytrace=False)
        return [result for _, result in found]

    def result(self, rank):
        connection = self._connections[rank]
        if not connection.poll(PATIENCE_S):
            self.is_sound = False
            pytest.fail(f"rank {rank} gave no answer in {PATIENCE_S} s", pytrace=False)
        return connection.recv()

    def stop(self):
        for connection in self._connections:
            try:
                connection.send(None)
            except OSError:
                continue


@contextmanager
def group_of(size, *, torchrun, timeout_s):
    """Start *size* processes, by torchrun or one by one, and end them."""
    with ExitStack() as stack:
        address = str(
            Path(stack.enter_context(tempfile.TemporaryDirectory())) / "calls"
        )
        key = secrets.token_hex(16)
        listener = stack.enter_context(Listener(address, authkey=key.encode()))
        environment = {
            **os.environ,
            "DP_TEST_CALLS": address,
            "DP_TEST_KEY": key,
            "DP_TEST_TIMEOUT": str(timeout_s),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TORCH_DISTRIBUTED_DEBUG": "OFF",
        }
        if "coverage" in sys.modules and sys.modules["coverage"].Coverage.current():
            environment["DP_TEST_COVERAGE"] = str(ROOT / ".coverage")
        processes = [
            stack.enter_context(process)
            for process in _started(size, environment, torchrun=torchrun)
        ]
        by_rank = {}
        for _ in range(size):
            connection = stack.enter_context(listener.accept())
            by_rank[connection.recv()] = connection
        ranks = Ranks([by_rank[rank] for rank in range(size)], processes)
        try:
            yield ranks
        finally:
            ranks.stop()
            for process in processes:
                try:
                    process.wait(timeout=20 if ranks.is_sound else 1)
                except subprocess.TimeoutExpired:
                    process.kill()


def _started(size, environment, *, torchrun):
    worker = [str(HERE / "worker.py")]
    if torchrun:
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        command = [sys.executable, *launcher, f"--nproc-per-node={size}", *worker]
        yield subprocess.Popen(command, cwd=ROOT, env=environment)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    for rank in range(size):
        yield subprocess.Popen(
            [sys.executable, *worker],
            cwd=ROOT,
            env={**environment, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )


@pytest.fixture(scope="session")
def _group():
    """The long-lived group; a new one after a failure that may have broken it."""
    with ExitStack() as stack:
        held = []

        def current():
            if not held or not held[-1].is_sound:
                opened = group_of(WORLD_SIZE, torchrun=True, timeout_s=60)
                held.append(stack.enter_context(opened))
            return held[-1]

        yield current


@pytest.fixture
def ranks(_group):
    """Processes started by torchrun, which many tests call one after the other."""
    return _group()


@pytest.fixture
def doomed_ranks():
    """Two processes of one's own, to be ended or stalled; their timeout is short."""
    with group_of(2, torchrun=False, timeout_s=4) as ranks:
        yield ranks
