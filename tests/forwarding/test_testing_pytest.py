"""Laws as tests of pytest: one each, with ids, skips, expected failures, a summary."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from forwarding import _pytest_plugin
from forwarding.testing import LawBrokenError, law_tests


pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
WRAPPERS = """
from forwarding.testing import law_tests


class Engine:
    def __init__(self):
        self.rpm = 900

    def start(self, key):
        return self


class NoDelete:
    def __init__(self, inner):
        self.inner = inner

    @property
    def rpm(self):
        return self.inner.rpm

    @rpm.setter
    def rpm(self, value):
        self.inner.rpm = value


class Copied:
    def __init__(self, inner):
        self.inner, self.rpm = inner, inner.rpm

"""


def run(tmp_path, test, *options):
    """Return what pytest prints of a file with these wrappers, and its exit status."""
    (tmp_path / "test_laws_of_cars.py").write_text(WRAPPERS + test)
    (tmp_path / "pytest.toml").write_text("[pytest]\nstrict = true\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rA", "--tb=short"),
            *("-p", "forwarding._pytest_plugin", "-p", "no:cacheprovider", *options),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout, done.returncode


def test_each_law_is_a_test_and_one_mistake_is_one_failure(tmp_path):
    """What follows from the root is expected; the summary counts what is what."""
    told, status = run(tmp_path, 'test_copied = law_tests(Copied, Engine, ["rpm"])\n')

    assert status == pytest.ExitCode.TESTS_FAILED
    assert [
        line.partition(" - ")[0]
        for line in told.splitlines()
        if line.startswith("FAILED")
    ] == ["FAILED test_laws_of_cars.py::test_copied[put-get]"]
    assert "PASSED test_laws_of_cars.py::test_copied[get]" in told
    assert "assert target.rpm is value  # fails: 900 is None" in told
    assert (
        "XFAIL test_laws_of_cars.py::test_copied[no-stale-read] - "
        "follows from 'put-get', which is broken"
    ) in told
    assert "no method among the names" in told
    assert "Copied: " in told.partition("laws of forwarding")[2]
    assert " hold, 1 broken, " in told


def test_the_traceback_of_a_broken_law_is_its_message(tmp_path):
    """The kit's own frames would hide what matters."""
    told, _ = run(tmp_path, 'test_copied = law_tests(Copied, Engine, ["rpm"])\n')

    assert "Why it matters" in told
    assert "_jury.py" not in told


def test_a_waived_law_is_expected_to_fail_for_the_reason_given(tmp_path):
    """And what needs it is skipped."""
    told, status = run(
        tmp_path,
        "test_car = law_tests(\n"
        '    NoDelete, Engine, ["rpm"], waive={"delete": "ticket 12"}\n'
        ")\n",
    )

    assert status == pytest.ExitCode.OK
    assert "XFAIL test_laws_of_cars.py::test_car[delete] - ticket 12" in told
    assert "needs 'delete', which is waived" in told


def test_a_needless_waiver_turns_red_where_it_is_strict(tmp_path):
    """So a waiver goes when its reason goes."""
    told, status = run(
        tmp_path,
        "test_car = law_tests(\n"
        '    NoDelete, Engine, ["rpm"], waive={"delete", "get", "method"}, strict=True\n'
        ")\n",
        *("-k", "get] or delete or method]"),
    )

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "[XPASS(strict)] waived" in told
    assert "FAILED test_laws_of_cars.py::test_car[get]" in told
    assert "FAILED test_laws_of_cars.py::test_car[delete]" not in told


def test_one_law_can_be_picked(tmp_path):
    """By -k, as any test."""
    told, _ = run(
        tmp_path,
        'test_car = law_tests(NoDelete, Engine, ["rpm"])\n',
        *("-k", "half-built"),
    )

    assert "1 passed" in told
    assert "NoDelete: 1 hold\n" in told


def test_laws_may_stand_in_a_class(tmp_path):
    """As a static method."""
    told, _ = run(
        tmp_path,
        "class TestCar:\n"
        '    test_laws = staticmethod(law_tests(NoDelete, Engine, ["rpm"]))\n',
        *("-k", "delete"),
    )

    assert "FAILED test_laws_of_cars.py::TestCar::test_laws[delete]" in told


def test_a_suite_without_laws_has_no_summary_of_them(tmp_path):
    """The plugin is on in every project of the environment."""
    told, _ = run(tmp_path, "def test_nothing(): pass\n")

    assert "laws of forwarding" not in told


def test_a_wrong_option_is_told_when_the_file_is_read(tmp_path):
    """Wrong names by each test."""
    told, status = run(
        tmp_path, 'test_car = law_tests(NoDelete, Engine, ["rpm"], waive={"typo"})\n'
    )

    assert status != pytest.ExitCode.OK
    assert "waive names ['typo']; the laws are get, put-get" in told


def loaded_by(module):
    """Return the modules that are loaded in a process that imports one."""
    program = f"import sys, {module}; print(*sys.modules)"
    # Measuring the coverage of the process would load modules of its own.
    env = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_plugin_costs_no_more_than_the_package():
    """Pytest loads it in every project of the environment, with laws or without."""
    plugin = {"forwarding._pytest_plugin"}

    assert loaded_by("forwarding._pytest_plugin") == loaded_by("forwarding") | plugin


def test_pytest_is_told_of_the_plugin():
    """By the same name as its module, so that ``-p`` does not load it twice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    entries = project["project"]["entry-points"]["pytest11"]
    assert entries == {_pytest_plugin.__name__: _pytest_plugin.__name__}


class Engine:
    def __init__(self):
        self.rpm = 900
        self.note = [1]


class Copied:
    def __init__(self, inner):
        self.inner, self.rpm, self.note = inner, inner.rpm, inner.note


OF_COPIED = law_tests(
    Copied, Engine, ["rpm", "note"], waive={"delete": "ticket 12", "no shadow": "13"}
)


@pytest.mark.parametrize(
    ("law", "outcome", "message"),
    [
        ("put-get", LawBrokenError, "Copied breaks the law 'put-get'"),
        ("no shadow", LawBrokenError, "breaks the law 'no shadow'"),  # marked
        ("put-put", pytest.xfail.Exception, "follows from 'put-get'"),
        ("patch", pytest.skip.Exception, "needs 'delete', which is waived"),
        ("method", pytest.skip.Exception, "no method among the names"),
    ],
)
def test_the_outcome_of_a_law_is_an_outcome_of_pytest(law, outcome, message):
    """The test that the function returned is, called as pytest calls it."""
    with pytest.raises(outcome, match=message):
        OF_COPIED(law)


def test_a_law_that_is_kept_passes():
    """It returns."""
    OF_COPIED("get")


def test_the_plugin_counts_what_a_session_reports():
    """In the process of the controller, also if workers ran the tests."""

    class Item:
        function = OF_COPIED

        def __init__(self):
            self.user_properties = []

    class Terminal:
        def __init__(self, stats):
            self.stats, self.lines = stats, []

        def section(self, title):
            self.lines.append(title)

        line = section

    mine, foreign = Item(), Item()
    foreign.function = None
    _pytest_plugin.pytest_itemcollected(mine)
    _pytest_plugin.pytest_itemcollected(foreign)
    full, empty = Terminal({"passed": [mine, mine, foreign]}), Terminal({})
    _pytest_plugin.pytest_terminal_summary(full)
    _pytest_plugin.pytest_terminal_summary(empty)

    assert full.lines == ["laws of forwarding", "Copied: 2 hold"]
    assert empty.lines == []
