"""The glossary speaks of what the code has."""

import re

from source_tree import ROOT, files


PAGE = (ROOT / "docs/reference/glossary.md").read_text("utf-8")
SOURCE = "\n".join((ROOT / path).read_text("utf-8") for path in files())


def test_every_name_that_is_spelled_as_code_is_in_the_code():
    """A term that was renamed in the code is renamed here."""
    names = set(re.findall(r"`([A-Za-z_.]+)(?:\([^`]*\))?`", PAGE)) - {"p.grad", "C"}

    assert len(names) > 30
    for name in names:
        last = name.rsplit(".", 1)[-1]
        assert re.search(rf"\b{last}\b", SOURCE), name


def test_every_section_is_in_alphabetical_order():
    """A term is found where a reader looks for it."""
    for section in re.findall(r"```\{glossary\}\n(.*?)```", PAGE, re.DOTALL):
        terms = re.findall(r"^(\w.*)$", section, re.MULTILINE)

        assert terms == sorted(terms, key=str.lower)
