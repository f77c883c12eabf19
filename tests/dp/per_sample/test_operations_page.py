"""The page that lists the operations says what the rules say."""

import runpy
from pathlib import Path


DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_is_as_the_rules_are():
    """``python docs/operations.py`` was run after the last change."""
    generator = runpy.run_path(str(DOCS / "operations.py"))
    page = (DOCS / "reference" / "operations.md").read_text()

    assert generator["rewritten"](page) == page


def test_the_picture_is_as_its_script_is():
    """The picture is drawn by the same command."""
    generator = runpy.run_path(str(DOCS / "operations.py"))

    assert (
        generator["picture"]() == (DOCS / "explanation" / "the-engine.svg").read_text()
    )
