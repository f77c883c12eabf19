"""Compare what a certificate states with what it should, one line each."""

import math
from collections.abc import Sequence

from dp._reports import Finding
from dp.accounting._agreement import TOLERANCE


__all__ = ("same_number", "same_words", "says")


def same_number(
    claim: str,
    stated: float | None,
    computed: float | None,
    by: str = "",
    tolerance: float = TOLERANCE,
) -> Finding:
    """Return whether two numbers are equal but for a relative difference."""
    # Infinity equals itself, NaN nothing, and None only None.
    both = stated is not None and computed is not None
    holds = stated == computed or (
        both
        and math.isclose(float(stated or 0), float(computed or 0), rel_tol=tolerance)
    )
    return Finding(
        claim=claim,
        holds=holds,
        detail=f"states {_shown(stated)}, recomputed {_shown(computed)} {by}".rstrip(),
    )


def _shown(number: float | None) -> str:
    return "none" if number is None else f"{number:.6g}"


def says(claim: str, stated: Sequence[str], standard: Sequence[str]) -> Finding:
    """Return whether every standard sentence is stated, whatever else is."""
    # Whoever publishes may say more, and may not leave one of these out.
    missing = [sentence for sentence in standard if sentence not in stated]
    return Finding(
        claim=claim,
        holds=not missing,
        detail=f"does not say: {' '.join(missing)}"
        if missing
        else f"says the {len(standard)} standard sentences",
    )


def same_words(claim: str, stated: str, computed: str) -> Finding:
    """Return whether two texts are equal."""
    detail = f"states {stated!r}" + (
        "" if stated == computed else f", recomputed {computed!r}"
    )
    return Finding(claim=claim, holds=stated == computed, detail=detail)
