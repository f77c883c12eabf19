"""Errors that a user can correct: shown as one line, with exit code 2."""

from typing import final

from typer.exceptions import TyperException


__all__ = ("InputError",)


@final
class InputError(TyperException):
    """An option or a file cannot be used; the message names it and the remedy."""
