"""Whether a document states all that its format has, and charges that can be."""

import json
from collections.abc import Iterator
from typing import Any

from dp._reports import Finding
from dp.certificate._run import CertifiedRun
from dp.exceptions import LedgerError
from dp.ledger import sound_charge
from dp.ledger._advisories import ADVISORIES


__all__ = ("charges_finding", "fields_finding", "newer_finding")


def fields_finding(text: str, written: str) -> Finding:
    """Return whether a document has every field that it has when written anew.

    What is left out would be read as if it had been stated: a plan without a relation
    is one of ``add_or_remove_one``.

    Args:
        text: The document.
        written: What was read of it, as it is written.
    """
    missing = sorted(_missing(json.loads(text), json.loads(written), ""))
    return Finding(
        claim="fields",
        holds=not missing,
        detail=f"does not state {', '.join(missing)}" if missing else "states them all",
    )


def _missing(stated: Any, written: Any, place: str) -> Iterator[str]:
    if isinstance(written, dict) and isinstance(stated, dict):
        for key, part in written.items():
            if key in stated:
                yield from _missing(stated[key], part, f"{place}{key}.")
            else:
                yield f"{place}{key}"
    elif isinstance(written, list) and isinstance(stated, list):
        for number, (one, other) in enumerate(zip(stated, written, strict=False), 1):
            yield from _missing(one, other, f"{place}{number}.")


def charges_finding(claim: str, run: CertifiedRun) -> Finding:
    """Return whether a ledger would hold every charge, as of a norm below infinity."""
    wrong = ""
    for charge in run.charges:
        try:
            sound_charge(charge.to_dict())
        except LedgerError as error:
            wrong = str(error)
    return Finding(
        claim=claim, holds=not wrong, detail=wrong or "each is one of a ledger"
    )


def newer_finding(claim: str, run: CertifiedRun) -> Finding:
    """Return whether this release knows the faults of the one that charged."""
    known = len(ADVISORIES)
    return Finding(
        claim=claim,
        holds=run.num_advisories <= known,
        detail=f"was charged by a release that knew {run.num_advisories} advisories, and"
        f" this one knows {known}",
    )
