"""What the README shows is what happens, and what it points to is there."""

import re
import tomllib
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

import dp
import forwarding


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(README).examples())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_a_block_of_the_readme_runs(block):
    """Every Python block shows what it says."""
    block.evaluate()


def test_the_readme_has_blocks():
    """The test above has something to run: an example of each package at least."""
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_to_a_file_leads_to_one(name):
    """Sphinx checks the links of the pages, and nothing else those of these files.

    Pictures are links, too.
    """
    text = (ROOT / name).read_text("utf-8")

    for link in re.findall(r'(?:\]\(|src=")(?!https?:)([^)"#]+)', text):
        assert (ROOT / link).exists(), link


def test_the_citation_is_of_this_version():
    """It is raised together with the version of the distribution."""
    citation = (ROOT / "CITATION.cff").read_text("utf-8")

    assert f"\nversion: {forwarding.__version__}\n" in citation


def test_the_packages_and_the_distribution_have_one_version():
    """``forwarding`` states it; everything else reads it there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "forwarding/__init__.py"
    assert dp.__version__ == forwarding.__version__
