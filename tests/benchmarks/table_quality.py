"""Train on tables by the command at its defaults: what scores come of which epsilon.

``python tests/benchmarks/table_quality.py --write`` puts the table into
docs/reference/tables.md. Each table is written as a CSV, its rows in five orders, so
that the command holds out other rows every time; options are left at their defaults
but for ``--target`` and ``--epsilon``. ``--outcomes FILE`` keeps what was trained, so
that a run that was broken off goes on.

Needs ``pip install mlxtend pandas scikit-learn``.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import root_mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from dp.cli import _training, main as command_line
from dp.cli._input import shuffled


PAGE = Path(__file__).parents[2] / "docs/reference/tables.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"
TARGET = "target"


@dataclass
class Table:
    """A table, whether its target is a number, and whether constants were tuned on it."""

    load: Callable[[], pd.DataFrame]
    is_regression: bool = False
    was_tuned_on: bool = True


def _frame(features: np.ndarray, target: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(features).add_prefix("x")
    return frame.assign(**{TARGET: target})


def adult_like(num_rows: int = 30_000) -> pd.DataFrame:
    """Make records like those of a census: heavy tails, offsets, rare levels, gaps."""
    rng = np.random.default_rng(7)
    age = np.clip(rng.gamma(8, 5, num_rows) + 17, 17, 90).round()
    by_rank = 1 / (1 + np.abs(np.arange(16) - 9.0))
    education = rng.choice(16, num_rows, p=by_rank / by_rank.sum())
    hours = np.clip(rng.normal(40, 12, num_rows), 1, 99).round()
    gains = rng.lognormal(8.5, 1, num_rows).round()
    gain = np.where(rng.random(num_rows) < 0.08, gains, 0)
    weight = rng.lognormal(12, 0.5, num_rows).round()
    year = rng.integers(1995, 2024, num_rows).astype(float)
    work = rng.choice(8, num_rows, p=[0.7, 0.08, 0.06, 0.06, 0.04, 0.03, 0.02, 0.01])
    marital = rng.choice(7, num_rows, p=[0.46, 0.33, 0.13, 0.04, 0.02, 0.015, 0.005])
    job, relation = rng.choice(14, num_rows), rng.choice(6, num_rows)
    sex = rng.choice(2, num_rows, p=[0.33, 0.67])
    origin = rng.choice(5, num_rows, p=[0.85, 0.1, 0.03, 0.01, 0.01])
    by_rank = 1 / (1 + np.arange(42.0)) ** 2.2
    country = rng.choice(42, num_rows, p=by_rank / by_rank.sum())
    of_job = np.random.default_rng(3).normal(0, 0.8, 14)
    logits = (
        -5.6
        + 0.06 * (age - 38)
        - 0.0022 * (age - 38) ** 2
        + 0.34 * education
        + 0.035 * (hours - 40)
        + 0.0004 * np.minimum(gain, 12_000)
        + 2.0 * (marital == 0)
        + of_job[job]
        + 0.4 * sex
        + 0.03 * (year - 2010)
        - 0.4 * (work == 3)
    )
    is_rich = rng.random(num_rows) < 1 / (1 + np.exp(-logits))
    hours[rng.random(num_rows) < 0.06] = np.nan
    age[rng.random(num_rows) < 0.1] = np.nan
    texts = {
        "work": work,
        "marital": marital,
        "job": job,
        "relation": relation,
        "sex": sex,
        "origin": origin,
        "country": country,
    }
    frame = pd.DataFrame(
        {
            "age": age,
            "education": education,
            "hours": hours,
            "gain": gain,
            "weight": weight,
            "year": year,
            **{name: [f"{name} {i}" for i in levels] for name, levels in texts.items()},
            TARGET: np.where(is_rich, ">50K", "<=50K"),
        }
    )
    frame.loc[rng.random(num_rows) < 0.05, "job"] = None
    return frame


def large() -> pd.DataFrame:
    """300 000 rows of 30 numbers, of scales from 1e-3 to 1e5 and with offsets."""
    x, y = datasets.make_classification(
        300_000,
        30,
        n_informative=12,
        n_redundant=6,
        n_clusters_per_class=3,
        class_sep=1.0,
        flip_y=0.02,
        random_state=5,
    )
    rng = np.random.default_rng(5)
    scale = 10 ** rng.uniform(-3, 5, 30)
    offset = np.where(rng.random(30) < 0.4, scale * rng.uniform(-30, 30, 30), 0)
    shifted = x * scale + offset
    shifted[:, ::7] = np.exp(np.clip(x[:, ::7], -20, 20))
    return _frame(shifted, y)


def _of_scikit_learn(name: str, **options: bool) -> Callable[[], pd.DataFrame]:
    def load() -> pd.DataFrame:
        bunch = getattr(datasets, f"load_{name}")(**options)
        return _frame(bunch.data, bunch.target)

    return load


def _of_mlxtend(name: str) -> Callable[[], pd.DataFrame]:
    def load() -> pd.DataFrame:
        from mlxtend import data  # noqa: PLC0415

        # One column of miles per gallon holds nothing.
        return _frame(*getattr(data, f"{name}_data")()).dropna(axis=1, how="all")

    return load


TABLES = {
    "breast cancer 569x30": Table(_of_scikit_learn("breast_cancer")),
    "wine 178x13, 3 classes": Table(_of_scikit_learn("wine")),
    "digits 1797x64, 10 classes": Table(_of_scikit_learn("digits")),
    "diabetes 442x10, number": Table(
        _of_scikit_learn("diabetes", scaled=False), is_regression=True
    ),
    "adult-like 30 000x13": Table(adult_like),
    "large 300 000x30": Table(large),
    "iris 150x4, 3 classes": Table(_of_scikit_learn("iris"), was_tuned_on=False),
    "Boston 506x13, number": Table(
        _of_mlxtend("boston_housing"), is_regression=True, was_tuned_on=False
    ),
    "miles per gallon 392x7, number": Table(
        _of_mlxtend("autompg"), is_regression=True, was_tuned_on=False
    ),
}


@dataclass
class Outcome:
    """What one training came to."""

    score: float
    baseline: float
    epsilon: float
    seconds: float
    training_seconds: float


def train(frame: pd.DataFrame, epsilon: float, *options: str) -> Outcome:
    """Train by the command, as a user does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame.to_csv(folder / "table.csv", index=False)
        arguments = ["train", "--data", str(folder / "table.csv"), "--target", TARGET]
        arguments += ["--epsilon", str(epsilon), "--report", str(folder / "report")]
        in_training: list[float] = []
        start = time.process_time()
        with (
            mock.patch.object(_training, "_run", _timed(_training._run, in_training)),
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            try:
                command_line([*arguments, *options])
            except SystemExit as end:
                if end.code:
                    raise RuntimeError(printed.getvalue()) from end
        seconds = time.process_time() - start
        scores = json.loads((folder / "report/scores.json").read_text("utf-8"))
        certificate = json.loads(
            (folder / "report/certificate.json").read_text("utf-8")
        )
    private = scores["private"]
    return Outcome(
        score=private["score"],
        baseline=private["baseline"],
        epsilon=certificate["epsilon"],
        seconds=seconds,
        training_seconds=sum(in_training),
    )


def _timed(run: Callable[..., object], seconds: list[float]) -> Callable[..., object]:
    """Return *run*, which appends its processor time to *seconds*."""

    def timed(*arguments: object, **options: object) -> object:
        start = time.process_time()
        result = run(*arguments, **options)
        seconds.append(time.process_time() - start)
        return result

    return timed


def references(frame: pd.DataFrame, *, is_regression: bool) -> list[float]:
    """Return the scores of a linear model and of boosting, on the same split."""
    order = shuffled(len(frame)).numpy()
    cut = round(len(frame) * 0.2)
    test, rest = frame.iloc[order[:cut]], frame.iloc[order[cut:]]
    texts = make_column_selector(dtype_exclude="number")
    numbers = make_column_selector(dtype_include="number")
    scaled = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore"), texts),
    )
    coded = make_column_transformer(
        ("passthrough", numbers),
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), texts),
    )
    models = (
        (Ridge(), HistGradientBoostingRegressor())
        if is_regression
        else (LogisticRegression(max_iter=2000), HistGradientBoostingClassifier())
    )
    scores = []
    for features, model in zip((scaled, coded), models, strict=True):
        pipeline = make_pipeline(features, model)
        pipeline.fit(rest.drop(columns=TARGET), rest[TARGET])
        predicted = pipeline.predict(test.drop(columns=TARGET))
        scores.append(
            float(root_mean_squared_error(test[TARGET], predicted))
            if is_regression
            else float(np.mean(predicted == test[TARGET]))
        )
    return scores


