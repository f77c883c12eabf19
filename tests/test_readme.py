"""What the README shows is what happens."""

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser


README = Path(__file__).parents[1] / "README.md"
BLOCKS = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(README).examples())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_a_block_of_the_readme_runs(block):
    """Every Python block shows what it says."""
    block.evaluate()


def test_the_readme_has_blocks():
    """The test above has something to run: an example of each package at least."""
    assert len(BLOCKS) >= 2
