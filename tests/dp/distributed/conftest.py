"""Processes that train together, kept for many tests.

Rank-side code is in ``ranks_*.py``: a function there is called on every rank by name,
and what it returns comes back as a list. Nothing else is shared but the process group.
"""

import multiprocessing
import os
import runpy
import secrets
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Listener
from pathlib import Path

import pytest


collect_ignore_glob = ["ranks_*.py", "worker.py"]  # Not run here, but on the ranks.

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[3]
sys.path.append(str(WORKER.parent))  # Rank-side files import each other.
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


def coverage_of_this_process():
    return "coverage" in sys.modules and sys.modules["coverage"].Coverage.current()


@contextmanager
def group_of(size, *, torchrun, timeout_s, joins=True):
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
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TORCH_DISTRIBUTED_DEBUG": "OFF",
        }
        if joins:
            environment["DP_TEST_JOINS"] = "1"
        if timeout_s is not None:
            environment["DP_TEST_TIMEOUT"] = str(timeout_s)
        if measures := coverage_of_this_process():
            file = measures.get_option("run:data_file")
            environment["DP_TEST_COVERAGE"] = str(ROOT / file)
        start = _by_torchrun if torchrun else _one_by_one
        processes = start(size, environment)
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
                _end(process, patience_s=20 if ranks.is_sound else 1)


def _by_torchrun(size, environment):
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={size}", str(WORKER)]
    return [subprocess.Popen([sys.executable, *launcher], cwd=ROOT, env=environment)]


def _one_by_one(size, environment):
    """Start processes that end alone; torchrun would end the others after one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["torch", "torch.distributed"])  # Once for all tests.
    processes = [
        forks.Process(
            target=runpy.run_path,
            args=(
                str(WORKER),
                {"ENVIRONMENT": {**environment, **shared, "RANK": str(r)}},
            ),
            kwargs={"run_name": "__main__"},
        )
        for r in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def _end(process, *, patience_s):
    if isinstance(process, subprocess.Popen):
        try:
            process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its workers.
            process.wait()
        return
    process.join(timeout=patience_s)
    process.kill()
    process.join()


@pytest.fixture(scope="session")
def _group():
    """The long-lived group; a new one after a failure that may have broken it."""
    with ExitStack() as stack:
        held = []

        def current():
            if not held or not held[-1].is_sound:
                opened = group_of(WORLD_SIZE, torchrun=True, timeout_s=None)
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
    with group_of(2, torchrun=False, timeout_s=3) as ranks:
        yield ranks


@pytest.fixture
def unjoined_ranks():
    """Two processes that find each other in the environment, but have not joined."""
    with group_of(2, torchrun=False, timeout_s=None, joins=False) as ranks:
        yield ranks
