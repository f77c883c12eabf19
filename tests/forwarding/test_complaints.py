"""The page of complaints has an outcome and a block for each, and counts them right.

The blocks themselves are run as tests of the page.
"""

import re
from pathlib import Path

import pytest


PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "complaints.md").read_text()


def entries():
    """Return the text of each entry, by its number."""
    parts = re.split(r"^### (\d+)\. ", PAGE, flags=re.MULTILINE)
    return dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))


def test_the_entries_are_numbered_without_a_gap():
    """Thirty-nine reports were collected."""
    assert list(entries()) == list(range(1, 40))


@pytest.mark.parametrize("number", range(1, 40))
def test_each_entry_has_an_outcome_and_one_block_that_checks_something(number):
    """A block without an assertion would show nothing."""
    entry = entries()[number]
    blocks = re.findall(r"```python\n(.*?)```", entry, re.DOTALL)

    assert (
        len(re.findall(r"^Outcome: (?:solved|in part|not)\b", entry, re.MULTILINE)) == 1
    )
    assert len(blocks) == 1
    assert re.search(r"^\s*assert ", blocks[0], re.MULTILINE)


def test_the_outcomes_are_counted_right():
    """The first number a reader sees is that of the entries."""
    outcomes = re.findall(r"^Outcome: (solved|in part|not)\b", PAGE, re.MULTILINE)
    told = [
        f"{count} {word}"
        for word, count in (
            ("are solved", outcomes.count("solved")),
            ("in part", outcomes.count("in part")),
            ("not", outcomes.count("not")),
        )
        if count
    ]

    assert f"\n{', '.join(told)}.\n" in PAGE
