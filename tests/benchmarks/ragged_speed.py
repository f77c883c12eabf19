"""Measure units along no axis: ``python tests/benchmarks/ragged_speed.py``.

Each model takes private steps without noise in turn with its ordinary steps; a figure
is the median of the ratios of processor time. No other library serves these batches, so
packed sequences are also compared with the same sequences padded, which is what an axis
of examples needs.

Shapes: ``U`` units, ``R`` rows, ``D`` features.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.clipping import FlatClipping
from dp.per_sample import Engine


_UNITS, _CLASSES = 64, 5
_Losses = Callable[[], tuple[Tensor, Tensor]]  # The losses, and the unit of each.


class Blocks(nn.Module):
    """Residual blocks over the rows of unpadded sequences."""

    def __init__(self, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(500, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, _CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        rows: Tensor = self.words(words)
        for block in self.blocks:
            rows = rows + block(rows)
        return rows


def _summed(rows_RD: Tensor, unit_R: Tensor) -> Tensor:
    return rows_RD.new_zeros(_UNITS, rows_RD.shape[1]).index_add(0, unit_R, rows_RD)


def _cross_entropy(logits: Tensor) -> Tensor:
    labels = torch.zeros(len(logits), dtype=torch.long)
    return F.cross_entropy(logits, labels, reduction="none")


def _packed(lengths_U: Tensor) -> tuple[nn.Module, _Losses]:
    model, unit_R = Blocks(), torch.arange(_UNITS).repeat_interleave(lengths_U)
    words_R = torch.randint(500, unit_R.shape)

    def losses() -> tuple[Tensor, Tensor]:
        logits = model.head(_summed(model(words_R), unit_R) / lengths_U[:, None])
        return _cross_entropy(logits), torch.arange(_UNITS)

    return model, losses


def _padded(lengths_U: Tensor) -> tuple[nn.Module, _Losses]:
    model, longest = Blocks(), int(lengths_U.max())
    words_UT = torch.randint(500, (_UNITS, longest))
    mask_UT1 = (torch.arange(longest) < lengths_U[:, None])[..., None]

    def losses() -> tuple[Tensor, Tensor]:
        mean_UD = (model(words_UT) * mask_UT1).sum(1) / lengths_U[:, None]
        return _cross_entropy(model.head(mean_UD)), torch.arange(_UNITS)

    return model, losses


def _users(lengths_U: Tensor) -> tuple[nn.Module, _Losses]:
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256))
    model.extend([nn.ReLU(), nn.Linear(256, _CLASSES)])
    unit_R = torch.arange(_UNITS).repeat_interleave((lengths_U + 1) // 2)
    unit_R = unit_R[torch.randperm(len(unit_R))]
    x = torch.randn(len(unit_R), 784)
    return model, lambda: (_cross_entropy(model(x)), unit_R)


def _graphs(lengths_U: Tensor) -> tuple[nn.Module, _Losses]:
    model = nn.ModuleList(
        [nn.Linear(32, 128), nn.Linear(128, 128), nn.Linear(128, _CLASSES)]
    )
    unit_R = torch.arange(_UNITS).repeat_interleave(lengths_U)
    source = torch.arange(len(unit_R)).repeat(4)
    within = torch.randint(1 << 30, source.shape) % lengths_U[unit_R[source]]
    target = (lengths_U.cumsum(0) - lengths_U)[unit_R[source]] + within
    x = torch.randn(len(unit_R), 32)

    def losses() -> tuple[Tensor, Tensor]:
        rows = x
        for layer in model[:2]:
            rows = layer(rows)
            messages = torch.zeros_like(rows).index_add(0, target, rows[source])
            rows = (rows + messages).relu()
        return _cross_entropy(model[2](_summed(rows, unit_R))), torch.arange(_UNITS)

    return model, losses


def _experts(_lengths_U: Tensor) -> tuple[nn.Module, _Losses]:
    gate, head = nn.Linear(64, 4), nn.Linear(64, _CLASSES)
    experts = [
        nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        for _ in range(4)
    ]
    x = torch.randn(_UNITS, 16, 64)

    def losses() -> tuple[Tensor, Tensor]:
        rows = x.flatten(0, 1)
        weight_R, chosen_R = gate(rows).softmax(1).max(1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(experts):
            mine = (chosen_R == number).nonzero()[:, 0]
            out = out.index_add(0, mine, expert(rows[mine]) * weight_R[mine, None])
        logits = head((rows + out).view_as(x).mean(1))
        return _cross_entropy(logits), torch.arange(_UNITS)

    return nn.ModuleList([gate, head, *experts]), losses


MODELS = {
    "packed sequences": _packed,
    "the same, padded": _padded,
    "users of several losses": _users,
    "graphs": _graphs,
    "routed experts": _experts,
}


def _times(
    model: nn.Module, losses: _Losses, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the processor times of ordinary and of private steps."""
    parameters, engine = list(model.parameters()), Engine()
    clipping, group_of = FlatClipping(max_grad_norm=1.0), [0] * len(parameters)

    def ordinary() -> None:
        torch.autograd.grad(losses()[0].sum(), parameters)

    def private() -> None:
        losses_N, units = losses()
        gradients = engine.gradients(losses_N, parameters, units=units)
        factors = clipping.factors(gradients.squared_norms(group_of).sqrt())
        sums = [torch.empty_like(p) for p in parameters]
        gradients.add_weighted_sum(factors, group_of, sums, beta=0)

    spent: tuple[list[float], list[float]] = [], []
    for _ in range(rounds + 4):  # The first four see each graph for the first time.
        for times, step in zip(spent, (ordinary, private), strict=True):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
    return spent[0][4:], spent[1][4:]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("error")
    lengths_U = torch.randint(1, 49, (_UNITS,))
    print("| 64 units | ordinary step | private step | ratio |")  # noqa: T201
    print("| --- | --- | --- | --- |")  # noqa: T201
    for name, make in MODELS.items():
        ordinary, private = _times(*make(lengths_U), options.rounds)
        ratio = statistics.median(b / a for a, b in zip(ordinary, private, strict=True))
        one, other = (1e3 * statistics.median(times) for times in (ordinary, private))
        print(f"| {name} | {one:.1f} ms | {other:.1f} ms | {ratio:.2f} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
