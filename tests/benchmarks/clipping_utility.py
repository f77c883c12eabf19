"""Train with each way of clipping at one epsilon: ``python tests/benchmarks/clipping_utility.py``.

All get the same data, first weights, plan and seeds. The learning rate of each is the
best of a few, on seeds that are not counted. ``--write`` puts the table into
docs/how-to/adapt-clipping.md.

Needs ``pip install scikit-learn scipy``.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.data import TensorDataset
from utility import Task, breast_cancer, digits, linear, mlp

import dp


PAGE = Path(__file__).parents[2] / "docs/how-to/adapt-clipping.md"
START, END = "<!-- clipping -->\n", "<!-- end of clipping -->\n"
TASKS = {
    "digits, linear": Task(digits, linear, 120, 0.0, probability=0.1),
    "digits, MLP": Task(digits, mlp, 120, 0.0, probability=0.1),
    "breast_cancer, linear": Task(
        breast_cancer, linear, 120, 0.0, delta=1e-4, probability=0.25
    ),
}
CHOSEN_ON = range(100, 104)
SGD, ADAM = torch.optim.SGD, torch.optim.Adam
# The best rate of a small clipping norm is large.
RATES: dict[Any, tuple[float, ...]] = {
    SGD: (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    ADAM: (0.001, 0.003, 0.01, 0.03, 0.1),
}


@dataclass(frozen=True)
class Way:
    """An optimizer, and how its gradients are clipped (flat, if not said) or corrected."""

    name: str
    inner: Callable[..., torch.optim.Optimizer]
    max_grad_norm: float
    options: dict[str, Any] = field(default_factory=dict)


def flat(inner: type[torch.optim.Optimizer], norm: float) -> Way:
    """Clip at a norm that stays."""
    return Way(f"{inner.__name__}, flat, C = {norm:g}", inner, norm)


def quantile(norm: float) -> Way:
    """Let the norm follow the median."""
    clipping = dp.QuantileClipping(max_grad_norm=norm, quantile=0.5)
    name = f"SGD, `QuantileClipping` from C = {norm:g}"
    return Way(name, SGD, norm, {"clipping": clipping})


def corrected(floor: float) -> Way:
    """Take the noise out of Adam's second moments."""
    correction = dp.AdamBiasCorrection(floor=floor)
    name = f"Adam, flat, C = 1, `AdamBiasCorrection(floor={floor:g})`"
    return Way(name, ADAM, 1.0, {"bias_correction": correction})


def scaled(norm: float) -> Way:
    """Clip on Adam's scale."""
    clipping = dp.ScaledClipping(max_grad_norm=norm, stability=0.01)
    name = f"Adam, `ScaledClipping`, C = {norm:g}, stability 0.01"
    return Way(name, ADAM, norm, {"clipping": clipping})


NORMS = (0.1, 1.0, 10.0)
WAYS = (
    *(flat(SGD, norm) for norm in NORMS),
    *(quantile(norm) for norm in NORMS),
    flat(ADAM, 1.0),
    corrected(1e-5),
    corrected(1e-4),
    scaled(30.0),
    scaled(100.0),
)


def main() -> None:
    """Train every task in every way with every seed; print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = ["| | " + " | ".join(TASKS) + " |", "| --- |" + " --: |" * len(TASKS)]
    for way in WAYS:
        cells = (cell(way, task, options) for task in TASKS.values())
        rows.append(f"| {way.name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)  # noqa: T201
    if options.write:
        before, rest = PAGE.read_text("utf-8").split(START)
        after = rest.split(END)[1]
        table = "\n".join(rows)
        PAGE.write_text(f"{before}{START}\n{table}\n\n{END}{after}", "utf-8")


def cell(way: Way, task: Task, options: argparse.Namespace) -> str:
    """Return mean and standard deviation of accuracy in per cent, and the rate."""
    train = partial(accuracies, way, task, options.epsilon)
    rate = max(RATES[way.inner], key=lambda lr: statistics.mean(train(lr, CHOSEN_ON)))
    found = [100 * a for a in train(rate, range(options.seeds))]
    return f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f} ({rate:g})"


def accuracies(
    way: Way, task: Task, epsilon: float, lr: float, seeds: Iterable[int]
) -> Iterator[float]:
    """Yield the accuracy on held-out data, of one run for each seed."""
    x, y = task.load()
    num_train = len(x) * 4 // 5
    plan = dp.plan_for(
        target_epsilon=epsilon,
        target_delta=task.delta,
        steps=task.steps,
        sampling_probability=task.probability,
        expected_batch_size=task.probability * num_train,
        max_grad_norm=way.max_grad_norm,
    )
    for seed in seeds:
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        train, test = order[:num_train], order[num_train:]
        model = task.model(x.shape[1], int(y.max()) + 1)
        loader = plan.loader(TensorDataset(x[train], y[train]))
        inner = way.inner(model.parameters(), lr=lr)
        optimizer = dp.DPOptimizer(inner, plan=plan, loader=loader, **way.options)

        def loss_fn(batch: Any, model: torch.nn.Module = model) -> torch.Tensor:
            inputs, classes = batch
            return F.cross_entropy(model(inputs), classes, reduction="none")

        for batch in loader:
            optimizer.backward(loss_fn, batch)
            optimizer.step()
        assert optimizer.guarantee().epsilon <= epsilon
        with torch.no_grad():
            right = model(x[test]).argmax(1) == y[test]
        yield right.float().mean().item()


if __name__ == "__main__":
    main()
