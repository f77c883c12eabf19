"""The command line: ``python -m dp train``, ``epsilon``, ``calibrate``, ``verify``."""

from collections.abc import Sequence

from dp.exceptions import missing_extra


__all__ = ("main",)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; say which extra is missing, if one is."""
    try:
        from dp.cli._app import main as run  # noqa: PLC0415 -- it may not be there
    except ModuleNotFoundError as error:
        told = missing_extra("dp", error)
        if told is None:
            raise
        raise SystemExit(told) from error
    run(arguments)
