"""The command line: ``python -m dp train``, ``epsilon``, ``calibrate``, ``verify``."""

from dp.cli._app import main


__all__ = ("main",)
