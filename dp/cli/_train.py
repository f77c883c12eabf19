"""The command ``train``: plan, train, and leave a report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from rich.console import Console
from torch import Tensor, nn

from dp._progress import Bars, progress_bars
from dp._reports import bound
from dp._typing import TabularModel
from dp.certificate import compose
from dp.checking import check
from dp.cli import _report, _saved, _training
from dp.cli._errors import InputError
from dp.cli._input import Table, built_in
from dp.cli._models import model_for, tabular_model
from dp.cli._options import BUILT_IN
from dp.cli._problem import Classification
from dp.cli._processes import from_first, make_alike, process_group
from dp.cli._tabular import CsvOptions, CsvTable, open_csv
from dp.exceptions import did_you_mean
from dp.optimizer._guard import check_wrappable
from dp.plan import PrivacyPlan, plan_for
from dp.tables import Fitted, Recipe, Statistics, Target


__all__ = ("Request", "train_built_in", "train_csv")

_NUM_CHECKED: Final = 8
_STEPS: Final = 160  # Of images.
_LEARNING_RATE: Final = 0.25
_BATCHES: Final = 4  # How many make up the rows, of images.
_LARGEST_DELTA: Final = 1e-5
_BELOW_ONE_OVER_ROWS: Final = 10

# The number of rows is public, so neighbours have the same number.
_RELATION: Final = "zero_out"
_NOT_COVERED: Final = (
    "Scores were measured on rows that were not trained on, and that this certificate"
    " does not cover."
)
_TWIN: Final = (
    (
        "A second model was trained on the same rows without privacy. It was not kept, but"
        " its score on held-out rows was shown and drawn."
    ),
    "Whether options were chosen by earlier runs on the same rows is not stated.",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of ``train`` that are about training; None takes the default.

    Attributes:
        epsilon: What everything together may cost.
        delta: The delta it is for.
        steps: How many steps.
        batch_size: How many units a batch has, in expectation.
        max_grad_norm: The norm to which every unit's gradient is clipped.
        learning_rate: The learning rate.
        optimizer: An optimizer of torch by its name.
        model: The kind of model, for columns.
        compares: Whether to train without privacy, too.
        group_size: How many units may differ at once.
        debug_seed: The seed of a run that can be repeated, and is not private.
        report: The folder for what is left behind.
    """

    epsilon: float
    delta: float | None
    steps: int | None
    batch_size: float | None
    max_grad_norm: float
    learning_rate: float | None
    optimizer: str
    model: TabularModel | None
    compares: bool
    group_size: int
    debug_seed: int | None
    report: Path

    def lr(self, default: float) -> float | None:
        """Return the learning rate; torch's own for other optimizers than SGD."""
        if self.learning_rate is not None:
            return self.learning_rate
        return default if self.optimizer.lower() == "sgd" else None


def train_built_in(name: str, request: Request) -> None:
    """Train on a table that comes with a package, whose ranges are public.

    Raises:
        InputError: If an option cannot be used.
    """
    with process_group() as is_main:
        if request.model is not None:
            raise InputError(f"--model is for CSV files; {name} has one of its own")
        table = built_in(name)
        _seed(request)
        model = model_for(table)
        make_alike(model)
        setup = _training.Setup(
            plan=_plan_of_images(request, table),
            optimizer=request.optimizer,
            learning_rate=request.lr(_LEARNING_RATE),
            debug_seed=request.debug_seed,
        )
        console = _prepared(request, setup, is_main=is_main)
        facts = "features were scaled by constants that are public"
        _train(model, table, setup, request, console, facts=facts)


