"""Train with each mechanism at one epsilon: ``python tests/benchmarks/correlated_utility.py``.

Poisson sampling (DP-SGD), random allocation and correlated noise get the same data, model,
first weights, expected batch size, steps, epsilon and seeds. The learning rate of each is
the best of a few, on seeds that are not counted. ``--write`` puts the table into
docs/reference/utility.md.

Needs ``pip install scikit-learn scipy``.
"""

import argparse
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import stats
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.data import TensorDataset
from utility import Task, breast_cancer, digits, linear, mlp

import dp


PAGE = Path(__file__).parents[2] / "docs/reference/utility.md"
START, END = "<!-- mechanisms -->\n", "<!-- end of mechanisms -->\n"
MECHANISMS = ("poisson", "allocation", "correlated")
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
CHOSEN_ON = range(100, 104)
TASKS = {
    "digits, linear": Task(digits, linear, 144, 0.0, probability=1 / 48),
    "digits, MLP": Task(digits, mlp, 144, 0.0, probability=1 / 48),
    "breast_cancer, linear": Task(
        breast_cancer, linear, 160, 0.0, delta=1e-4, probability=1 / 16
    ),
}


@dataclass(frozen=True)
class Setting:
    """One task at one epsilon."""

    name: str
    epsilon: float

    def plan(self, mechanism: str, num_train: int) -> dp.PrivacyPlan:
        """Return the plan of a mechanism."""
        task = TASKS[self.name]
        return dp.plan_for(
            target_epsilon=self.epsilon,
            target_delta=task.delta,
            steps=task.steps,
            sampling_probability=task.probability,
            expected_batch_size=task.probability * num_train,
            max_grad_norm=1.0,
            mechanism=mechanism,
        )


def main() -> None:
    """Train every task with every mechanism and seed; print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[3.0, 8.0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [
        "| task | epsilon | Poisson | allocation | correlated | bands | difference | p |",
        "| --- " * 8 + "|",
    ]
    for name in options.tasks:
        for epsilon in options.epsilons:
            rows.append(row(Setting(name, epsilon), options.seeds))
            print(rows[-1], flush=True)  # noqa: T201
    if options.write:
        before, rest = PAGE.read_text("utf-8").split(START)
        after = rest.split(END)[1]
        table = "\n".join(rows)
        PAGE.write_text(f"{before}{START}\n{table}\n\n{END}{after}", "utf-8")


def row(setting: Setting, num_seeds: int) -> str:
    """Return the line of one setting; p is of a paired t-test against DP-SGD."""
    num_train = len(TASKS[setting.name].load()[0]) * 4 // 5
    plans = {m: setting.plan(m, num_train) for m in MECHANISMS}
    found = {}
    for mechanism, plan in plans.items():
        rate = max(
            RATES,
            key=lambda lr, plan=plan: statistics.mean(
                accuracies(setting, plan, lr, CHOSEN_ON)
            ),
        )
        found[mechanism] = list(accuracies(setting, plan, rate, range(num_seeds)))
    p = stats.ttest_rel(found["correlated"], found["poisson"]).pvalue
    difference = statistics.mean(found["correlated"]) - statistics.mean(
        found["poisson"]
    )
    correlation = plans["correlated"].correlation
    figures = [
        *(
            f"{statistics.mean(a):.3f} ± {statistics.stdev(a):.3f}"
            for a in found.values()
        ),
        str(1 if correlation is None else correlation.bands),
        f"{difference:+.3f}",
        f"{p:.1g}",
    ]
    return f"| {setting.name} | {setting.epsilon:g} | {' | '.join(figures)} |"


def accuracies(
    setting: Setting, plan: dp.PrivacyPlan, lr: float, seeds: range
) -> Iterator[float]:
    """Yield the accuracy on held-out data, of one run for each seed."""
    task = TASKS[setting.name]
    x, y = task.load()
    num_train = len(x) * 4 // 5
    for seed in seeds:
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        train, test = order[:num_train], order[num_train:]
        model = task.model(x.shape[1], int(y.max()) + 1)
        loader = plan.loader(TensorDataset(x[train], y[train]))
        sgd = torch.optim.SGD(model.parameters(), lr=lr)
        optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)
        for inputs, classes in loader:
            optimizer.backward(
                F.cross_entropy(model(inputs), classes, reduction="none")
            )
            optimizer.step()
        assert optimizer.spent().epsilon <= setting.epsilon
        with torch.no_grad():
            right = model(x[test]).argmax(1) == y[test]
        yield right.float().mean().item()


if __name__ == "__main__":
    main()
