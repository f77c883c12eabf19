"""The page of mechanisms says what plans accept, and what noise they need."""

import mechanisms
import pytest


@pytest.mark.slow
def test_the_table_of_what_can_be_planned_is_current():
    """``python docs/mechanisms.py`` was run after the last change."""
    page = mechanisms.PAGE.read_text("utf-8")

    assert mechanisms.support() in page


@pytest.mark.slow
def test_a_row_of_noise_is_current(monkeypatch):
    """The quickest of them; the others come from the same function."""
    monkeypatch.setattr(mechanisms, "SETTINGS", ((4, 40, 3.0),))
    page = mechanisms.PAGE.read_text("utf-8")

    assert mechanisms.noise().splitlines()[-1] in page


@pytest.mark.slow
def test_what_is_refused_is_refused_by_the_plan():
    """Both answers occur, so that neither is given to every question."""
    answers = {
        type(way.scheme).__name__: [
            mechanisms.is_accepted(way, changes)
            for changes in mechanisms.QUESTIONS.values()
        ]
        for way in mechanisms.WAYS
    }

    assert answers["CyclicPoisson"] == [True, True, True, False, False, False]
    assert answers["RandomAllocation"] == [True, True, False, False, False, False]
    assert all(answers["PoissonSampling"])


@pytest.mark.slow
def test_tables_are_written_between_their_marks(tmp_path, monkeypatch):
    """What stands around them stays."""
    page = tmp_path / "page.md"
    page.write_text(mechanisms.PAGE.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(mechanisms, "PAGE", page)
    monkeypatch.setattr(mechanisms, "SETTINGS", ())
    monkeypatch.setattr(mechanisms, "CORRELATED", ((8, 0.25, 8.0),))
    monkeypatch.setattr(mechanisms, "support", lambda: "| nothing |")
    monkeypatch.setattr(mechanisms, "rules", lambda: "| no rule |")

    mechanisms.main()

    text = page.read_text("utf-8")
    assert "<!-- support -->\n\n| nothing |\n\n<!-- end of support -->" in text
    assert "<!-- rules -->\n\n| no rule |\n\n<!-- end of rules -->" in text
    assert text.startswith("# Mechanisms\n")
    assert '`plan_for(mechanism="best")` computes all three' in text
    assert "| 8 | 0.25 | 8 |" in text


def test_the_table_of_clipping_rules_is_current():
    """And some rules are refused, so that not every answer is yes."""
    table = mechanisms.rules()

    assert table in mechanisms.PAGE.read_text("utf-8")
    (correlated,) = [line for line in table.splitlines() if "BandedNoise" in line]
    assert correlated.endswith("| yes | refused | refused | refused |")
