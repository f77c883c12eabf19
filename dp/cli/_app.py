"""The commands.

A bad option or file ends in one line on standard error and exit code 2.

Torch is loaded by the commands that train or read a certificate, and by no other, so
that help, ``epsilon`` and ``calibrate`` answer at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer
from typer.exceptions import TyperException

from dp.cli._examine import audit_command, check_command
from dp.cli._options import (
    BatchSize,
    Data,
    DebugSeed,
    Delta,
    Epsilon,
    GroupSize,
    LearningRate,
    MaxGradNorm,
    OptimizerName,
    Ranges,
    Report,
    Steps,
    Target,
    check,
)
from dp.cli._planning import calibrate_command, epsilon_command
from dp.cli._published import compose_command, verify_command
from dp.exceptions import PrivacyError


__all__ = ("main",)

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
    group_size: GroupSize = 1,
    debug_seed: DebugSeed = None,
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
        count={"--steps": steps, "--group-size": group_size},
    )
    from dp.cli import _comparison, _input, _training  # noqa: PLC0415 -- torch

    _comparison.train_both(
        _input.load(data, target=target, ranges=ranges),
        _training.Settings(
            epsilon=target_epsilon,
            delta=delta,
            steps=steps,
            batch_size=batch_size,
            max_grad_norm=max_grad_norm,
            lr=lr,
            optimizer=optimizer,
            group_size=group_size,
            debug_seed=debug_seed,
        ),
        report,
    )


app.command("epsilon")(epsilon_command)
app.command("calibrate")(calibrate_command)
app.command("verify")(verify_command)
app.command("compose")(compose_command)
app.command("check")(check_command)
app.command("audit")(audit_command)