def main() -> None:
    """Train on every table at every epsilon; print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="*", default=list(TABLES))
    parser.add_argument("--epsilons", nargs="*", type=float, default=[1.0, 3.0, 8.0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--outcomes", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = {}
    for begin in options.tables:
        name = next(known for known in TABLES if known.startswith(begin))
        rows[name] = row(name, options)
        print(rows[name], flush=True)  # noqa: T201
    if options.write:
        text = PAGE.read_text("utf-8")
        before, rest = text.split(START)
        old, after = rest.split(END)
        kept = {
            r.split("|")[1].strip().rstrip("*"): r
            for r in old.splitlines()
            if r[:2] == "| " and "score" not in r
        }
        named = {**kept, **rows}
        table = "\n".join([*HEAD, *(named[n] for n in TABLES if n in named)])
        PAGE.write_text(f"{before}{START}\n{table}\n\n{END}{after}", "utf-8")


HEAD = (
    (
        "| table (rows x columns) | score | epsilon 1 | epsilon 3 | epsilon 8 |"
        " knows nothing | linear | boosting | CPU seconds, in training |"
    ),
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def in_order(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows such that the command holds out the first fifth of a shuffle.

    The seeds are those of the study that chose the recipe's constants.
    """
    shuffle = np.random.default_rng(1000 + seed).permutation(len(frame))
    places = np.empty_like(shuffle)
    places[shuffled(len(frame)).numpy()] = shuffle
    return frame.iloc[places].reset_index(drop=True)


