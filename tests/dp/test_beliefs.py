"""The page of beliefs is as its tables are, and these point at what exists."""

import re

import beliefs
import pytest
from source_tree import ROOT


TESTS = sorted({test for row in beliefs.beliefs() for test in row.tests})


def test_the_page_is_as_its_script_makes_it():
    """``python docs/beliefs.py`` was run after the last change."""
    page = beliefs.PAGE.read_text("utf-8")

    assert beliefs.rewritten(page) == page
    assert beliefs.rewritten(page.replace("| Refused", "|")) == beliefs.rewritten(page)


def test_a_stale_page_would_be_found():
    """The test above can fail."""
    page = beliefs.PAGE.read_text("utf-8").replace("at step 1", "at step 7")

    assert beliefs.rewritten(page) != page


@pytest.mark.parametrize("name", TESTS)
def test_every_test_that_is_named_exists(name):
    """A belief cannot point at a test that was renamed, moved or dropped."""
    file, _, test = name.partition("::")
    source = (ROOT / "tests/dp" / file).read_text("utf-8")

    assert re.search(rf"^def {test}\b", source, re.MULTILINE)


@pytest.mark.parametrize("row", beliefs.STATED, ids=lambda row: row.says[:40])
def test_every_sentence_that_is_quoted_is_in_a_certificate(row):
    """As one of its standard sentences, or of its headings."""
    sources = "".join(
        path.read_text("utf-8")
        for path in (
            *sorted((ROOT / "dp/certificate").glob("*.py")),
            ROOT / "dp/_mechanism/changed_options.py",
            ROOT / "dp/evidence/_texts.py",
            ROOT / "dp/optimizer/_beside.py",
        )
    )
    words = re.sub(r'"\s*\n\s*f?"', "", sources)

    assert row.outcome in words


def test_a_mutant_that_is_gone_is_named(monkeypatch):
    """With the file to mend."""
    row = beliefs.REFUSED[0]._replace(breaks=("nothing at all",))
    monkeypatch.setitem(beliefs.SECTIONS, "Refused", (("a", "b", "c"), (row,)))

    with pytest.raises(ValueError, match="nothing at all"):
        beliefs.tables()


def test_every_check_of_losses_has_its_mutants():
    """A check that nothing plants a defect in would prove nothing."""
    assert [row.says for row in beliefs.CHECKED if not row.breaks] == []
