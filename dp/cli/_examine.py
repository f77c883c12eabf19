"""The commands that look at what a user wrote: ``check``."""

from typing import Annotated, Any, Final

import typer
from torch import nn

from dp.checking import check
from dp.cli._errors import InputError
from dp.cli._target import function_of


__all__ = ("check_command",)

_REFUTED: Final = 1
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


def check_command(setup: Setup) -> None:
    """Look for what would break privacy or the run; exit code 1 if something does.

    Finds examples that are mixed, buffers that keep private numbers, parameters
    without gradients, operations that are slow or refused, and low precision.
    """
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
