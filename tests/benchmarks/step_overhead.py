"""What a private step costs beside the model: ``python tests/benchmarks/step_overhead.py``.

First, of a model with 10 million parameters, the share of a step that is neither the
model, nor drawing noise, nor the wrapped optimizer's update: tickets, clipping factors,
the ledger, dividing, guards. Then the time of steps of models with 100, 1000 and 10 000
parameter tensors, an element at a time: in proportion, if nothing grows faster.
"""

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

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


def growth() -> None:
    """Print the time a tensor, by the number of tensors."""
    for num_tensors in (100, 1000, 10_000):
        model = nn.ParameterList(torch.zeros(2) for _ in range(num_tensors))
        optimizer = private(model, 6)
        x = torch.randn(4, 2)
        times = []
        for _ in range(6):
            losses: Tensor = torch.stack([(x * p).sum(1) for p in model]).sum(0)
            start = time.perf_counter()
            optimizer.backward(losses)
            optimizer.step()
            times.append((time.perf_counter() - start) / num_tensors)
        later = statistics.median(times[2:])
        print(  # noqa: T201
            f"| {num_tensors} | {1e6 * times[0]:.0f} | {1e6 * later:.0f} |", flush=True
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    shares()
    growth()
