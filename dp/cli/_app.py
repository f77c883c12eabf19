"""The commands.

A bad option or file ends in one line on standard error and exit code 2.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from typer.exceptions import TyperException

from dp.accounting import Release, epsilon
from dp.calibration import calibrate_noise_multiplier
from dp.certificate import Certificate, compose, verify
from dp.cli import _input, _plots, _report, _training
from dp.cli._errors import InputError
from dp.cli._examine import audit_command, check_command
from dp.cli._models import model_for
from dp.cli._options import (
    BatchSize,
    CertificatePath,
    CertificatePaths,
    CommonDelta,
    Data,
    Delta,
    Epsilon,
    Into,
    LearningRate,
    MaxGradNorm,
    NoiseMultiplier,
    OptimizerName,
    Plot,
    Probability,
    Quick,
    Ranges,
    Relation,
    Report,
    Steps,
    Target,
    check,
)
from dp.cli._processes import make_alike, process_group
from dp.cli._progress import progress_of, recomputing
from dp.exceptions import LedgerError, PrivacyError


__all__ = ("main",)

_REFUTED: Final = 1
_USAGE_ERROR: Final = 2

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Train with differential privacy, plan what it costs, and check what it cost.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if it worked, 2 if the input cannot be used."""
    command = typer.main.get_command(app)
    given = None if arguments is None else list(arguments)
    try:
        code = command.main(given, prog_name="python -m dp", standalone_mode=False)
    except (TyperException, PrivacyError) as error:
        message = error.format_message() if isinstance(error, TyperException) else error
        if str(message):  # Empty if there was no command at all: help was shown.
            print("Error:", *str(message).split(), file=sys.stderr)  # noqa: T201
        sys.exit(_USAGE_ERROR)
    sys.exit(code)


@app.command()
def train(
    *,
    data: Data = "mnist",
    target: Target = None,
    ranges: Ranges = None,
    target_epsilon: Epsilon = 3.0,
    delta: Delta = 1e-5,
    steps: Steps = 160,
    batch_size: BatchSize = None,
    max_grad_norm: MaxGradNorm = 1.0,
    lr: LearningRate = None,
    optimizer: OptimizerName = "sgd",
    report: Report = Path("report"),
) -> None:
    """Train a small model with privacy and without, and certify what it cost.

    Images get a small CNN, tables an MLP with one hidden layer. A fifth of the rows
    is held out to measure accuracy; privacy covers the others. Under torchrun, all
    processes train together.
    """
    check(
        positive={
            "--epsilon": target_epsilon,
            "--max-grad-norm": max_grad_norm,
            "--batch-size": batch_size,
            "--lr": lr,
        },
        open_unit={"--delta": delta},
        count={"--steps": steps},
    )
    settings = _training.Settings(
        epsilon=target_epsilon,
        delta=delta,
        steps=steps,
        batch_size=batch_size,
        max_grad_norm=max_grad_norm,
        lr=lr,
        optimizer=optimizer,
    )
    table = _input.load(data, target=target, ranges=ranges)
    with process_group() as speaks:
        _train_both(table, settings, report if speaks else None)


def _train_both(
    table: _input.Table, settings: _training.Settings, folder: Path | None
) -> None:
    model = model_for(table)
    make_alike(model)
    _training.optimizer_for(model, settings)  # A bad one is refused at once.
    if folder is not None:
        _report.open_folder(folder)
    console = Console(quiet=folder is None)
    with console.status("Calibrating the noise"):
        plan = _training.plan_of(settings, table)
    console.print(
        f"{table.name}: {len(table.train)} rows, {plan.expected_batch_size:g} a batch,"
        f" noise multiplier {plan.noise_multiplier_at(0):.4g}"
    )
    with progress_of(console, plan.steps) as show:
        private, certificate = _training.train_privately(
            model, table, plan=plan, settings=settings, show=show("private")
        )
        plain = _training.train_openly(
            model, table, plan=plan, settings=settings, show=show("not private")
        )
    if folder is None:
        return
    console.print(_report.summary(certificate, private, plain))
    _report.write(folder, certificate, private, plain)
    console.print(
        f"The certificate (JSON, text and picture) and {_report.PICTURE} are in {folder}"
    )