def train_csv(path: Path, options: CsvOptions, request: Request) -> None:
    """Train on a user's CSV file.

    Raises:
        InputError: If the file or an option cannot be used.
    """
    with process_group() as is_main:
        known = f"--data is {', '.join(BUILT_IN)} or a CSV file"
        known += did_you_mean(str(path), BUILT_IN)
        csv = open_csv(path, options, known=known)
        target = _target(request, csv)
        recipe = Recipe.of(
            csv.shape,
            target,
            model=request.model,
            steps=request.steps,
            sampling_probability=_probability(request, csv.num_units),
        )
        setup = _training.Setup(
            plan=recipe.plan(
                csv.shape,
                target,
                max_grad_norm=request.max_grad_norm,
                has_units=csv.units is not None,
            ),
            optimizer=request.optimizer,
            learning_rate=request.lr(recipe.learning_rate),
            normalizes=True,
            averaged_share=recipe.averaged_share,
            before=recipe.shares.releases,
            debug_seed=request.debug_seed,
        )
        console = _prepared(request, setup, is_main=is_main)
        statistics = Statistics(
            target_delta=target.delta,
            neighboring_relation=target.relation,
            unit_of_privacy=target.unit_of_privacy,
            group_size=target.group_size,
            noise=setup.noise,
        )
        fitted = from_first(lambda: csv.fit(recipe.shares, statistics))
        _tell_unseen(fitted, console)
        table = csv.table(fitted)
        _seed(request)
        model = tabular_model(
            recipe.model, table.row_shape[0], table.problem.num_outputs
        )
        make_alike(model)
        saved = _saved.SavedModel.of(csv, fitted, recipe.model, options.layout)
        _train(
            model,
            table,
            setup,
            request,
            console,
            statistics=statistics,
            facts="so is what was declared of columns: their kinds, ranges and levels",
            saved=saved,
        )


def _seed(request: Request) -> None:
    """Make the first weights repeatable, too, if a run is to be."""
    if request.debug_seed is not None:
        torch.manual_seed(request.debug_seed)


def _target(request: Request, csv: CsvTable) -> Target:
    return Target(
        epsilon=request.epsilon,
        delta=_delta(request.delta, csv.num_units),
        relation=_RELATION,
        unit_of_privacy=csv.unit,
        group_size=request.group_size,
    )


def _delta(given: float | None, num_units: int) -> float:
    """Return delta: by default a power of ten, at most a tenth of one over the units."""
    if given is None:
        most = math.floor(-math.log10(_BELOW_ONE_OVER_ROWS * num_units))
        return min(_LARGEST_DELTA, 10.0**most)
    if given >= 1 / num_units:
        raise InputError(
            f"--delta must be below one over the {num_units} rows or units,"
            f" {1 / num_units:.3g}, got {given:g}: a larger one would permit publishing"
            " a row outright"
        )
    return given


def _probability(request: Request, num_units: int) -> float | None:
    if request.batch_size is None:
        return None
    if request.batch_size > num_units:
        raise InputError(
            f"--batch-size must be at most the {num_units} rows or units that are"
            f" trained on, got {request.batch_size:g}"
        )
    return request.batch_size / num_units


def _plan_of_images(request: Request, table: Table) -> PrivacyPlan:
    num_rows = table.num_units
    probability = _probability(request, num_rows) or 1 / _BATCHES
    return plan_for(
        target_epsilon=request.epsilon,
        target_delta=_delta(request.delta, num_rows),
        sampling_probability=probability,
        steps=request.steps or _STEPS,
        expected_batch_size=probability * num_rows,
        max_grad_norm=request.max_grad_norm,
        neighboring_relation=_RELATION,
        unit_of_privacy=table.unit,
        group_size=request.group_size,
    )


def _prepared(request: Request, setup: _training.Setup, *, is_main: bool) -> Console:
    """Refuse what can be refused before anything is spent; return where to print."""
    check_wrappable(_training.optimizer_for(nn.Linear(1, 1), setup))
    if is_main:
        _report.open_folder(request.report)
    return Console(quiet=not is_main, highlight=False)


