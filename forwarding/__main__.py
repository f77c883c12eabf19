"""Command line: ``python -m forwarding stub package.module [--check]``."""

import argparse
import sys
from collections.abc import Sequence

from forwarding._stub import stub


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m forwarding")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "stub",
        help="tell type checkers which names the classes of a module forward in bulk",
    )
    command.add_argument("module", nargs="+", help="dotted name, importable from here")
    command.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if a module's source is not up to date",
    )
    options = parser.parse_args(arguments)
    outdated = [
        name for name in options.module if not stub(name, write=not options.check)
    ]
    for name in outdated:
        done = "is not up to date; run" if options.check else "was rewritten by"
        print(f"{name} {done} python -m forwarding stub {name}")  # noqa: T201
    return int(bool(outdated) and options.check)


if __name__ == "__main__":
    sys.exit(main())
