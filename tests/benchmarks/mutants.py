"""Break ``dp`` in one line at a time, and see that a test notices.

    python tests/benchmarks/mutants.py            # all
    python tests/benchmarks/mutants.py 3 17       # some, by number
    python tests/benchmarks/mutants.py --missing  # those of which the page knows nothing

Their rows are written into docs/reference/mutants.md as soon as they are known; those of
the others stay.

Each mutant is applied to a copy of the tree, and the tests that are named for it run
there until the first one fails; the one that noticed it last time comes first. They
run under both of hypothesis' profiles, and both must notice: a derandomised search may
miss what a random one finds, and a random one that found it once may miss it the next
time. A mutant whose text does not occur exactly once, tests that cannot run, or a test
that fails without its mutant, too, stop the command: they would prove nothing. The
exit code is 1 if a mutant survives.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutant_table import MUTANTS, Mutant


ROOT = Path(__file__).parents[2]
PAGE = Path("docs/reference/mutants.md")
COPIED = ("dp", "docs", "forwarding", "tests", "pyproject.toml")
TIMEOUT = 900  # Seconds for the tests of one mutant.
FAILED, HUNG = 1, -1
SURVIVES, NOT_RUN = "survives", "not run"
PROFILES = ("ci", "dev")  # Of hypothesis: derandomised, and random.
PYTEST = (
    "-x",
    "-q",
    "-pno:cacheprovider",
    "-Wignore::pytest.PytestAssertRewriteWarning",  # Preloaded, and not rewritten.
)

# Imported once, so that every mutant's process, which is a fork, has them already.
PRELOADED = (
    "torch",
    "torch.distributed",
    "torch.utils.data",
    "numpy",
    "scipy.stats",
    "hypothesis",
    "pytest",
    "rich.progress",
    "typer",
    "mpmath",
    "dp_accounting.pld.pld_privacy_accountant",
    "dp_accounting.rdp.rdp_privacy_accountant",
)

HEAD = """\
# Mutants

A test suite is worth what it notices.
Each of these {number} mutants breaks `dp` in one line, as bugs in the field did.
The suite notices {killed} of them, whether Hypothesis derandomises its examples or draws new ones;
the last column is the test that fails first.
A row is from the last time that its mutant was run; a new one is run with the change that brings it.
For comparison, 32 mutants of this kind were made of Opacus 1.6.0, and its own suite noticed 15 of them.

```console
$ python tests/benchmarks/mutants.py
```

writes this page, in half an hour on two cores.
A mutant whose text is no longer there stops the command.

| # | where | what is wrong then | first test that fails |
|---|---|---|---|"""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    number: int
    mutant: Mutant
    killer: str | None
    seconds: float


def mutated(root: Path, mutant: Mutant, *, write: bool) -> Path:
    """Apply a mutant below *root* if *write*; return the file that it is in."""
    places = [
        path
        for path in sorted((root / "dp").rglob("*.py"))
        if str(path.relative_to(root / "dp")).startswith(mutant.place)
        and mutant.old in path.read_text()
    ]
    count = sum(path.read_text().count(mutant.old) for path in places)
    if count != 1 or "\n" in mutant.old + mutant.new:
        sys.exit(f"{mutant.place}: {mutant.old!r} occurs {count} times, not once")
    (path,) = places
    if write:
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
    return path


def run_tests(folder: Path, tests: list[str], log: Path, profile: str) -> int:
    """Run tests in a forked process that imports the packages of *folder*."""
    child = os.fork()
    if child == 0:
        _be_pytest(folder, tests, log, profile)
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG


def _be_pytest(folder: Path, tests: list[str], log: Path, profile: str) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ.update(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
        os.environ["HYPOTHESIS_PROFILE"] = profile
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        import pytest  # noqa: PLC0415 -- imported by the parent already

        paths = [f"tests/dp/{name}" for name in tests]
        code = int(pytest.main([*PYTEST, *paths]))
    except BaseException:  # noqa: BLE001 -- the log is where it is looked for
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def judged(number: int, mutant: Mutant, root: Path, known: str | None) -> Verdict:
    """Apply one mutant to a copy, and run its tests, *known* first.

    The killer is the one of the last profile; without one in each there is none.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        _copy(root, folder)
        mutated(folder, mutant, write=True)
        killer = known
        for profile in PROFILES:
            killer = _killer_under(profile, folder, mutant, killer)
            if killer is None:
                break
    return Verdict(number, mutant, killer, time.monotonic() - start)


