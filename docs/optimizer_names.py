"""Write the tables of ``reference/transparency.md`` from ``dp/optimizer/_surface.py``.

Run ``python docs/optimizer_names.py`` after a change there; the tests hold both equal.
"""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from dp.optimizer._surface import COMPOSED, FORWARDED, OWN, REFUSED


PAGE = Path(__file__).parent / "reference" / "transparency.md"
_SECTIONS: dict[str, Mapping[str, str]] = {
    "Forwarded: read, written and deleted on the wrapped optimizer": FORWARDED,
    "Own: each layer has one": OWN,
    "Composed: this layer does its part and calls the wrapped optimizer": COMPOSED,
    "Refused: raises, with the reason": REFUSED,
}


def tables() -> str:
    """Return the four tables in Markdown, one row for names that share a reason."""
    return "\n\n".join(
        f"## {title}\n\n| name | why |\n|---|---|\n" + "\n".join(_rows(names))
        for title, names in _SECTIONS.items()
    )


def rewritten(page: str) -> str:
    """Return the page with the tables as they are now."""
    before, _, _ = page.partition("<!-- tables -->\n")
    return f"{before}<!-- tables -->\n\n{tables()}\n"


def _rows(names: Mapping[str, str]) -> list[str]:
    reasons: dict[str, str] = {}
    for name, why in names.items():
        reasons[name] = why if why != "as above" else list(reasons.values())[-1]
    return [
        f"| {', '.join(map(_spelled, shared))} | {why} |"
        for why, shared in groupby(reasons, key=reasons.__getitem__)
    ]


def _spelled(name: str) -> str:
    return f"`{name}`" if name.isidentifier() else name


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
