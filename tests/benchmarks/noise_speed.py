"""Compare the noise stage with ``torch.randn``: ``python tests/benchmarks/noise_speed.py``.

The goal is at most twice the time of ``torch.randn`` on 10 million elements, in one
tensor or in thousands. Every way is timed in turn with ``torch.randn``; a ratio is the
median over rounds. Time is that of the processor on one thread, and else of the clock.
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
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = ways(options.elements)
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(options.rounds):
        for name, way in measured.items():
            found[name].append(seconds(way))
    base = found["torch.randn"]
    for name, times in found.items():
        ratio = statistics.median(t / b for t, b in zip(times, base, strict=True))
        nanoseconds = statistics.median(times) / options.elements * 1e9
        print(f"{name:28s} {nanoseconds:6.2f} ns/element {ratio:6.2f} x torch.randn")  # noqa: T201


def ways(num_elements: int) -> dict[str, Callable[[], object]]:
    """Return ways of drawing, on memory that is there already, except for randn's."""
    one = [torch.ones(num_elements)]
    double = [torch.ones(num_elements, dtype=torch.float64)]
    sizes = [64, 4096, 100] * (num_elements // 4260)
    many = [torch.ones(size) for size in sizes]
    alike = [torch.ones(10, 100) for _ in range(num_elements // 1000)]
    secure, fast = GaussianNoise(), GaussianNoise(rng="fast")
    return {
        "torch.randn": lambda: torch.randn(num_elements),
        "normal_ in place": one[0].normal_,
        "secure": lambda: secure.add_(one, stddev=1.5),
        "secure, float64 sums": lambda: secure.add_(double, stddev=1.5),
        f"secure, {len(many)} tensors": lambda: secure.add_(many, stddev=1.5),
        f"secure, {len(alike)} tensors": lambda: secure.add_(alike, stddev=1.5),
        "fast": lambda: fast.add_(one, stddev=1.5),
    }


def seconds(way: Callable[[], object]) -> float:
    """Time one way of drawing noise."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    way()
    return clock() - start


if __name__ == "__main__":
    main()
