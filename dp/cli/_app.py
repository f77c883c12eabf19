"""The commands.

A bad option or file ends in one line on standard error and exit code 2.

Torch is loaded by the commands that train or read a certificate, and by no other, so
that help, ``epsilon`` and ``calibrate`` answer at once.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dp.cli._errors import USAGE_ERRORS, InputError
from dp.cli._examine import audit_command, check_command
from dp.cli._planning import calibrate_command, epsilon_command
from dp.cli._published import compose_command, verify_command
from dp.cli._train_command import predict_command, train_command
from dp.exceptions import PrivacyError
from forwarding import __version__


__all__ = ("main",)

_USAGE_ERROR: Final = 2
_COMPLETION: Final = {"--install-completion", "--show-completion"}

app = typer.Typer(
    no_args_is_help=True,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if it worked, 2 if the input cannot be used."""
    command = typer.main.get_command(app)
    given = None if arguments is None else list(arguments)
    try:
        name = _name(sys.argv[1:] if given is None else given)
        code = command.main(given, prog_name=name, standalone_mode=False)
    except (USAGE_ERRORS, InputError, PrivacyError) as error:
        message = getattr(error, "format_message", error.__str__)()
        if message:  # Empty if there was no command at all: help was shown.
            line = " ".join(message.split()).replace("Value error, ", "")
            print(f"Error: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(_USAGE_ERROR)
    sys.exit(code)


def _name(given: Sequence[str]) -> str:
    """Return what the user typed: the script, or the module.

    Completion is the script's in any case: what a shell is told to complete for
    ``python -m dp`` would be every use of ``python``.
    """
    is_script = Path(sys.argv[0]).stem == "dp" or not _COMPLETION.isdisjoint(given)
    return "dp" if is_script else "python -m dp"


def _tell_version(value: bool) -> None:  # noqa: FBT001 -- typer's signature
    if value:
        typer.echo(f"dp, of forwarding {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_tell_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Train with differential privacy, plan what it costs, and check what it cost."""
    del show_version  # Its callback has ended the program, if it was given.


def _add(name: str, command: Callable[..., Any]) -> None:
    """Add a command whose help is its docstring, for the terminal to wrap."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name, help=text)(command)


_add("train", train_command)
_add("predict", predict_command)
_add("epsilon", epsilon_command)
_add("calibrate", calibrate_command)
_add("verify", verify_command)
_add("compose", compose_command)
_add("check", check_command)
_add("audit", audit_command)
