"""What is loaded, and when: the accountant and the command line answer without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dp


pytestmark = pytest.mark.slow


HEAVY = ("torch", "dp_accounting", "scipy", "matplotlib", "mpmath", "numba", "rich")


def loaded_by(code):
    """Return the names of the modules that a fresh interpreter holds after *code*."""
    report = "; import sys; sys.stderr.write(' '.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code + report],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(run.stderr.split())


def command(*arguments):
    """Return code that runs the command line and goes on after it."""
    return (
        "import contextlib\nfrom dp.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({list(arguments)!r})\n"
        "pass"
    )


RUN = ("--sampling-probability", "0.1", "--steps", "10")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import dp", HEAVY),
        ("import dp; dp.accounting, dp.Release, dp.Schedule, dp.PrivacyError", HEAVY),
        ("import dp.accounting, dp.calibration", (*HEAVY, "dp._keystream")),
        (command("--help"), set(HEAVY) - {"rich"}),
        (command("train", "--help"), set(HEAVY) - {"rich"}),
        (
            command("epsilon", "--noise-multiplier", "1", *RUN),
            ("torch", "matplotlib", "dp.sampling", "dp.noise", "dp._keystream"),
        ),
        (command("calibrate", "--epsilon", "1", *RUN), ("torch", "matplotlib")),
        ("import dp; dp.DPOptimizer", ("rich", "matplotlib", "numba", "dp.audit")),
    ],
)
def test_what_is_not_needed_is_not_loaded(code, absent):
    """Each door loads its own room; the interpreter does not hold the others'."""
    loaded = loaded_by(code)

    assert not loaded & set(absent)


def test_what_is_needed_is_loaded():
    """The look at a fresh interpreter sees torch where torch is used."""
    assert {"torch", "dp.audit"} <= loaded_by("import dp; dp.DPOptimizer, dp.audit")


def test_every_public_name_is_declared_alike():
    """Type checkers read the imports, the interpreter reads the table: both are one."""
    tree = ast.parse(Path(dp.__file__).read_text("utf-8"))
    declared = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = {name: f"dp.{module}" for name, module in dp._HOME.items()}

    assert declared == {**table, "audit": "dp"}
    assert sorted(declared) == list(dp.__all__)


@pytest.mark.parametrize("name", dp.__all__)
def test_every_public_name_is_there(name):
    """It is found, kept and listed."""
    value = getattr(dp, name)

    assert value is getattr(dp, name)
    assert name in dir(dp)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    """As of any module, so that ``hasattr`` works."""
    told = "module 'dp' has no attribute 'plan_fro'"
    with pytest.raises(AttributeError, match=told) as found:
        dp.plan_fro  # noqa: B018 -- that it raises

    # By these two Python asks after the name that was meant.
    assert (found.value.name, found.value.obj) == ("plan_fro", dp)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("PrivacyEngine", r"dp\.plan_for"),
        ("make_private", r"dp\.DPOptimizer"),
        ("BatchMemoryManager", r"dp\.split_batch"),
        ("GradSampleModule", "the model itself"),
        ("ModuleValidator", r"dp\.check"),
    ],
)
def test_names_of_opacus_lead_to_what_is_here(name, remedy):
    """Migrating, one tries what one knows."""
    with pytest.raises(AttributeError, match=f"{name}'; in place of .*{remedy}"):
        getattr(dp, name)
    assert not hasattr(dp, name)