def row(name: str, options: argparse.Namespace) -> str:
    """Return the line of one table."""
    table = TABLES[name]
    frame = table.load()
    orders = [in_order(frame, seed) for seed in range(options.splits)]
    cells, outcomes = [], []
    for epsilon in options.epsilons:
        at_epsilon = kept(options.outcomes, name, epsilon)
        for order in orders[len(at_epsilon) :]:
            at_epsilon.append(train(order, epsilon))
            keep(options.outcomes, name, epsilon, at_epsilon[-1])
        if max(outcome.epsilon for outcome in at_epsilon) > epsilon:
            raise AssertionError("a run cost more than it was allowed to")
        cells.append(_mean_and_spread([outcome.score for outcome in at_epsilon]))
        outcomes.extend(at_epsilon)
    of_others = [references(o, is_regression=table.is_regression) for o in orders]
    baseline = statistics.mean(outcome.baseline for outcome in outcomes)
    seconds = statistics.median(outcome.seconds for outcome in outcomes)
    in_training = statistics.median(o.training_seconds for o in outcomes)
    figures = (
        "RMSE" if table.is_regression else "accuracy",
        *cells,
        _number(baseline),
        *(_number(statistics.mean(scores)) for scores in zip(*of_others, strict=True)),
        f"{seconds:.1f}, {in_training:.1f}",
    )
    mark = "" if table.was_tuned_on else "*"
    return f"| {name}{mark} | {' | '.join(figures)} |"


def _mean_and_spread(scores: list[float]) -> str:
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return f"{_number(statistics.mean(scores))} ± {_number(spread)}"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.3g}"


def kept(path: Path | None, name: str, epsilon: float) -> list[Outcome]:
    """Read what was trained on a table at an epsilon, by split."""
    lines = path.read_text("utf-8").splitlines() if path and path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [
        Outcome(**r["outcome"])
        for r in rows
        if r["table"] == name and r["epsilon"] == epsilon
    ]


def keep(path: Path | None, name: str, epsilon: float, outcome: Outcome) -> None:
    """Write down what one split came to."""
    if path is not None:
        row = {"table": name, "epsilon": epsilon, "outcome": vars(outcome)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
