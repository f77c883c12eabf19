"""Every kind of wrapper keeps every law, and the page about it says what is so."""

import os

import forwarding_laws
import forwarding_subjects
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from forwarding.testing import machine_for


OURS = list(forwarding_subjects.ours())
# A proxy's class that travels by value is no proxy any more where wrapt has no C.
BROKEN = "survives cloudpickle" if os.environ.get("WRAPT_DISABLE_EXTENSIONS") else None
FEW = settings(max_examples=10, derandomize=True)
MIXED = settings(
    max_examples=20, stateful_step_count=10, derandomize=True, database=None
)
PAGE = (forwarding_laws.PAGES / "laws.md").read_text()
each_kind = pytest.mark.parametrize("subject", OURS, ids=lambda one: one.label)


def row(judged):
    return forwarding_laws.table([judged]).splitlines()[-1] + "\n"


@pytest.mark.slow
@each_kind
def test_every_kind_of_wrapper_keeps_the_laws_that_the_page_says(subject):
    """All, at one to three layers, but for the proxy that declares nothing."""
    judged = forwarding_laws.judged(subject, FEW)

    is_broken = BROKEN is not None and "TransparentProxy" in subject.label
    expected = [f"{subject.label} breaks {BROKEN!r}"] if is_broken else []

    assert forwarding_laws.unexpected([judged]) == expected
    assert is_broken or row(judged) in PAGE


@each_kind
def test_every_kind_of_wrapper_survives_every_mixture_of_operations(subject):
    """Put, delete, reassign, exchange, copy and pickle, in any order."""
    machine = machine_for(subject.factory, subject.make_target, subject.names)

    run_state_machine_as_test(machine, settings=MIXED)


def test_the_page_lists_the_laws_as_they_are():
    """``python tests/benchmarks/forwarding_laws.py --write`` was run after a change."""
    assert forwarding_laws.rewritten(PAGE, "laws", forwarding_laws.laws()) == PAGE


def test_a_stale_list_on_the_page_would_be_found():
    """The comparison above can fail."""
    assert forwarding_laws.rewritten(PAGE, "laws", "another") != PAGE


@pytest.mark.parametrize(
    ("label", "law"),
    [
        ("copied references", "put-get"),
        ("`__getattr__`", "half-built"),
        ("`__getattr__` and `__setattr__`", "rebound method"),
    ],
)
def test_the_wrappers_that_are_written_first_break_laws(label, law):
    """What the page says of them is judged again too."""
    subjects = {one.label: one for one in forwarding_subjects.homemade()}
    judged = forwarding_laws.judged(subjects[label], FEW)

    assert law in judged.report.named("broken")
    assert row(judged) in PAGE
