"""The commands that examine a user's code: ``check`` and ``audit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dp.cli._errors import InputError
from dp.cli._options import NoiseMultiplier, Probability, Steps, check as check_options
from dp.cli._target import function_of


if TYPE_CHECKING:
    from dp.audit import Train


__all__ = ("audit_command", "check_command")

_REFUTED: Final = 1
_FEWEST_RECORDS: Final = 1000
_PARTS_OF_A_SETUP: Final = 3

Setup = Annotated[
    str,
    typer.Argument(
        help="A function without arguments that returns the model, the loss function"
        " (called with model and batch; one loss an example) and a batch of a few"
        " examples.",
        metavar="SCRIPT.py:FUNCTION",
    ),
]
Training = Annotated[
    str | None,
    typer.Argument(
        help="A function that is called as train(model, dataset) and trains by a"
        " DPOptimizer; the model takes a batch and returns one loss an example. If"
        " left out, dp's own loop is audited.",
        metavar="SCRIPT.py:FUNCTION",
    ),
]
Records = Annotated[
    int,
    typer.Option(
        help="How many records there might be; more see smaller errors.",
        metavar=">= 1000",
    ),
]
AuditReportFolder = Annotated[
    Path,
    typer.Option(
        help="Folder for audit.json, audit.txt and roc.png; earlier ones are replaced.",
        metavar="FOLDER",
    ),
]


def check_command(setup: Setup) -> None:
    """Check a model for privacy and training errors; exit code 1 if there are any.

    Finds examples that are mixed, buffers that keep private numbers, parameters
    without gradients, operations that are slow or refused, and low precision.
    """
    from torch import nn  # noqa: PLC0415 -- a second

    from dp.checking import check  # noqa: PLC0415 -- torch

    made: Any = function_of(setup)()
    if not isinstance(made, tuple) or len(made) != _PARTS_OF_A_SETUP:
        raise InputError(f"{setup} must return (model, loss_fn, batch)")
    model, loss_fn, batch = made
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the first thing that {setup} returns must be a torch.nn.Module, got a"
            f" {type(model).__name__}"
        )
    report = check(model, loss_fn, batch)
    typer.echo(report.to_text())
    raise typer.Exit(0 if report.ok else _REFUTED)


def audit_command(
    train: Training = None,
    *,
    noise_multiplier: NoiseMultiplier = 1.0,
    sampling_probability: Probability = 0.1,
    steps: Steps = 40,
    records: Records = 20_000,
    report: AuditReportFolder = Path("report"),
) -> None:
    """Test a whole training loop from outside; exit code 1 if something is refuted.

    Tests that noise, clipping and draws are distributed as the ledger says, attacks
    the run with canaries and compares what leaks with the claim, and replays it on
    neighbouring data. A correct run fails a finding with probability 1e-9. The three
    numbers are for dp's own loop; a function has a plan of its own.
    """
    check_options(
        positive={"--noise-multiplier": noise_multiplier},
        probability={"--sampling-probability": sampling_probability},
        count={"--steps": steps},
    )
    if records < _FEWEST_RECORDS:
        raise InputError(f"--records must be >= {_FEWEST_RECORDS}, got {records}")
    from dp.audit import run_all  # noqa: PLC0415 -- torch
    from dp.cli._report import open_folder  # noqa: PLC0415 -- torch

    function: Train = (
        _own_loop(noise_multiplier, sampling_probability, steps, records)
        if train is None
        else function_of(train)
    )
    open_folder(report, "audit.txt")
    try:
        suite = run_all(function, num_records=records, progress=True)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
    typer.echo(suite.to_text())
    suite.write(report)
    typer.echo(f"audit.json, audit.txt and roc.png are in {report}")
    raise typer.Exit(0 if suite.ok else _REFUTED)


def _own_loop(
    noise_multiplier: float, sampling_probability: float, steps: int, records: int
) -> "Train":
    from dp import audit, plan, sampling  # noqa: PLC0415 -- torch

    return audit.training(
        plan.PrivacyPlan(
            sampling=sampling.PoissonSampling(
                sampling_probability=sampling_probability
            ),
            noise_multiplier=noise_multiplier,
            max_grad_norm=1.0,
            expected_batch_size=sampling_probability * records / 2,
            steps=steps,
            target_delta=1e-5,
        )
    )
