"""What the pages quote, count and list is what there is."""

import re
from pathlib import Path

import glance
import pytest

import dp
import forwarding
from forwarding.testing import LAWS


DOCS = Path(__file__).parents[1] / "docs"
LANDING = (DOCS / "index.md").read_text("utf-8")


def described(folder):
    """Return every name that a page of the folder describes on its own."""
    text = "\n".join(page.read_text("utf-8") for page in folder.glob("**/*.md"))
    return set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", text, re.MULTILINE))


@pytest.mark.parametrize("page", glance.PAGES, ids=lambda page: page.stem)
def test_quoted_figures_are_those_of_the_pages_that_measure_them(page):
    """``python docs/glance.py`` was run after the last measurement."""
    text = page.read_text("utf-8")

    assert "| --- |" in text
    assert glance.filled(text) == text


def test_a_figure_that_changed_is_noticed(monkeypatch):
    """The test above can fail."""
    monkeypatch.setitem(glance.PARTS, "speed", lambda: "| 1.00 |")

    assert glance.filled(LANDING) != LANDING


def test_the_whole_optimizer_is_quoted_where_it_was_measured(monkeypatch):
    """Else its engine, and the head of the column says so."""
    head = "| model | {} | Opacus hooks | Opacus ghost | vmap |\n| --- |\n"
    models = "".join(f"| {m} | 1.5 | cannot | 2.0 | 3.0 |\n" for m in glance._MODELS)
    for columns, shown in [("dp", "dp, engine and noise"), ("DPOptimizer", "dp")]:
        page = head.format(columns) + models
        monkeypatch.setattr(glance, "_reference", lambda _, page=page: page)

        table = glance.speed()

        assert table.splitlines()[0].split(" | ")[1] == shown
        assert "| LoRA | 1.5 | 2.0 | 3.0 |" in table


def test_a_page_without_the_table_is_told(monkeypatch):
    """The error names the columns that were looked for."""
    monkeypatch.setattr(glance, "_reference", lambda _: "| model |\n| --- |\n| MLP |\n")

    with pytest.raises(ValueError, match="Opacus hooks"):
        glance.speed()


def test_counts_on_the_landing_page_are_right():
    """Laws and complaints are counted where they are."""
    complaints = (DOCS / "reference/complaints.md").read_text("utf-8")

    assert f"{len(LAWS)} [laws]" in LANDING
    assert f"{len(re.findall(r'^### ', complaints, re.MULTILINE))} public" in LANDING


def test_every_public_name_is_in_the_reference():
    """Under the name by which it is imported."""
    names = {f"dp.{name}" for name in dp.__all__} - {"dp.audit"}
    names |= {f"forwarding.{name}" for name in forwarding.__all__}

    assert names - described(DOCS / "reference") == set()


def test_every_example_is_in_the_gallery():
    """With its source."""
    gallery = (DOCS / "examples.md").read_text("utf-8")

    for example in DOCS.glob("examples/*.py"):
        assert f"literalinclude}} examples/{example.name}\n" in gallery, example.name


def test_the_page_on_citing_names_this_version():
    """As does CITATION.cff."""
    page = (DOCS / "cite.md").read_text("utf-8")

    assert f"version = {{{forwarding.__version__}}}" in page
