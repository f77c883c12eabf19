"""What a private step costs beside the model: ``python tests/benchmarks/step_overhead.py``.

First, of a model with 10 million parameters, the share of a step that is neither the
model, nor drawing noise, nor the wrapped optimizer's update: tickets, clipping factors,
the ledger, dividing, guards. Then the processor time of steps of models with more and
more parameter tensors, of two elements each, beside the ordinary backward and step, with
Python's garbage collector on and off. ``--tensors 1000 10000`` prints only these.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import dp


def private(model: nn.Module, steps: int) -> dp.DPOptimizer:
    """Wrap SGD for *model*, whose batches are the caller's."""
    plan = dp.PrivacyPlan(
        sampling=dp.Unamplified(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=64.0,
        steps=steps,
        target_delta=1e-5,
    )
    return dp.DPOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), plan=plan)


def timed(owner: Any, name: str, spent: dict[str, float]) -> None:
    """Add up the time that a method takes."""
    method = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    setattr(owner, name, wrapper)


def shares(steps: int = 12) -> None:
    """Print where a step of 10 million parameters goes."""
    model = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(10)))
    spent: dict[str, float] = {}
    timed(dp.GaussianNoise, "add_", spent)
    timed(dp.DPOptimizer, "_update", spent)
    optimizer = private(model, steps)
    rows: list[dict[str, float]] = []
    for _ in range(steps):
        spent.clear()
        start = time.perf_counter()
        losses = model(torch.randn(64, 1000)).square().mean(1)
        optimizer.backward(losses)
        middle = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        noise, update = spent["add_"], spent["_update"]
        rows.append(
            {
                "model and clipping": middle - start,
                "noise": noise,
                "wrapped update": update,
                "everything else": end - middle - noise - update,
                "step": end - start,
            }
        )
    medians = {k: statistics.median(row[k] for row in rows[2:]) for k in rows[0]}
    for name, seconds in medians.items():
        share = seconds / medians["step"]
        print(f"| {name} | {1e3 * seconds:.1f} | {share:.1%} |")  # noqa: T201


def growth(counts: Sequence[int], rounds: int = 7) -> None:
    """Print processor time a tensor, private beside ordinary, by number of tensors."""
    for collects in (True, False):
        for num_tensors in counts:
            (gc.enable if collects else gc.disable)()
            private_us, ordinary_us = _a_tensor(num_tensors, rounds)
            print(  # noqa: T201
                f"| {'on' if collects else 'off'} | {num_tensors} | {private_us:.0f}"
                f" | {ordinary_us:.1f} | {private_us / ordinary_us:.2f} |",
                flush=True,
            )
    gc.enable()


def _a_tensor(num_tensors: int, rounds: int) -> tuple[float, float]:
    """Return microseconds a tensor of a private step and of an ordinary one."""
    x = torch.randn(4, 2)
    model, other = (
        nn.ParameterList(torch.zeros(2) for _ in range(num_tensors)) for _ in range(2)
    )
    optimizer = private(model, rounds)
    ordinary = torch.optim.SGD(other.parameters(), lr=0.1, foreach=True)
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        losses, total = (
            torch.stack([(x * p).sum(1) for p in some]).sum(0)
            for some in (model, other)
        )
        start = time.process_time()
        optimizer.backward(losses)
        optimizer.step()
        middle = time.process_time()
        total.sum().backward()
        ordinary.step()
        ordinary.zero_grad()
        end = time.process_time()
        del losses, total
        times.append((middle - start, end - middle))
    of_private, of_ordinary = zip(*times[2:], strict=True)
    scale = 1e6 / num_tensors
    return scale * statistics.median(of_private), scale * statistics.median(of_ordinary)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensors", type=int, nargs="*", help="only their growth")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.tensors:
        shares()
    growth(arguments.tensors or (100, 1000, 10_000))
