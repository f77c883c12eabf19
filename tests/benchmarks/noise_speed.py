"""Compare the noise stage with ``torch.randn``: ``python tests/benchmarks/noise_speed.py``.

The goals, where numba is installed and on one thread: at most 0.8 times ``torch.randn`` for
10 million elements in one tensor, and not more than it for the same in thousands of
tensors and for the parameters of GPT-2. Every way is timed in turn with ``torch.randn``;
a ratio is the median over rounds, given with its quartiles. Time is the processor's on one
thread, and else the clock's.

With ``--device cuda`` it is the clock's with the device synchronised, for sums of
several sizes on the device, and takes less than a minute.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from dp.noise import GaussianNoise
from dp.noise._device import chacha
from dp.noise._host import compiled_stage


# The parameters of GPT-2 small, 124 million: two embeddings, 12 layers, a last norm.
WIDTH = 768
GPT2_LAYER = (
    *[(WIDTH,), (WIDTH,), (WIDTH, 3 * WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,)],
    *[
        (WIDTH,),
        (WIDTH,),
        (WIDTH, 4 * WIDTH),
        (4 * WIDTH,),
        (4 * WIDTH, WIDTH),
        (WIDTH,),
    ],
)
GPT2 = ((50257, WIDTH), (1024, WIDTH), *12 * GPT2_LAYER, (WIDTH,), (WIDTH,))

Ways = Mapping[str, Callable[[], object]]


def main() -> None:
    """Print one line for each way of drawing noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpt2", action="store_true", help="also time its parameters")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
        print(f"torch {torch.__version__}, {options.threads} threads, float32;")  # noqa: T201
        print("kernel:", compiled_stage.verified_kernel())  # noqa: T201
        compare(ways(options.elements), options.elements, options.rounds)
        if options.gpt2:
            print("\nGPT-2 small")  # noqa: T201
            sums = [torch.zeros(shape) for shape in GPT2]
            compare(ways_for(sums), sum(s.numel() for s in sums), options.rounds)
        return
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device)},")  # noqa: T201
    print(f"{torch.get_num_threads()} threads of the host, medians, float32")  # noqa: T201
    print("GB/s are bytes of sums; kernel for words:", chacha.kernel_on(device))  # noqa: T201
    for name, shapes, rounds in subjects():
        sums = [torch.zeros(shape, device=device) for shape in shapes]
        num_elements = sum(s.numel() for s in sums)
        print(f"\n{name}, {num_elements:,} elements in {len(sums)} tensors")  # noqa: T201
        compare(ways_on(device, sums), num_elements, rounds)


def compare(measured: Ways, num_elements: int, rounds: int) -> None:
    """Time each way in turn, and print medians and ratios to the first."""
    times_of: dict[str, list[float]] = {name: [] for name in measured}
    for way in measured.values():
        way()  # Compile, and touch the memory.
    for _ in range(rounds):
        for name, way in measured.items():
            times_of[name].append(seconds(way))
    base = times_of["torch.randn"]
    for name, times in times_of.items():
        ratios = [t / b for t, b in zip(times, base, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(times)
        print(  # noqa: T201
            f"{name:28s} {median * 1e3:9.3f} ms {median / num_elements * 1e9:9.4f} ns/element"
            f" {4 * num_elements / median / 1e9:7.1f} GB/s"
            f" {ratio:7.2f} ({low:.2f} to {high:.2f}) x torch.randn"
        )


def ways(num_elements: int) -> Ways:
    """Return ways of drawing, on memory that is there already, except for randn's."""
    one = [torch.ones(num_elements)]
    double = [torch.ones(num_elements, dtype=torch.float64)]
    sizes = [64, 4096, 100] * (num_elements // 4260)
    many = [torch.ones(size) for size in sizes]
    alike = [torch.ones(10, 100) for _ in range(num_elements // 1000)]
    fast = GaussianNoise(rng="fast")
    subjects = {
        "": one,
        ", float64 sums": double,
        f", {len(many)} tensors": many,
        f", {len(alike)} tensors": alike,
    }
    measured: dict[str, Callable[[], object]] = {
        "torch.randn": lambda: torch.randn(num_elements),
        "normal_ in place": one[0].normal_,
        "fast": lambda: fast.add_(one, stddev=1.5),
    }
    for name, sums in subjects.items():
        secure = partial(GaussianNoise().add_, sums, stddev=1.5)
        measured[f"secure{name}"] = secure
        measured[f"numpy{name}"] = by_numpy(secure)
    return measured


def ways_for(sums: list[Tensor]) -> Ways:
    """Return ways of drawing noise for *sums* on the host."""
    secure = GaussianNoise()

    def randn() -> None:
        for s in sums:
            torch.randn(s.shape)

    return {
        "torch.randn": randn,
        "secure": lambda: secure.add_(sums, stddev=1.5),
        "numpy": by_numpy(lambda: secure.add_(sums, stddev=1.5)),
    }


def by_numpy(way: Callable[[], object]) -> Callable[[], object]:
    """Return the same way without a compiled kernel."""

    def run() -> None:
        with mock.patch("dp.noise._host.add.kernel_for", return_value=None):
            way()

    return run


def subjects() -> Iterator[tuple[str, list[tuple[int, ...]], int]]:
    """Yield names, shapes and numbers of rounds."""
    small = [(100, 20), (100,), (30, 100), (30,), (10, 30), (10,)]
    yield "a small model", small, 30
    yield "a larger one", [(300, 300), (300,), (100, 300), (100,)], 30
    yield "a vector", [(1_000_000,)], 30
    yield "a vector", [(10_000_000,)], 15
    yield "a vector", [(124_000_000,)], 7
    yield "GPT-2 small", list(GPT2), 7


def ways_on(device: torch.device, sums: list[Tensor]) -> Ways:
    """Return ways of drawing noise for *sums*; each has been taken once."""
    secure, fast = GaussianNoise(), GaussianNoise(rng="fast")

    def randn() -> None:
        for s in sums:
            torch.randn(s.shape, device=device)

    def host_words() -> None:
        with mock.patch("dp.noise._device.noise.kernel_on", return_value=None):
            secure.add_(sums, stddev=1.5)

    def on_host() -> None:
        with mock.patch("dp.noise._gaussian._WITH_FLOAT64", ()):
            secure.add_(sums, stddev=1.5)

    measured: dict[str, Callable[[], object]] = {
        "torch.randn": randn,
        "fast": lambda: fast.add_(sums, stddev=1.5),
        "secure": lambda: secure.add_(sums, stddev=1.5),
        "secure, words of the host": host_words,
        "secure, on the host": on_host,
    }
    synchronised = {name: _synchronised(way, device) for name, way in measured.items()}
    for way in synchronised.values():
        way()
    return synchronised


def _synchronised(
    way: Callable[[], object], device: torch.device
) -> Callable[[], object]:
    def run() -> None:
        torch.cuda.synchronize(device)
        way()
        torch.cuda.synchronize(device)

    return run


def seconds(way: Callable[[], object]) -> float:
    """Time one way of drawing noise."""
    on_one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if on_one_thread else time.perf_counter
    start = clock()
    way()
    return clock() - start


if __name__ == "__main__":
    main()
