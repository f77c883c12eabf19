"""Train on clicks whose items have a long tail: ``python tests/benchmarks/sparse_utility.py``.

Plain DP-SGD and ``SparseClipping`` get the same data, model, first weights, expected batch
size, steps, epsilon and seeds. The learning rate of each is the best of a few, on seeds
that are not counted. Everything is synthetic: an item's popularity falls with its rank, as
in Zipf's law, and each item has an effect on the click of its own. ``--write`` puts the
table into docs/reference/utility.md.

Needs ``pip install scipy``.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.data import TensorDataset

import dp


PAGE = Path(__file__).parents[2] / "docs/reference/utility.md"
START, END = "<!-- sparse -->\n", "<!-- end of sparse -->\n"
NUM_TRAIN, NUM_TEST, NUM_DIMS, NUM_FEATURES = 20_000, 10_000, 8, 3
STEPS, PROBABILITY = 200, 0.025
RATES = (2.0, 4.0, 8.0, 16.0)
CHOSEN_ON = range(100, 102)
RULES: Final[dict[str, dict[str, float] | None]] = {
    "plain": None,
    "sparse": {},
    "sparse, 1/5 for counts": {"counts_share": 0.2},
}


@dataclass(frozen=True)
class Setting:
    """A number of items, how fast their popularity falls, and an epsilon."""

    num_items: int
    exponent: float
    epsilon: float

    def plan(self) -> dp.PrivacyPlan:
        """Return the plan, which is the same for all rules."""
        return dp.plan_for(
            target_epsilon=self.epsilon,
            target_delta=1e-5,
            steps=STEPS,
            sampling_probability=PROBABILITY,
            expected_batch_size=PROBABILITY * NUM_TRAIN,
            max_grad_norm=1.0,
        )


SETTINGS = (
    Setting(200, 1.0, 1.0),
    Setting(20_000, 1.0, 1.0),
    Setting(20_000, 1.0, 8.0),
    Setting(20_000, 0.0, 8.0),
)


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        auc: The area under the ROC curve, on held-out clicks.
        share_kept: Of the rows of the table, the mean over steps.
        seconds: Of CPU time in backward and step.
    """

    auc: float
    share_kept: float
    seconds: float


class Clicks(nn.Module):
    """Logits of clicks, by an embedding of the item and a few dense features."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, NUM_DIMS)
        self.last = nn.Linear(NUM_DIMS + NUM_FEATURES, 1)
        nn.init.normal_(self.items.weight, std=0.01)

    def forward(self, item_B: Tensor, x_BF: Tensor) -> Tensor:
        """Return the logit of each click."""
        logits_B: Tensor = self.last(torch.cat([self.items(item_B), x_BF], 1))[:, 0]
        return logits_B


def main() -> None:
    """Train each setting by each rule and seed; print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [
        "| items | popularity | epsilon | rule | AUC | against plain | p | rows kept | CPU time |",
        "| --: | --- | --: | --- | --: | --: | --: | --: | --: |",
    ]
    for setting in SETTINGS:
        for row in rows_of(setting, options.seeds):
            rows.append(row)
            print(row, flush=True)  # noqa: T201
    if options.write:
        before, rest = PAGE.read_text("utf-8").split(START)
        after = rest.split(END)[1]
        table = "\n".join(rows)
        PAGE.write_text(f"{before}{START}\n{table}\n\n{END}{after}", "utf-8")


def rows_of(setting: Setting, num_seeds: int) -> Iterator[str]:
    """Yield a line for each rule; p is of a paired t-test against plain DP-SGD."""
    plain: list[Outcome] = []
    for name in RULES:
        rate = max(RATES, key=lambda lr, name=name: _mean_auc(setting, name, lr))
        found = [run(setting, name, rate, seed) for seed in range(num_seeds)]
        plain = plain or found
        differences = [a.auc - b.auc for a, b in zip(found, plain, strict=True)]
        is_plain = found is plain
        p = "" if is_plain else f"{stats.ttest_1samp(differences, 0).pvalue:.1g}"
        aucs = [one.auc for one in found]
        seconds = statistics.median(one.seconds for one in found)
        of_plain = statistics.median(one.seconds for one in plain)
        yield (
            f"| {setting.num_items} | {'Zipf' if setting.exponent else 'uniform'}"
            f" | {setting.epsilon:g} | {name}, rate {rate:g}"
            f" | {statistics.mean(aucs):.3f} ± {statistics.stdev(aucs):.3f}"
            f" | {'' if is_plain else f'{statistics.mean(differences):+.3f}'} | {p}"
            f" | {100 * statistics.mean(one.share_kept for one in found):.3g} %"
            f" | {seconds / of_plain:.2f} |"
        )


def _mean_auc(setting: Setting, name: str, rate: float) -> float:
    return statistics.mean(run(setting, name, rate, seed).auc for seed in CHOSEN_ON)


def run(setting: Setting, name: str, rate: float, seed: int) -> Outcome:
    """Train by one rule on clicks of a seed."""
    torch.manual_seed(seed)
    item_N, x_NF, clicked_N = clicks(setting)
    model = Clicks(setting.num_items)
    plan = setting.plan()
    train = slice(NUM_TRAIN)
    loader = plan.loader(TensorDataset(item_N[train], x_NF[train], clicked_N[train]))
    numbers = RULES[name]
    tables = dp.SparseClipping.tables_of(model)
    clipping = (
        dp.FlatClipping(max_grad_norm=1.0)
        if numbers is None
        else dp.SparseClipping(max_grad_norm=1.0, tables=tables, **numbers)
    )
    sgd = torch.optim.SGD(model.parameters(), lr=rate)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader, clipping=clipping)
    kept, seconds = [], 0.0
    for item_B, x_BF, clicked_B in loader:
        began = time.process_time()
        optimizer.backward(
            F.binary_cross_entropy_with_logits(
                model(item_B, x_BF), clicked_B, reduction="none"
            )
        )
        optimizer.step()
        seconds += time.process_time() - began
        assert model.items.weight.grad is not None
        kept.append(model.items.weight.grad.any(1).double().mean().item())
    assert optimizer.spent().epsilon <= setting.epsilon
    with torch.no_grad():
        logits = model(item_N[NUM_TRAIN:], x_NF[NUM_TRAIN:])
    return Outcome(_auc(logits, clicked_N[NUM_TRAIN:]), statistics.mean(kept), seconds)


def clicks(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Return items, features and clicks."""
    num = NUM_TRAIN + NUM_TEST
    ranks = torch.arange(1, setting.num_items + 1, dtype=torch.float64)
    item_N = torch.multinomial(ranks**-setting.exponent, num, replacement=True)
    x_NF = torch.randn(num, NUM_FEATURES)
    effects = torch.randn(setting.num_items)
    logits_N = 1.5 * effects[item_N] + x_NF @ torch.tensor([0.5, -0.5, 0.25])
    return item_N, x_NF, torch.bernoulli(logits_N.sigmoid())


def _auc(scores: Tensor, clicked: Tensor) -> float:
    """Return the chance that a click has a higher score than none."""
    right = stats.mannwhitneyu(scores[clicked == 1], scores[clicked == 0]).statistic
    pairs = float(clicked.sum() * (1 - clicked).sum())
    return float(right / pairs)


if __name__ == "__main__":
    main()
