"""Write the few figures that pages quote, from the pages that measure them.

``python docs/glance.py`` writes what stands between the marks; a test compares.
"""

import re
from collections.abc import Callable
from pathlib import Path


DOCS = Path(__file__).parent
PAGES = (
    DOCS / "index.md",
    DOCS / "explanation/comparison.md",
    DOCS.parent / "README.md",
)

# How rows begin on the page of the benchmarks, and what to call them here.
_MODELS = {
    "MLP": "perceptron",
    "CNN": "convolutional network",
    "decoder": "decoder of 4 layers",
    "ResNet": "residual network",
    "wide": "table of 50 000 by 256",
    "LoRA": "LoRA",
}
_TABLES = "breast cancer", "wine", "digits", "diabetes", "adult-like"
_OPACUS = "hooks", "functorch", "ew", "ghost"
# The whole optimizer where it was measured, or its engine and noise.
_OURS = {"DPOptimizer": "dp", "dp": "dp, engine and noise"}
_OPERATIONS = "get", "set", "delete", "`m()`"


def _reference(name: str) -> str:
    return (DOCS / f"reference/{name}.md").read_text("utf-8")


def _tables(page: str) -> list[list[dict[str, str]]]:
    """Return every table of a page in Markdown, as rows by the names of their columns."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        head, _, *rows = [line.strip()[1:-1].split("|") for line in table.splitlines()]
        names = [name.strip() for name in head]
        found.append(
            [
                dict(zip(names, (cell.strip() for cell in row), strict=False))
                for row in rows
            ]
        )
    return found


def _with_columns(page: str, *names: str) -> list[dict[str, str]]:
    """Return the first table of a page that has these columns."""
    for rows in _tables(page):
        if rows and set(names) <= rows[0].keys():
            return rows
    raise ValueError(f"no table has the columns {names}")


def _as_table(*rows: list[str]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "| --- " + "| --: " * (len(rows[0]) - 1) + "|", *body])


def speed() -> str:
    """Return the time of a private step: ours, Opacus' fastest way, and vmap."""
    measured = _with_columns(_reference("benchmarks"), "model", "Opacus hooks", "vmap")
    ours = next(way for way in _OURS if way in measured[0])
    rows = [["model", _OURS[ours], "Opacus, its fastest mode", "torch's vmap"]]
    for start, name in _MODELS.items():
        for row in [row for row in measured if row["model"].startswith(start)][:1]:
            theirs = [row[way] for way in row if way.removeprefix("Opacus ") in _OPACUS]
            fastest = min((cell for cell in theirs if cell != "cannot"), key=float)
            rows.append([name, row[ours], fastest, row["vmap"]])
    return _as_table(*rows)


def scores() -> str:
    """Return what one command reaches on tables at epsilon 3, beside a linear model."""
    first = "table (rows x columns)"
    rows = [["table", "score", "at epsilon 3", "without privacy", "knows nothing"]]
    rows += [
        [
            row[first],
            row["score"],
            row["epsilon 3"].split(" ± ")[0],
            row["linear"],
            row["knows nothing"],
        ]
        for row in _with_columns(_reference("tables"), first, "epsilon 3")
        if row[first].startswith(_TABLES)
    ]
    return _as_table(*rows)


def access() -> str:
    """Return the time of an access at one layer on CPython 3.13, by library."""
    page = _reference("benchmarks").split("<!-- CPython 3.13 -->")[1]
    rows = [["written with", *_OPERATIONS]]
    ours = {
        row["operation"]: row["1 layer"]
        for row in _with_columns(page, "written as", "8 layers")
        if row["written as"] == "`Forwarded`"
    }
    rows.append(
        ["forwarding `Forwarded`", *(ours[o].split(", ")[1] for o in _OPERATIONS)]
    )
    rows += [
        [row[""], *(row[operation].split(" / ")[0] for operation in _OPERATIONS)]
        for row in _with_columns(page, *_OPERATIONS)
    ]
    return _as_table(*rows)


def works() -> str:
    """Return of how many uses of an optimizer each wrapper serves."""
    *_, last = _with_columns(_reference("compatibility"), "consumer", "behaviour")
    names = [name for name in last if name not in {"consumer", "behaviour"}]
    return _as_table(
        ["uses that work", *names], ["of an optimizer", *(last[n] for n in names)]
    )


PARTS: dict[str, Callable[[], str]] = {
    "access": access,
    "scores": scores,
    "speed": speed,
    "works": works,
}


def filled(page: str) -> str:
    """Return the text of a page with every table between its marks."""
    for name, part in PARTS.items():
        first, last = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
        if first in page:
            before, rest = page.split(first)
            after = rest.split(last)[1]
            page = f"{before}{first}\n\n{part()}\n\n{last}{after}"
    return page


def main() -> None:
    """Write the tables of every page."""
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
