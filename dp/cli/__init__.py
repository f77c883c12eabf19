"""The command line: ``python -m dp train``, ``epsilon``, ``calibrate``, ``verify``."""

from collections.abc import Sequence

from dp import _EXTRA


__all__ = ("main",)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; say which extra is missing, if one is."""
    try:
        from dp.cli._app import main as run  # noqa: PLC0415 -- it may not be there
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise SystemExit(
            f"dp needs {error.name}, which the extra of this package brings:"
            " pip install 'forwarding[dp]'"
        ) from error
    run(arguments)
