"""The commands on certificates that were published: ``verify`` and ``compose``."""

from pathlib import Path
from typing import Final

import typer

from dp._progress import progress_bars
from dp.cli._errors import InputError
from dp.cli._options import (
    CertificatePath,
    CertificatePaths,
    CommonDelta,
    Into,
    Quick,
    check,
)
from dp.exceptions import LedgerError


__all__ = ("compose_command", "verify_command")

_REFUTED: Final = 1


def verify_command(certificate: CertificatePath, *, quick: Quick = False) -> None:
    """Recompute a certificate's numbers; exit code 1 if one of them does not hold.

    Uses dp_accounting's own accountants, which take seconds for each noise
    multiplier of the run.
    """
    from rich.console import Console

    from dp.certificate import verify  # noqa: PLC0415 -- torch

    console = Console(stderr=True)
    try:
        with progress_bars(
            shown=console.is_terminal, console=console, transient=True
        ) as bars:
            bar = bars.begin("composing releases")
            verification = verify(certificate, quick=quick, progress=bar.show)
    except OSError as error:
        raise _unreadable(certificate, error) from error
    except (UnicodeError, LedgerError) as error:
        raise InputError(f"{certificate} cannot be verified: {error}") from error
    for finding in verification.findings:
        verdict = "yes" if finding.holds else "NO "
        typer.echo(f"{verdict}  {finding.claim}: {finding.detail}")
    verdict = "The certificate holds" if verification.ok else "It does NOT hold"
    typer.echo(f"{verdict}, recomputed {verification.computed}.")
    raise typer.Exit(0 if verification.ok else _REFUTED)


def compose_command(
    certificates: CertificatePaths, *, delta: CommonDelta = None, report: Into = None
) -> None:
    """State what several runs on the same data cost together, from their certificates."""
    check(open_unit={"--delta": delta})
    from dp.certificate import Certificate, compose  # noqa: PLC0415 -- torch
    from dp.cli._report import open_folder  # noqa: PLC0415 -- torch

    parts = []
    for path in certificates:
        try:
            parts.append(Certificate.from_json(path.read_text("utf-8")))
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValueError as error:
            raise InputError(f"{path} cannot be composed: {error}") from error
    try:
        whole = compose(*parts, delta=delta)
    except ValueError as error:
        raise InputError(f"the certificates cannot be composed: {error}") from error
    typer.echo(whole.to_text(), nl=False)
    if report is not None:
        open_folder(report, "certificate.png")
        whole.write(report)


def _unreadable(path: Path, error: OSError) -> InputError:
    if path.is_dir():
        return InputError(f"{path} is a folder; pass {path / 'certificate.json'}")
    return InputError(f"{path} cannot be read: {error.strerror}")
