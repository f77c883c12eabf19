"""Time private steps of ``jax_privacy`` beside ours: ``python tests/benchmarks/jax_speed.py``.

Needs ``jax`` and ``jax-privacy``, which are no dependency of this project. The same
model has the same weights and batch in both, which the losses confirm. All ways take
their steps in turn on one core, to which Linux ties the process: XLA has no flag for all
of its threads. A figure is the median time of a step in milliseconds.

``--write`` puts what was measured into the page.
"""

import argparse
import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import torch
from jax import lax, numpy as jnp
from jax_privacy.clipping import clipped_grad
from jax_privacy.noise_addition import gaussian_privatizer
from step_models import Subject
from step_models_in_hand import IN_HAND
from step_ways import WAYS
from torch import nn


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "benchmarks.md"
_MARKS = "<!-- jax -->", "<!-- end of jax -->"
_NAMES = ("MLP, 64", "MLP, 512", "CNN of MNIST")
_AT_ONCE = (None, 1, 4, 16, 64)  # Examples whose gradients are in memory together.
_RATE, _BOUND = 1e-4, 1.0
_MOST_BYTES = 4e9  # Of the gradients of all examples.

_Step = Callable[[], object]
_Params = list[dict[str, Any]]


def main() -> None:
    """Print a table, and put it into the page if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="a model, about")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = [
        ["model", "batch", "jax", "jax_privacy", "torch", "dp", "jax_privacy over dp"],
        ["---", *["--:"] * 6],
    ]
    for name in _NAMES:
        rows.append(row_of(name, options.seconds))
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)  # noqa: T201
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    print(table)  # noqa: T201
    if options.write:
        first, last = _MARKS
        before, _, rest = PAGE.read_text().partition(first)
        PAGE.write_text(
            f"{before}{first}\n\n{table}\n\n{last}{rest.partition(last)[2]}"
        )


def row_of(name: str, limit: float) -> list[str]:
    """Return the row of a model."""
    subjects = [made(name) for _ in range(3)]
    B = len(subjects[0].y)
    private = {
        f"jax_privacy, {size or B} at once": jax_step(subjects[0], size=size)
        for size in _AT_ONCE
        if is_possible(subjects[0], size)
    }
    steps: dict[str, _Step] = {
        "jax": jax_step(subjects[0], is_private=False),
        "torch": WAYS["non-private"](subjects[1]),
        "dp": WAYS["DPOptimizer"](subjects[2]),
        **private,
    }
    for step in steps.values():
        for _ in range(4):  # Compiled, and in ours verified.
            step()
    # What is slower by far is not waited for again and again.
    once = {way: seconds(step) for way, step in steps.items()}
    fastest = min(private, key=once.__getitem__)
    times = in_turn(
        {way: step for way, step in steps.items() if way in {*steps} - {*private}}
        | {fastest: private[fastest]},
        limit,
    )
    figures = [times[way] * 1e3 for way in ("jax", fastest, "torch", "dp")]
    cells = [f"{figure:.1f} ms" for figure in figures]
    cells[1] += f" ({fastest.partition(', ')[2]})"
    return [name, str(B), *cells, f"{figures[1] / figures[3]:.1f}"]


def made(name: str) -> Subject:
    """Make a model and its batch."""
    torch.manual_seed(0)
    return IN_HAND[name]()


def is_possible(subject: Subject, size: int | None) -> bool:
    """Whether the gradients of so many examples at once fit in memory."""
    B, num = len(subject.y), sum(p.numel() for p in subject.model.parameters())
    return (size is None or B % size == 0) and (size or B) * num * 4 <= _MOST_BYTES


def seconds(step: _Step) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - start


def in_turn(steps: dict[str, _Step], limit: float) -> dict[str, float]:
    """Return the median time of each step, taken in turn for about *limit* seconds."""
    gc.collect()
    times: dict[str, list[float]] = {way: [] for way in steps}
    end = time.perf_counter() + limit
    while time.perf_counter() < end or len(times["dp"]) < 5:
        for way, step in steps.items():
            times[way].append(seconds(step))
    return {way: statistics.median(spent) for way, spent in times.items()}


def jax_step(
    subject: Subject, *, size: int | None = None, is_private: bool = True
) -> _Step:
    """Return a step by JAX, of which *size* gradients are in memory at once."""
    layers = [*subject.model]
    params: _Params = [
        {key: jnp.asarray(p.detach().numpy()) for key, p in layer.named_parameters()}
        for layer in layers
    ]
    x, y = jnp.asarray(subject.x.numpy()), jnp.asarray(subject.y.numpy())

    def losses(params: _Params, x: Any, y: Any) -> Any:
        logits = jax.nn.log_softmax(forward(layers, params, x))
        return -jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]

    theirs = subject.losses(subject.model(subject.x), subject.y).detach().numpy()
    np.testing.assert_allclose(losses(params, x, y), theirs, rtol=1e-3, atol=1e-4)

    def mean(params: _Params, x: Any, y: Any) -> Any:
        return losses(params, x, y).mean()

    gradient = (
        clipped_grad(
            mean,
            l2_clip_norm=_BOUND,
            normalize_by=float(len(y)),
            batch_argnums=(1, 2),
            microbatch_size=size,
        )
        if is_private
        else jax.grad(mean)
    )
    privatizer = gaussian_privatizer(stddev=_BOUND / len(y), prng_key=0)

    @jax.jit
    def update(params: _Params, state: Any) -> tuple[_Params, Any]:
        grads = gradient(params, x, y)
        if is_private:
            grads, state = privatizer.update(grads, state)
        return jax.tree.map(lambda p, g: p - _RATE * g, params, grads), state

    now = [params, privatizer.init(params)]

    def step() -> object:
        now[:] = update(*now)
        return now[0]

    return step


def forward(layers: list[nn.Module], params: _Params, x: Any) -> Any:
    """Return what a chain of torch's layers makes of a batch, by JAX."""
    for layer, param in zip(layers, params, strict=True):
        match layer:
            case nn.Linear():
                x = x @ param["weight"].T + param["bias"]
            case nn.Conv2d():
                pads = [(p, p) for p in layer.padding]
                x = lax.conv_general_dilated(x, param["weight"], layer.stride, pads)
                x += param["bias"][:, None, None]
            case nn.MaxPool2d():
                window = (1, 1, layer.kernel_size, layer.kernel_size)
                strides = (1, 1, layer.stride, layer.stride)
                x = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "VALID")
            case nn.ReLU():
                x = jax.nn.relu(x)
            case nn.Flatten():
                x = x.reshape(len(x), -1)
            case _:
                raise TypeError(f"no layer of JAX stands for {layer!r}")
    return x


if __name__ == "__main__":
    main()
