"""Write the table of rooms into ``explanation/architecture.md``, and draw the picture.

Run ``python docs/architecture.py`` after a change of what imports what, or of the
layers in ``pyproject.toml``; the tests hold page and picture to both.
"""

import sys
import tomllib
from collections import defaultdict
from collections.abc import Mapping

from layered_picture import draw
from source_tree import ROOT, code_lines, files, imports


PAGE = ROOT / "docs/explanation/architecture.md"
PICTURE = ROOT / "docs/explanation/architecture.svg"
_FIRST, _LAST = "<!-- rooms -->", "<!-- end of rooms -->"

# One line a room: what it is for.
ROOMS = {
    "__main__": "`python -m dp`",
    "cli": "the command line",
    "integrations": "private training inside accelerate, the Trainer, Lightning and TensorBoard",
    "audit": "tests of a whole training run from outside",
    "checking": "`dp.check`: a look at a model and its loss before training",
    "tables": "columns as features, scaled by private statistics",
    "wrapping": "private optimizer classes, for trainers that build the optimizer themselves",
    "optimizer": "`DPOptimizer`: transparent from outside, private in `step`",
    "_mechanism": "the Gaussian mechanism over batches: accumulate clipped sums, charge, release",
    "certificate": "the statement of what was released, and how to verify it",
    "ledger": "what was charged, and whether the plan allows one more release",
    "plan": "the public numbers of a run, decided before it starts",
    "distributed": "sums and agreement of several ranks",
    "micro_batches": "one draw in several parts",
    "comparison": "what a plan leaves to be found: a number, or how batches are drawn",
    "evidence": "loss functions evaluated again, with other examples in the batch",
    "calibration": "the search for the noise, the steps or the probability that keep a target",
    "sampling": "which examples are in a batch, and the ticket that proves it",
    "per_sample": "every example's gradient, from one backward pass",
    "selection": "the best of several private runs, at a price that is stated",
    "query": "private answers about the data, which a plan pays for",
    "clipping": "the bound on what one example contributes",
    "noise": "Gaussian noise, rounded to a lattice",
    "accounting": "epsilon of a list of releases, by `dp_accounting`",
    "schedule": "a public number that changes with the step",
    "_keystream": "cryptographically secure random bytes",
    "_containers": "batches in any container: their sizes and parts",
    "_progress": "progress bars of audits and the command line",
    "_reports": "the form of reports, and of values in words",
    "_ranks": "this process's rank, and the number of ranks",
    "_checks": "refusal of numbers out of range",
    "_tuning": "sizes and counts chosen for speed and memory",
    "_typing": "names of types",
    "exceptions": "the errors",
}
ON_THE_WAY = {"optimizer", "_mechanism", "per_sample", "clipping", "ledger", "noise"}
ON_THE_WAY |= {"distributed", "evidence", "sampling"}
# Nearly every room imports these; arrows to them would hide the others.
QUIET = {"_checks", "_tuning", "_typing", "exceptions"}


def layers() -> list[list[str]]:
    """Return the rooms of each layer, from the top, as the contract has them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c["type"] == "layers")
    return [[room.strip() for room in row.split("|")] for row in contract["layers"]]


def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room of ``dp`` imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in files():
        room = _room(path)
        if room:
            found[room] |= {r for p in imports(path) if (r := _room(p))} - {room}
    return dict(found)


def reduced(drawn: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Leave out every arrow that others lead along as well."""
    return {
        room: {
            other
            for other in below
            if not any(other in _all_below(drawn, b) for b in below - {other})
        }
        for room, below in drawn.items()
    }


def table() -> str:
    """Return the table of rooms in Markdown, from the top layer to the bottom."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for path in files():
        if room := _room(path):
            sizes[room].append(code_lines(path))
    rows = [
        "| room | what it is for | files | lines of code |",
        "| --- | --- | --: | --: |",
    ]
    for layer in layers():
        rows += [
            f"| `{r}` | {ROOMS[r]} | {len(sizes[r])} | {sum(sizes[r])} |" for r in layer
        ]
    return "\n".join(rows)


def contradictions() -> list[str]:
    """Return the rooms that are in the contract and not here, or the other way."""
    contract = {room for layer in layers() for room in layer}
    return [
        *(f"say in ROOMS what {room} is for" for room in sorted(contract - set(ROOMS))),
        *(f"{room} in ROOMS is no layer" for room in sorted(set(ROOMS) - contract)),
    ]


def rewritten(page: str) -> str:
    """Return the page with the table as it is now."""
    before, _, rest = page.partition(f"{_FIRST}\n")
    _, _, after = rest.partition(_LAST)
    return f"{before}{_FIRST}\n\n{table()}\n\n{_LAST}{after}"


def picture() -> str:
    """Return the rooms by layer, with arrows to what they import, as SVG."""
    return draw(
        layers(),
        reduced({room: below - QUIET for room, below in arrows().items()}),
        title="The rooms of dp in their layers, and what each imports",
        marked=ON_THE_WAY,
    )


def _room(path: str) -> str:
    """Return the room of ``dp`` that a file is in; nothing for any other file."""
    package, _, rest = path.partition("/")
    if package != "dp" or rest == "__init__.py":
        return ""
    return rest.split("/")[0].removesuffix(".py")


def _all_below(drawn: Mapping[str, set[str]], room: str) -> set[str]:
    found, upcoming = set[str](), set(drawn.get(room, ()))
    while upcoming:
        below = upcoming.pop()
        found.add(below)
        upcoming |= drawn.get(below, set()) - found
    return found


if __name__ == "__main__":
    wrong = contradictions()
    if wrong:
        sys.exit("\n".join(wrong))
    PAGE.write_text(rewritten(PAGE.read_text("utf-8")), encoding="utf-8")
    PICTURE.write_text(picture(), encoding="utf-8")
