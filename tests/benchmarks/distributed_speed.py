"""Bytes and time of a private step on many ranks, as ratios to a DDP step without.

    python tests/benchmarks/distributed_speed.py

Ranks are processes of one machine that talk gloo over the loopback device, in a network
of their own where the system allows it (``unshare``), so that nothing else is counted.
With fewer cores than ranks, times say how work is shared, not how it scales.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.parallel import DistributedDataParallel

import dp


WIDTH = 1024
NUM_STEPS = 7
BATCHES = {"strong": lambda size: 256 // size, "weak": lambda _size: 64}


def model_of():
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return DistributedDataParallel(nn.Sequential(*layers, nn.Linear(WIDTH, 10)))


def private_step(local_batch):
    plan = dp.PrivacyPlan(
        sampling=dp.Unamplified(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=local_batch * distributed.get_world_size(),
        steps=1000,
        target_delta=1e-5,
    )
    model = model_of()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan)

    def step(x, y):
        optimizer.backward(F.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()

    return step


def plain_step(_local_batch):
    model = model_of()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x, y):
        sgd.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sgd.step()

    return step


def received():
    """Bytes that arrived over the loopback device since it is up."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == "lo":
            return int(figures.split()[0])
    raise RuntimeError("no loopback device in /proc/net/dev")


def measured(step, x, y):
    """Return the seconds and the bytes of a step of all ranks together."""
    distributed.barrier()
    time.sleep(0.02)  # The barrier's own bytes have arrived.
    before, began = received(), time.perf_counter()
    step(x, y)
    distributed.barrier()
    seconds = time.perf_counter() - began
    time.sleep(0.02)
    return seconds, received() - before


def rank_main():
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    size = distributed.get_world_size()
    for scaling, batch_of in BATCHES.items():
        local = batch_of(size)
        steps = {"private": private_step(local), "plain": plain_step(local)}
        x, y = torch.randn(local, WIDTH), torch.randint(10, (local,))
        found = {name: [] for name in steps}
        for _ in range(NUM_STEPS):
            for name, step in steps.items():  # Interleaved.
                found[name].append(measured(step, x, y))
        if distributed.get_rank() == 0:
            row = {"ranks": size, "scaling": scaling, "local_batch": local}
            for name, pairs in found.items():
                times, sizes = zip(*pairs[2:], strict=True)
                row[f"{name}_s"] = statistics.median(times)
                row[f"{name}_bytes"] = statistics.median(sizes)
            print(json.dumps(row), flush=True)  # noqa: T201
    distributed.destroy_process_group()


def run(size):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DP_BENCH_RANK": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    rows, *_ = (process.communicate()[0] for process in processes)
    return [json.loads(line) for line in rows.splitlines()]


def main():
    num_elements = sum(p.numel() for p in nn.Linear(WIDTH, WIDTH).parameters())
    num_elements = 2 * num_elements + 10 * (WIDTH + 1)
    print(f"{num_elements} parameters, {os.cpu_count()} cores, gloo, float32")  # noqa: T201
    print("| scaling | ranks | local batch | ms | x DDP | MB a rank | x DDP |")  # noqa: T201
    print("|---|---|---|---|---|---|---|")  # noqa: T201
    rows = [row for size in (1, 2, 4) for row in run(size)]
    for row in sorted(rows, key=lambda row: (row["scaling"], row["ranks"])):
        sent = [row[f"{kind}_bytes"] / row["ranks"] for kind in ("private", "plain")]
        wire = f"{sent[0] / sent[1]:.3f}" if row["ranks"] > 1 else "-"
        print(  # noqa: T201
            f"| {row['scaling']} | {row['ranks']} | {row['local_batch']}"
            f" | {row['private_s'] * 1e3:.0f}"
            f" | {row['private_s'] / row['plain_s']:.2f}"
            f" | {sent[0] / 1e6:.2f} | {wire} |"
        )


def in_a_network_of_its_own():
    """Start over where the loopback device carries nothing else, if that can be."""
    inside = f"ip link set lo up && exec {sys.executable} {__file__}"
    environment = {**os.environ, "DP_BENCH_ALONE": "1"}
    command = ["unshare", "-rn", "sh", "-c", inside]
    try:
        return subprocess.run(command, env=environment, check=False).returncode == 0
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    if "DP_BENCH_RANK" in os.environ:
        rank_main()
    elif "DP_BENCH_ALONE" in os.environ or not in_a_network_of_its_own():
        main()
