"""The commands.

A bad option or file ends in one line on standard error and exit code 2.

Torch is loaded by the commands that train or read a certificate, and by no other, so
that help, ``epsilon`` and ``calibrate`` answer at once.
"""

import sys
from collections.abc import Sequence
from typing import Final

import typer
from typer.exceptions import TyperException

from dp.cli._examine import audit_command, check_command
from dp.cli._planning import calibrate_command, epsilon_command
from dp.cli._published import compose_command, verify_command
from dp.cli._train_command import predict_command, train_command
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


app.command("train")(train_command)
app.command("predict")(predict_command)
app.command("epsilon")(epsilon_command)
app.command("calibrate")(calibrate_command)
app.command("verify")(verify_command)
app.command("compose")(compose_command)
app.command("check")(check_command)
app.command("audit")(audit_command)
