"""Judge wrappers, ours and others: ``python tests/benchmarks/forwarding_laws.py``.

Prints the tables of ``docs/reference/laws.md`` and the programs of
``counterexamples.md`` beside it; ``--write`` puts them into the pages. Libraries that are not installed are left out, so install them before writing. Fails
if one of our wrappers breaks a law that the page does not say it breaks.
"""

import argparse
import functools
import sys
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from forwarding_optimizers import optimizers
from forwarding_subjects import Subject, homemade, ours, peers
from forwarding_wild import wild
from hypothesis import settings

from forwarding.testing import LAWS, Report, judge


PAGES = Path(__file__).parents[2] / "docs" / "reference"
SETTINGS = settings(max_examples=25, derandomize=True)
# A proxy that declares nothing has no names on its class, by design. Where nothing
# tells the class of the target, a method cannot repeat its signature.
WAIVED = {
    "`TransparentProxy`": {"class access", "patched method", "rebound method"},
    "`Forwarded`": {"signature"},
    "`Forwarded` with `__slots__`": {"signature"},
}


class Judged(NamedTuple):
    """What was found about one subject, and in how many seconds."""

    title: str
    report: Report
    seconds: float


def judged(subject: Subject, search: settings = SETTINGS) -> Judged:
    """Try every law, on as many layers as the wrapper allows."""
    title = subject.label
    if subject.distribution:
        title += f" {version(subject.distribution)}"
    subject.factory(subject.make_target())  # Imports are not the judgement's.
    before = time.process_time()  # Of this process, whatever else runs beside it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = judge(
            subject.factory,
            subject.make_target,
            subject.names,
            values=subject.values,
            settings=search,
            **subject.more,
        )
    return Judged(title, report, time.process_time() - before)


def table(rows: Iterable[Judged]) -> str:
    """Return one row for each wrapper."""
    lines = ["| wrapper | layers | keeps | breaks | causes |", "|---|---|---|---|---|"]
    for title, report, _ in rows:
        broken = report.named("broken")
        kept = len(report.named("holds"))
        causes = ", ".join(cause(report, root) for root in report.roots)
        lines.append(
            f"| {title} | {report.depth} | {kept} | {len(broken)} | {causes} |"
        )
    return "\n".join(lines)


def cause(report: Report, root: str) -> str:
    """Return a root, and how many laws are broken because of it."""
    followers = len(report.follow(root))
    return f"{root} (+ {followers})" if followers else root


def counterexamples(rows: Iterable[Judged]) -> str:
    """Return, for each wrapper that breaks laws, the shortest program for each cause."""
    return "\n\n".join(
        f"## {title}\n\n" + "\n\n".join(programs(report))
        for title, report, _ in rows
        if report.roots
    )


def programs(report: Report) -> Iterator[str]:
    for root in report.roots:
        followers = report.follow(root)
        so = f"; so are {', '.join(followers)}" if followers else ""
        yield f"*{root}*{so}\n\n```text\n{report[root].detail}\n```"


def cost(rows: Sequence[Judged]) -> str:
    """Return how long the judgements took."""
    seconds = sorted(row.seconds for row in rows)
    return (
        f"{len(rows)} wrappers were judged by {len(LAWS)} laws: in the median "
        f"{seconds[len(seconds) // 2]:.2f} s of processor time each, "
        f"the slowest in {seconds[-1]:.1f} s."
    )


def laws() -> str:
    """Return every law, and why it matters."""
    lines = ["| law | what it says | why it matters |", "|---|---|---|"]
    for law in LAWS.values():
        why = " ".join(textwrap.dedent(law.why).split())
        lines.append(f"| {law.name} | {law.statement} | {why} |")
    return "\n".join(lines)


def rewritten(page: str, mark: str, text: str) -> str:
    """Return the page with the text between its two marks."""
    before, start, rest = page.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end of {mark} -->")
    return f"{before}{start}\n{text}\n\n{end}{after}" if end else page


def unexpected(rows: Iterable[Judged]) -> list[str]:
    """Return what our own wrappers break without saying so."""
    return [
        f"{title} breaks {name!r}"
        for title, report, _ in rows
        for name in report.named("broken")
        if name not in WAIVED.get(title, ())
    ]


def main() -> None:
    """Judge, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"fill {PAGES}")
    options = parser.parse_args()
    own = [judged(subject) for subject in ours()]
    others = [judged(subject) for subject in (*homemade(), *peers())]
    around_theirs = [judged(subject) for subject in wild()]
    around_torch = [judged(subject) for subject in optimizers()]
    parts = {
        "laws": laws(),
        "ours": table(own),
        "peers": table(others),
        "wild": table(around_theirs),
        "optimizers": table(around_torch),
        "counterexamples": counterexamples([*others, *around_theirs, *around_torch]),
    }
    every = [*own, *others, *around_theirs, *around_torch]
    parts["cost"] = cost(every)
    print("\n\n".join(parts.values()))  # noqa: T201
    for title, _, seconds in every:
        print(f"{seconds:5.2f} s  {title}")  # noqa: T201
    if options.write:
        for page in (PAGES / "laws.md", PAGES / "counterexamples.md"):
            filled = functools.reduce(
                lambda text, part: rewritten(text, *part),
                parts.items(),
                page.read_text(),
            )
            page.write_text(filled)
    surprises = unexpected([*own, *around_torch[:2]])
    if surprises:
        sys.exit("\n".join(surprises))


if __name__ == "__main__":
    main()
