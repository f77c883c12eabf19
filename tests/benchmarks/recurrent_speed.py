"""Measure LSTMs: ``python tests/benchmarks/recurrent_speed.py``.

Every way takes its steps in turn with the ordinary step, without noise; a figure is
the median of the ratios. Opacus cannot serve ``nn.LSTM`` and has a module of its own,
which is held against the same ordinary step.

Shapes: ``B`` examples, ``T`` words.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from unittest import mock

import torch
from opacus import GradSampleModule
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.per_sample import Engine
from dp.per_sample._rules import table


_WIDTH = 128


class Tagger(nn.Module):
    """Words to tags by an LSTM."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, _WIDTH)
        self.recurrent = kind(_WIDTH, _WIDTH, batch_first=True)
        self.tags = nn.Linear(_WIDTH, 20)

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs.mT, y, reduction="none").mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tags(self.recurrent(self.words(x))[0])


def ways(x: Tensor, y: Tensor) -> dict[str, Callable[[], None]]:
    """Return steps without noise, by name."""
    model, peer = Tagger(nn.LSTM), GradSampleModule(Tagger(DPLSTM))
    parameters, engine, slow = list(model.parameters()), Engine(), Engine()

    def ordinary() -> None:
        model.zero_grad()
        model.losses(model(x), y).mean().backward()

    def private(engine: Engine = engine) -> None:
        gradients = engine.gradients(model.losses(model(x), y), parameters)
        group_of = [0] * len(parameters)
        norms_GB = gradients.squared_norms(group_of).sqrt()
        sums = [torch.empty_like(p) for p in parameters]
        factors_GB = (1 / norms_GB).clamp(max=1)
        gradients.add_weighted_sum(factors_GB, group_of, sums, beta=0)

    def fallback() -> None:
        rules = {k: v for k, v in table.RULES.items() if not k.startswith("Mkldnn")}
        with mock.patch.object(table, "RULES", rules):
            private(slow)

    def opacus() -> None:
        peer.zero_grad()
        peer._module.losses(peer(x), y).mean().backward()
        grads = [p.grad_sample for p in peer.parameters()]
        norms_B = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
        factors_B = (1 / norms_B).clamp(max=1)
        [torch.einsum("b...,b->...", g, factors_B) for g in grads]
        for p in peer.parameters():
            p.grad_sample = None

    return {
        "ordinary": ordinary,
        "dp": private,
        "Opacus DPLSTM, hooks": opacus,
        "dp without the rule": fallback,
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| batch, words | ordinary step | dp | Opacus DPLSTM, hooks | dp, no rule |")  # noqa: T201
    print("| --- | --- | --- | --- | --- |")  # noqa: T201
    for size, length in ((32, 32), (64, 64)):
        x, y = torch.randint(0, 1000, (2, size, length)) % 20
        steps = ways(x, y)
        spent: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds + 1):
            for name, step in steps.items():
                start = time.process_time()
                step()
                spent[name].append(time.process_time() - start)
        base = spent.pop("ordinary")[1:]
        ratios = [
            statistics.median(a / b for a, b in zip(some[1:], base, strict=True))
            for some in spent.values()
        ]
        found = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        base_ms = statistics.median(base) * 1e3
        row = f"| {size}, {length} | {base_ms:.0f} ms | {found} |"
        print(row, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
