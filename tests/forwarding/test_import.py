"""Importing the package is cheap, and brings nothing that it does not need."""

import os
import subprocess
import sys

import pytest


HEAVY = ("torch", "hypothesis", "wrapt", "numpy", "dataclasses", "inspect", "ast")
SCRIPT = "import sys, {}; print(*(m for m in {!r} if m in sys.modules))"


def loaded(module):
    command = [sys.executable, "-c", SCRIPT.format(module, HEAVY)]
    # Measuring the coverage of the process would load modules of its own.
    env = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return run.stdout


def test_importing_forwarding_loads_nothing_heavy():
    """Neither the optional dependencies, nor the slow modules of the library."""
    assert loaded("forwarding").split() == []


@pytest.mark.parametrize(
    ("module", "heavy"), [("forwarding.proxy", "wrapt"), ("dataclasses", "inspect")]
)
def test_a_heavy_module_would_be_seen(module, heavy):
    """The test above can fail."""
    assert heavy in loaded(module).split()
