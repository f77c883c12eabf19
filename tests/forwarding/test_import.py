"""Importing the package is cheap, and brings nothing that it does not need."""

import os
import subprocess
import sys

import pytest

import forwarding


HEAVY = (
    "torch",
    "hypothesis",
    "wrapt",
    "numpy",
    "dataclasses",
    "inspect",
    "ast",
    "linecache",
)
SCRIPT = "import sys, {}; print(*(m for m in {!r} if m in sys.modules))"


def loaded(module):
    command = [sys.executable, "-c", SCRIPT.format(module, HEAVY)]
    # Measuring the coverage of the process would load modules of its own.
    env = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return run.stdout


def test_importing_forwarding_loads_nothing_heavy():
    """Neither the optional dependencies, nor the slow modules of the library."""
    of_the_interpreter = loaded("sys").split()  # CPython 3.13 loads linecache.

    assert set(loaded("forwarding").split()) <= set(of_the_interpreter)


LATE = ("_coverage", "_module", "_preserved", "_verify", "_stub", "testing")


def test_what_few_programs_use_is_loaded_when_it_is_asked_for():
    """Each name of the package is there all the same, and told by dir()."""
    command = (
        "import sys, forwarding\n"
        "late = [n for n in {!r} if f'forwarding.{{n}}' in sys.modules]\n"
        "names = dir(forwarding)\n"
        "print(late, *(n for n in forwarding.__all__ if n not in names))\n"
        "from forwarding import *\n"
        "print(*(n for n in forwarding.__all__ if n not in globals()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", command.format(LATE)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.split() == ["[]"]


def test_a_name_that_the_package_lacks_is_no_attribute():
    """As of any module."""
    told = "'forwarding' has no attribute 'verifx'"
    with pytest.raises(AttributeError, match=told) as found:
        _ = forwarding.verifx

    # By these two Python asks after the name that was meant.
    assert (found.value.name, found.value.obj) == ("verifx", forwarding)


@pytest.mark.parametrize(
    ("module", "heavy"), [("forwarding.proxy", "wrapt"), ("dataclasses", "inspect")]
)
def test_a_heavy_module_would_be_seen(module, heavy):
    """The test above can fail."""
    assert heavy in loaded(module).split()