@app.command("epsilon")
def show_epsilon(
    *,
    noise_multiplier: NoiseMultiplier,
    sampling_probability: Probability,
    steps: Steps,
    delta: Delta = 1e-5,
    relation: Relation = "add_or_remove_one",
    plot: Plot = None,
) -> None:
    """Print the epsilon of a run before it is made, and draw it over the steps."""
    check(
        non_negative={"--noise-multiplier": noise_multiplier},
        probability={"--sampling-probability": sampling_probability},
        open_unit={"--delta": delta},
        count={"--steps": steps},
    )
    release = Release(
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
        count=steps,
    )
    spent = epsilon([release], delta=delta, neighboring_relation=relation)
    if plot is not None:
        _plots.draw_epsilon_over_steps(plot, release, delta=delta, relation=relation)
    if spent.epsilon == math.inf:
        typer.echo("NOT PRIVATE: there is no noise, so epsilon is infinite")
        return
    typer.echo(
        f"epsilon = {spent.epsilon:.4f} at delta = {delta:g} ({relation},"
        f" {spent.accountant})"
    )


@app.command()
def calibrate(
    *,
    target_epsilon: Epsilon,
    sampling_probability: Probability,
    steps: Steps,
    delta: Delta = 1e-5,
    relation: Relation = "add_or_remove_one",
    plot: Plot = None,
) -> None:
    """Print the least noise multiplier that keeps an epsilon, and draw it over epsilon."""
    check(
        positive={"--epsilon": target_epsilon},
        probability={"--sampling-probability": sampling_probability},
        open_unit={"--delta": delta},
        count={"--steps": steps},
    )
    sigma = calibrate_noise_multiplier(
        target_epsilon=target_epsilon,
        target_delta=delta,
        sampling_probability=sampling_probability,
        steps=steps,
        neighboring_relation=relation,
    )
    if plot is not None:
        _plots.draw_noise_over_epsilon(
            plot,
            target_epsilon=target_epsilon,
            delta=delta,
            sampling_probability=sampling_probability,
            steps=steps,
            relation=relation,
        )
    typer.echo(f"noise multiplier = {sigma:g} ({relation})")


@app.command("verify")
def show_verification(certificate: CertificatePath, *, quick: Quick = False) -> None:
    """Compute a certificate's numbers again; exit code 1 if one does not hold.

    By the accountants of dp_accounting alone, which takes seconds for each noise
    multiplier that a run had.
    """
    try:
        with recomputing(Console(stderr=True)) as show:
            verification = verify(certificate, quick=quick, progress=show)
    except (OSError, UnicodeError, LedgerError) as error:
        raise InputError(f"{certificate} cannot be verified: {error}") from error
    for finding in verification.findings:
        verdict = "yes" if finding.holds else "NO "
        typer.echo(f"{verdict}  {finding.claim}: {finding.detail}")
    verdict = "The certificate holds" if verification.ok else "It does NOT hold"
    typer.echo(f"{verdict}, computed again {verification.computed}.")
    raise typer.Exit(0 if verification.ok else _REFUTED)


@app.command("compose")
def show_composition(
    certificates: CertificatePaths, *, delta: CommonDelta = None, report: Into = None
) -> None:
    """State what several runs on the same data cost together, by their certificates."""
    check(open_unit={"--delta": delta})
    try:
        parts = [Certificate.from_json(p.read_text("utf-8")) for p in certificates]
        whole = compose(*parts, delta=delta)
    except (OSError, UnicodeError, ValueError) as error:
        raise InputError(f"the certificates cannot be composed: {error}") from error
    typer.echo(whole.to_text(), nl=False)
    if report is not None:
        _report.open_folder(report, "certificate.png")
        whole.write(report)


app.command("check")(check_command)
app.command("audit")(audit_command)