def _tell_unseen(fitted: Fitted, console: Console) -> None:
    if fitted.unseen:
        console.print(
            "Columns in which nothing stands out from the noise, so that they say"
            f" little: {', '.join(fitted.unseen)}. Names and ids have no"
            " frequent value (--leave-out), dates in other forms than 2001-02-03"
            " need --dates and --date-format, and numbers in another form than 1.5 need"
            " --decimal; otherwise --ranges and --levels help."
        )
    if fitted.coarse:
        console.print(
            "Columns whose numbers are all of one magnitude, as recent dates and years"
            f" are: {', '.join(fitted.coarse)}. Rows are too few to find how far they"
            " spread, and what tells them apart may be lost: say --ranges, or --dates."
        )


def _train(
    model: nn.Module,
    table: Table,
    setup: _training.Setup,
    request: Request,
    console: Console,
    *,
    facts: str,
    statistics: Statistics | None = None,
    saved: "_saved.SavedModel | None" = None,
) -> None:
    """Train, show what came of it, and write it into the report's folder."""
    plan = setup.plan
    _check(model, table)
    batch = (
        "all of them in every step"
        if plan.sampling_probability == 1
        else f"{plan.expected_batch_size:g} a batch"
    )
    console.print(
        f"{table.name}: {table.num_units} to train on, {batch}, {plan.steps} steps, noise"
        f" multiplier {plan.noise_multiplier_at(0):.4g}"
    )
    console.print("Epsilon beside the bar is that of a run planned to stop there.")
    with progress_bars(console=console) as bars:
        show = _shown(bars, table, "private", plan.steps)
        private, optimizer = _training.train_privately(model, table, setup, show=show)
        plain = None
        if request.compares:
            show = _shown(bars, table, "not private", plan.steps)
            plain = _training.train_openly(model, table, setup, show=show)
    if console.quiet:
        return
    touches = _TWIN if request.compares else None
    certificate = optimizer.certificate(
        private_data_touches=touches, assumptions=_assumptions(table, facts)
    )
    if statistics is not None:
        released = statistics.certificates(private_data_touches=touches)
        certificate = compose(*released, certificate)
    _report.show(console, table, certificate, private, plain)
    _report.write(
        request.report,
        table,
        certificate,
        private,
        plain,
        target_epsilon=request.epsilon,
    )
    _saved.write(request.report, private.model, saved)
    console.print(
        f"The report is {request.report / 'index.html'}; the certificate (JSON, text and"
        f" picture), {_report.PICTURE} and {_saved.FILE} are beside it"
    )


def _check(model: nn.Module, table: Table) -> None:
    """Run ``dp.check`` before the first step, on random rows instead of private ones.

    Raises:
        PrivacyError: If it finds an error.
    """
    rows, targets = table.train.tensors
    x = torch.rand(_NUM_CHECKED, *rows.shape[1:], dtype=rows.dtype)
    y_B = torch.arange(_NUM_CHECKED) % table.problem.num_outputs

    def losses_of(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        x, y_B = batch
        return table.problem.losses(model(x), y_B)

    check(
        model, losses_of, (x, y_B.to(targets.dtype)), num_compared=4
    ).raise_if_failed()


def _assumptions(table: Table, facts: str) -> Sequence[str]:
    problem = table.problem
    public = (
        f"of units of privacy ({table.num_units}) and of classes"
        f" ({problem.num_outputs})"
        if isinstance(problem, Classification)
        else f"of units of privacy ({table.num_units})"
    )
    return (f"The number {public} is public, and {facts}.", _NOT_COVERED)


def _shown(bars: Bars, table: Table, name: str, num_steps: int) -> _training.Shown:
    """Return what shows a run's progress, score and epsilon."""
    bar = bars.begin(f"{name:11}")

    def show(taken: int, point: _training.Point) -> None:
        is_private = point.epsilon < float("inf")
        cost = f"epsilon {bound(point.epsilon, 2)}" if is_private else "NOT PRIVATE"
        name = table.problem.score_name
        score = "" if table.test is None else f"  {name} {point.score:.4g}"
        bar.show(taken, num_steps, f"{score}  {cost}")

    return show
