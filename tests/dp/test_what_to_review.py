"""The page of what must be believed is complete, true and not longer than it may be."""

import re

import pytest
import what_to_review
from review_claims import MOST_LINES, NOT_BELIEVED
from source_tree import ROOT, count_code_lines, files, imports, reachable


NAMED = sorted(
    {
        name
        for row in (*what_to_review.believed().values(), *NOT_BELIEVED.values())
        for name in row.tests
    }
)


@pytest.mark.slow
def test_the_page_is_as_its_script_makes_it():
    """``python docs/what_to_review.py`` was run after the last change."""
    page = what_to_review.PAGE.read_text("utf-8")

    assert what_to_review.rewritten(page) == page


@pytest.mark.slow
def test_a_stale_page_would_be_found():
    """The test above can fail."""
    page = what_to_review.PAGE.read_text("utf-8").replace(
        "| `clipping/_rules.py` |", "| |"
    )

    assert what_to_review.rewritten(page) != page


def test_every_file_that_a_step_reaches_is_believed_or_checked():
    """No file is left out, in two tables, or gone."""
    assert what_to_review.contradictions() == []


@pytest.mark.parametrize(
    ("claims", "excused", "said"),
    [
        (
            {"dp/clipping/_rules.py"},
            (),
            "dp/clipping/_rules.py can be reached by a private step",
        ),
        (
            set(),
            ("dp/plan/_plan.py",),
            "dp/plan/_plan.py is in docs/review_claims.py twice",
        ),
        (set(), ("dp/gone.py",), "dp/gone.py is in NOT_BELIEVED"),
    ],
    ids=["left out", "in two tables", "gone"],
)
def test_a_table_that_does_not_fit_the_tree_is_named(claims, excused, said):
    """The test above can fail, and says what to do."""
    left = {k: v for k, v in what_to_review.believed().items() if k not in claims}

    found = what_to_review.contradictions(left, (*NOT_BELIEVED, *excused))

    assert len(found) == 1
    assert said in found[0]


def test_a_claim_about_a_file_that_no_step_reaches_is_named():
    """A file that moved leaves its claim behind."""
    claims = what_to_review.believed()

    (found,) = what_to_review.contradictions({**claims, "dp/cli/_app.py": claims})

    assert "dp/cli/_app.py is in docs/review_claims.py, and no private step" in found


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name):
    """A claim cannot point at a test that was renamed, moved or dropped."""
    file, _, test = name.partition("::")
    source = (ROOT / "tests" / file).read_text("utf-8")

    assert re.search(rf"^def {test}\b", source, re.MULTILINE)


def test_every_file_that_is_believed_has_a_claim_and_a_test():
    """A sentence, and what holds it."""
    for path, claim in what_to_review.believed().items():
        assert claim.says.endswith("."), path
        assert claim.tests, path


def test_what_must_be_believed_does_not_grow_unnoticed():
    """More than was agreed needs a decision, in ``MOST_LINES``."""
    assert what_to_review.total(what_to_review.one_process()) <= MOST_LINES


def test_lines_of_code_are_counted_as_the_page_says():
    """Blank lines, comments and docstrings do not count; strings and brackets do."""
    source = '''\
"""A module."""

# A comment.
NAME = """two
lines"""


def function(
    x,  # An argument.
):
    """What it does,

    and more.
    """
    return x
'''

    assert count_code_lines(source) == 6


@pytest.mark.slow
def test_imports_are_followed_wherever_they_are():
    """Into packages, through submodules, and to what is loaded by a name."""
    assert "dp/ledger/__init__.py" in imports("dp/_mechanism/private_run.py")
    assert "dp/certificate/_json.py" in imports("dp/certificate/_document.py")
    kernels = imports("dp/noise/_device/chacha.py")
    assert "dp/noise/_device/kernels/chacha.py" in kernels
    assert "dp/noise/_device/kernels/chacha.py" in reachable(["dp/noise/__init__.py"])
    assert all(imports(path) <= set(files()) for path in files())
