"""Errors that a user can correct: shown as one line, with exit code 2."""

from typing import Final, final

import typer


__all__ = ("USAGE_ERRORS", "InputError")


@final
class InputError(Exception):
    """An option or a file cannot be used; the message names it and the remedy."""


# What typer raises of options: its own errors, or before release 0.26 those of click. Of
# either, a bad parameter is a usage error, and that is an error with a message.
USAGE_ERRORS: Final[type[Exception]] = typer.BadParameter.__mro__[2]
