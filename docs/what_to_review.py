"""Write the tables of ``explanation/what-to-review.md``: what an epsilon rests on.

Run ``python docs/what_to_review.py`` after a change of ``dp``; the tests hold both
equal. The claims are in ``review_claims.py``.
"""

import ast
import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from review_claims import (
    CERTIFICATE,
    GPU,
    MOST_LINES,
    NOT_BELIEVED,
    ONE_PROCESS,
    OPTIONS,
    RANKS,
    REFUSALS,
    ROOTS,
    TABLES,
    UNCOMPARED,
    UNITS,
    Claim,
)
from source_tree import ROOT, code_lines, files, reachable


PAGE = ROOT / "docs/explanation/what-to-review.md"
MUTANTS = ROOT / "tests/benchmarks/mutant_table.py"
BEYOND: dict[str, Mapping[str, Claim]] = {
    "Releases that are not compared, and passes and rounds, add": UNCOMPARED,
    "Refusals of losses that depend on other examples' data add": REFUSALS,
    "Units of several rows, or along no axis, add": UNITS,
    "Compiled models, own rules and other options add": OPTIONS,
    "A table whose columns are scaled privately adds": TABLES,
    "A certificate adds": CERTIFICATE,
    "A GPU adds": GPU,
    "Several ranks add": RANKS,
}


def believed() -> dict[str, Claim]:
    """Return the claim of every file that must be believed for some run."""
    return {
        path: claim
        for table in (*ONE_PROCESS.values(), *BEYOND.values())
        for path, claim in table.items()
    }


def contradictions(
    claims: Mapping[str, Claim] | None = None,
    excused: Iterable[str] = tuple(NOT_BELIEVED),
) -> list[str]:
    """Return how the tables differ from the tree, one sentence each."""
    claims, excused = believed() if claims is None else claims, tuple(excused)
    step = {path for path in reachable(ROOTS) if not _only_passes_names_on(path)}

    def is_excused(path: str) -> bool:
        return any(
            path == entry or (entry.endswith("/") and path.startswith(entry))
            for entry in excused
        )

    return [
        *(
            f"{path} can be reached by a private step: state in docs/review_claims.py"
            " what must be true of it, or in NOT_BELIEVED what checks it"
            for path in sorted(step - set(claims))
            if not is_excused(path)
        ),
        *(
            f"{path} is in docs/review_claims.py twice: believed, and not believed"
            for path in sorted(claims)
            if is_excused(path)
        ),
        *(
            f"{path} is in docs/review_claims.py, and no private step reaches it (any"
            " more): was it moved or removed?"
            for path in sorted(set(claims) - step)
        ),
        *(
            f"{entry} is in NOT_BELIEVED of docs/review_claims.py, and there is no such"
            " file that a private step reaches: was it moved or removed?"
            for entry in excused
            if not any(
                path == entry or (entry.endswith("/") and path.startswith(entry))
                for path in step
            )
        ),
    ]


def mutants_by_file() -> dict[str, list[int]]:
    """Return the numbers of the mutants of each file.

    Raises:
        ValueError: If the text of a mutant is not in exactly one place.
    """
    numbers: dict[str, list[int]] = {}
    sources = {
        path: (ROOT / path).read_text("utf-8")
        for path in files()
        if path.startswith("dp/")
    }
    mutants = runpy.run_path(str(MUTANTS))["MUTANTS"]
    for number, mutant in enumerate(mutants, start=1):
        places = [
            path
            for path, source in sources.items()
            if path.startswith(f"dp/{mutant.place}") and mutant.old in source
        ]
        if len(places) != 1:
            raise ValueError(
                f"mutant {number} ({mutant.breaks}) is in {len(places)} files below"
                f" dp/{mutant.place}, not in one: mend tests/benchmarks/mutant_table.py"
            )
        numbers.setdefault(places[0], []).append(number)
    return numbers