def _killer_under(
    profile: str, folder: Path, mutant: Mutant, known: str | None
) -> str | None:
    """Return the test that notices the mutant in *folder*, of which *known* is tried."""
    log = folder / "log"
    killer = known and _killer(run_tests(folder, [known], log, profile), log)
    if killer:
        return killer
    code = run_tests(folder, mutant.tests.split(), log, profile)
    killer = _killer(code, log)
    if code != 0 and killer is None:
        text = log.read_text(errors="replace")[-3000:]
        sys.exit(
            f"the tests of the mutant {mutant.breaks!r} could not run ({code}):\n{text}"
        )
    return killer


def _killer(code: int, log: Path) -> str | None:
    """Return the test that failed first, if one did."""
    text = log.read_text(errors="replace")
    failed = re.search(
        r"^(?:FAILED|ERROR) tests/dp/(\S+?)(?:\[|$| - )", text, re.MULTILINE
    )
    return failed[1] if code == FAILED and failed else None


def last_killers(root: Path) -> dict[str, str]:
    """Return what the page says: the test that noticed, by what it noticed."""
    path = root / PAGE
    rows = re.findall(
        r"^\| \d+ \| `[^`]+` \| (.*) \| (.*) \|$",
        path.read_text() if path.exists() else "",
        re.MULTILINE,
    )
    return {
        breaks: found.strip("`*") for breaks, found in rows if found != _shown(NOT_RUN)
    }


def _copy(root: Path, folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=ignored)
        else:
            shutil.copy(root / name, folder / name)


def check_that_killers_pass(verdicts: list[Verdict], root: Path) -> None:
    """Stop if a test that noticed a mutant fails on the tree as it is."""
    killers = sorted({v.killer for v in verdicts if v.killer})
    with tempfile.TemporaryDirectory(prefix="no-mutant-") as name:
        folder = Path(name)
        _copy(root, folder)
        log = folder / "log"
        for profile in PROFILES:
            if run_tests(folder, killers, log, profile) != 0:
                sys.exit(f"tests fail without a mutant:\n{log.read_text()[-3000:]}")


def _test(known: dict[str, str], mutant: Mutant) -> str | None:
    killer = known.get(mutant.breaks)
    return None if killer == SURVIVES else killer


def _shown(killer: str) -> str:
    return f"**{killer}**" if killer in {SURVIVES, NOT_RUN} else f"`{killer}`"


def page(killers: dict[str, str]) -> Iterator[str]:
    """Yield the lines of the page; *killers* are by what they notice."""
    rows = [(mutant, killers.get(mutant.breaks, NOT_RUN)) for mutant in MUTANTS]
    killed = sum(killer not in {SURVIVES, NOT_RUN} for _, killer in rows)
    yield HEAD.format(number=len(rows), killed=killed)
    for number, (mutant, killer) in enumerate(rows, start=1):
        yield f"| {number} | `{mutant.place}` | {mutant.breaks} | {_shown(killer)} |"


def write(killers: dict[str, str], root: Path) -> None:
    """Write the page."""
    text = "\n".join(page(killers)) + "\n"
    (root / PAGE).write_text(text, encoding="utf-8")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "numbers", nargs="*", type=int, help="which mutants; all if none"
    )
    parser.add_argument("--missing", action="store_true", help="what is not known")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to break")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in PRELOADED:
        __import__(name)
    known = last_killers(arguments.root)
    numbered = [
        (number, mutant)
        for number, mutant in enumerate(MUTANTS, start=1)
        if (not arguments.numbers or number in arguments.numbers)
        and not (arguments.missing and mutant.breaks in known)
    ]
    for mutant in MUTANTS:
        mutated(arguments.root, mutant, write=False)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pending = [
            pool.submit(judged, number, mutant, arguments.root, _test(known, mutant))
            for number, mutant in numbered
        ]
        verdicts = []
        for future in pending:
            verdict = future.result()
            verdicts.append(verdict)
            known[verdict.mutant.breaks] = verdict.killer or SURVIVES
            write(known, arguments.root)
            print(  # noqa: T201 -- a command
                f"{verdict.number:3} {verdict.seconds:5.0f} s"
                f" {verdict.killer or 'SURVIVES'}: {verdict.mutant.breaks}",
                flush=True,
            )
    if verdicts:
        check_that_killers_pass(verdicts, arguments.root)
    return int(any(verdict.killer is None for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
