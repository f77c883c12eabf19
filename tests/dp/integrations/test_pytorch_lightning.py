"""Lightning under its other name is made private as well."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("installation", ["beside lightning", "alone"])
def test_both_ways_train_with_the_other_package(tmp_path, installation):
    """A trainer of one package refuses modules of the other."""
    script = Path(__file__).with_name("pytorch_lightning_run.py")
    ended = subprocess.run(
        [sys.executable, script, tmp_path, installation],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "done" in ended.stdout, ended.stderr[-2000:]