def total(paths: Iterable[str]) -> int:
    """Return how many lines of code some files have together."""
    return sum(map(code_lines, paths))


def one_process() -> dict[str, Claim]:
    """Return the claims that every run rests on."""
    return {
        path: claim for table in ONE_PROCESS.values() for path, claim in table.items()
    }


def tables() -> str:
    """Return everything on the page that is computed, in Markdown."""
    return "\n".join(
        [
            *_summary(),
            "",
            "## One process on a CPU",
            *_sections(ONE_PROCESS, "###"),
            *_sections(BEYOND, "##"),
            "",
            "## What need not be believed",
            "",
            "A private step reaches these files too.",
            "",
            "| file | lines | why not | tests |",
            "| --- | --: | --- | --- |",
            *_not_believed(),
            "",
            *_not_reached(),
        ]
    )


def rewritten(page: str) -> str:
    """Return the page with the tables as they are now."""
    before, _, _ = page.partition("<!-- tables -->\n")
    return f"{before}<!-- tables -->\n\n{tables()}\n"


def _summary() -> Iterator[str]:
    alone = one_process()
    yield "| to believe for | files | lines of code |"
    yield "| --- | --: | --: |"
    for title, table in ONE_PROCESS.items():
        yield f"| {title[0].lower()}{title[1:]} | {len(table)} | {total(table)} |"
    yield f"| **one process on a CPU** | **{len(alone)}** | **{total(alone)}** |"
    for title, table in BEYOND.items():
        yield f"| {title[0].lower()}{title[1:]} | {len(table)} | {total(table)} |"
    everything = believed()
    yield f"| everything | {len(everything)} | {total(everything)} |"


def _sections(sections: Mapping[str, Mapping[str, Claim]], level: str) -> Iterator[str]:
    mutants = mutants_by_file()
    for title, table in sections.items():
        yield f"\n{level} {title}\n"
        yield "| file | lines | what must be true of it | tests | mutants |"
        yield "| --- | --: | --- | --- | --- |"
        for path, claim in table.items():
            numbers = ", ".join(map(str, mutants.get(path, []))) or "none"
            yield (
                f"| `{path.removeprefix('dp/')}` | {code_lines(path)} | {claim.says}"
                f" | {_tests(claim.tests)} | {numbers} |"
            )


def _not_believed() -> Iterator[str]:
    step = reachable(ROOTS)
    for entry, reason in NOT_BELIEVED.items():
        paths = [path for path in step if path.startswith(entry)]
        yield (
            f"| `{entry.removeprefix('dp/')}` | {total(paths)} | {reason.why}"
            f" | {_tests(reason.tests)} |"
        )


def _not_reached() -> Iterator[str]:
    step = reachable(ROOTS)
    rest = {
        "/".join(path.split("/")[1:2])
        for path in files()
        if path.startswith("dp/")
        and path != "dp/__init__.py"
        and path not in step
        and not _only_passes_names_on(path)
    }
    rooms = sorted(room for room in rest if not _room_is_reached(room, step))
    yield "No private step imports these; they call one, or look at one from outside:"
    yield ", ".join(f"`{room.removesuffix('.py')}`" for room in rooms) + "."


def _room_is_reached(room: str, step: set[str]) -> bool:
    return any(path == f"dp/{room}" or path.startswith(f"dp/{room}/") for path in step)


def _tests(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _only_passes_names_on(path: str) -> bool:
    """Whether a package's file imports names and defines nothing."""
    if Path(path).name != "__init__.py":
        return False
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    defines = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    return not any(isinstance(node, defines) for node in ast.walk(tree))


if __name__ == "__main__":
    wrong = contradictions()
    if wrong:
        sys.exit("\n".join(wrong))
    PAGE.write_text(rewritten(PAGE.read_text("utf-8")), encoding="utf-8")
    print(f"{total(one_process())} lines, at most {MOST_LINES}")  # noqa: T201
