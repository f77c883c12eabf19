"""Measure all that has to be measured on a GPU, within ten minutes.

    python tests/benchmarks/gpu.py OUT                           # on the first GPU
    python tests/benchmarks/gpu.py OUT --device cpu --share 0.05  # that it runs at all

Each part runs in a process of its own, to its limit, and its output lies in a file of the
folder OUT as soon as it is written: what was measured stays if the time is over. The most
wanted parts come first. Figures are of the wall clock, each step in turn with the
ordinary one, and steps end with a synchronization.
"""

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from step_models import MODELS
from step_ways import WAYS


HERE = Path(__file__).parent
# As users take steps, beside the engine alone and what others have.
_HAND = ["DPOptimizer, no noise", "DPOptimizer"]
_OTHERS = ["Opacus hooks", "Opacus ghost"]
# What is far from its goal: bf16, adapters, and steps that are mostly launches.
_FIRST = [
    "GPT-2 small, bf16",
    "GPT-2 small, LoRA, bf16",
    "LoRA",
    "MLP",
    "24 tiny layers",
]
_LAUNCHES = ("MLP", "24 tiny layers", "LoRA")


def parts(device: str, share: float) -> dict[str, tuple[list[str], float]]:
    """Return commands by their names, with their limits in seconds."""
    speed = [str(HERE / "step_speed.py"), "--device", device, "--rounds", "15"]
    figure = ["--seconds", str(0.7 * share)]
    noise = ["--device", device, "--elements", str(int(1e7 * share))]
    on_cpu = ["--models", "MLP"] if device == "cpu" else []
    first = ["--models", *(_FIRST if not on_cpu else ["MLP"])]
    ours = ["--ways", "dp, no noise", *_HAND]
    return {
        "launches": ([__file__, "--launches", "--device", device], 40),
        "steps that miss goals": ([*speed, *figure, *first, *ours, *_OTHERS], 110),
        "tests": (["-m", "pytest", "-q", "-m", "gpu", str(HERE.parent / "dp")], 140),
        "noise": (
            [str(HERE / "noise_speed.py"), *noise, "--rounds", "9", "--gpt2"],
            60,
        ),
        "memory": ([*speed, *on_cpu, "--memory", *ours, *_OTHERS], 90),
        "steps": ([*speed, *figure, *on_cpu, *ours, *_OTHERS], 150),
    }


def main() -> None:
    """Run every part, and print where each of them ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--share", type=float, default=1.0, help="of all times")
    parser.add_argument("--launches", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.launches:
        launches(options.device)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (arguments, limit) in parts(options.device, options.share).items():
        path = options.out / f"{name.replace(' ', '-')}.txt"
        start = time.monotonic()
        with path.open("w") as out:
            try:
                done = subprocess.run(
                    [sys.executable, *arguments],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    check=False,
                )
                end = f"ended with {done.returncode}"
            except subprocess.TimeoutExpired:
                end = f"was ended after {limit} s"
        print(f"{name}: {end}, {time.monotonic() - start:.0f} s, {path}", flush=True)  # noqa: T201


def launches(device: str) -> None:
    """Print how many kernels, or operations of a CPU, each way calls in a later step."""
    warnings.simplefilter("ignore")
    is_gpu = device != "cpu"
    kind = torch.profiler.ProfilerActivity
    for name in _LAUNCHES:
        for way in ("non-private", "dp, no noise", *_HAND):
            torch.manual_seed(0)
            with torch.device(device):
                step = WAYS[way](MODELS[name]())
            for _ in range(6):  # The first are verified.
                step()
            activities = [kind.CUDA] if is_gpu else [kind.CPU]
            with torch.profiler.profile(activities=activities) as profile:
                step()
                if is_gpu:
                    torch.accelerator.synchronize()
            count = sum(event.count for event in profile.key_averages())
            print(name, way, count, sep=" | ", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
