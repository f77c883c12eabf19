"""Compare the noise stage with ``torch.randn``: ``python tests/benchmarks/noise_speed.py``.

The goal is at most twice the time of ``torch.randn`` on 10 million elements. Figures
are medians, in nanoseconds an element, on one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from dp.noise import GaussianNoise


def main() -> None:
    """Print one line for each way of drawing noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    one = [torch.zeros(options.elements)]
    many = [torch.zeros(n) for n in (64, 4096, 100)] * (options.elements // 4260)
    double = [torch.zeros(options.elements, dtype=torch.float64)]
    secure, fast = GaussianNoise(), GaussianNoise(rng="fast")
    ways: dict[str, Callable[[], object]] = {
        "torch.randn": lambda: torch.randn(options.elements),
        "normal_ in place": one[0].normal_,
        "secure": lambda: secure.add_(one, stddev=1.5),
        "secure, float64 sums": lambda: secure.add_(double, stddev=1.5),
        f"secure, {len(many)} tensors": lambda: secure.add_(many, stddev=1.5),
        "fast": lambda: fast.add_(one, stddev=1.5),
    }
    measured = {name: nanoseconds(way, options) for name, way in ways.items()}
    for name, figure in measured.items():
        ratio = figure / measured["torch.randn"]
        print(f"{name:28s} {figure:6.2f} ns/element {ratio:6.2f} x torch.randn")  # noqa: T201


def nanoseconds(way: Callable[[], object], options: argparse.Namespace) -> float:
    """Time one way of drawing noise."""
    way()
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    return statistics.median(times) / options.elements * 1e9


if __name__ == "__main__":
    main()
