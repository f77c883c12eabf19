"""Write the table of special methods into ``explanation/how-forwarding-works.md``.

Run ``python docs/special_methods.py`` after a change of ``forwarding/_specials.py``.
"""

from itertools import groupby
from pathlib import Path

from forwarding._specials import SPECIALS, Special, Standing


PAGE = Path(__file__).parent / "explanation" / "how-forwarding-works.md"
_TITLES: dict[Standing, str] = {
    "forwarded": "may be declared",
    "own": "belongs to the wrapper",
    "refused": "is refused",
}


def table() -> str:
    """Return the table in Markdown, one row for the names that share a reason."""
    rows = ["| special methods | standing | what to know |", "|---|---|---|"]
    for special, names in groupby(SPECIALS, key=SPECIALS.__getitem__):
        spelled = " ".join(f"`{name}`" for name in names)
        rows.append(f"| {spelled} | {_TITLES[special.standing]} | {_reason(special)} |")
    return "\n".join(rows)


def rewritten(page: str) -> str:
    """Return the page with the table as it is now."""
    before, _, rest = page.partition("<!-- special methods -->\n")
    _, _, after = rest.partition("<!-- end of special methods -->")
    return (
        f"{before}<!-- special methods -->\n\n{table()}\n\n"
        f"<!-- end of special methods -->{after}"
    )


def _reason(special: Special) -> str:
    return special.reason.format(wrapper="wrapper", target="target").replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
