"""That plans, guarantees, certificates and loaders say what they are."""

import html
from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.data import TensorDataset

import dp
from dp._reports import bound
from dp.certificate import Certificate
from dp.ledger import Ledger


DATA = TensorDataset(torch.randn(37, 2))


def plan(**changes):
    numbers = {
        "sampling": dp.PoissonSampling(sampling_probability=0.25),
        "noise_multiplier": 2.5,
        "max_grad_norm": 1.0,
        "expected_batch_size": 9.25,
        "steps": 20,
        "target_delta": 1e-5,
        "unit_of_privacy": "one <b>patient</b>",
    }
    return dp.PrivacyPlan(**{**numbers, **changes})


def certificate(**changes):
    ledger = Ledger(plan(**changes))
    ledger.reserve(
        sampling_probability=0.25,
        noise_multiplier=ledger.plan.noise_multiplier,
        max_grad_norm=1.0,
    )
    return Certificate.of(ledger, noise=dp.GaussianNoise(), num_parameters=10)


def test_a_plan_says_its_numbers():
    """Those that were given, under the names that they were given by."""
    assert str(plan()) == (
        "PrivacyPlan: sampling PoissonSampling(sampling_probability=0.25),"
        " noise multiplier 2.5, max grad norm 1, expected batch size 9.25, steps 20,"
        " target delta 1e-05, unit of privacy one <b>patient</b>"
    )
    assert "target epsilon 3, " in str(plan(target_epsilon=3.0))
    assert repr(plan()).startswith("PrivacyPlan(sampling=PoissonSampling(")


def test_a_guarantee_says_what_holds():
    """Both bounds, and which is stated; of replacements there is one."""
    guarantee = plan(neighboring_relation="replace_one").guarantee()

    assert str(guarantee).startswith(
        f"Guarantee: epsilon {bound(guarantee.epsilon)}, delta"
    )
    assert "accountant PLD" in str(guarantee)
    assert "epsilon rdp none" in str(guarantee)


@pytest.mark.slow
def test_a_certificate_is_a_paragraph():
    """The claim, for whom it is, and what it means; the document is ``to_text``."""
    stated = certificate(group_size=2)
    text = str(stated)

    assert text.startswith(f"Certificate: epsilon = {bound(stated.epsilon)} at delta")
    assert "(PLD), for one <b>patient</b>, any 2 at once (add_or_remove_one), " in text
    assert ", after 1 step. Released: the model" in text
    assert "whether any 2 units were in the data" in text
    assert "\n" not in text
    assert "NOT PRIVATE" in str(certificate(noise_multiplier=0.0))


@pytest.mark.parametrize(
    "value",
    [plan(), plan().guarantee(), certificate()],
    ids=["plan", "guarantee", "certificate"],
)
def test_notebooks_show_a_table(value):
    """Of the same facts, with the words of users escaped."""
    table = value._repr_html_()

    assert table.startswith("<table><caption>")
    assert table.count("<tr>") == table.count("</tr>") >= 5
    assert "<b>" not in table
    assert type(value).__name__ in table or "Plan" in table


@pytest.mark.slow
def test_notebooks_show_a_report_with_its_columns():
    """Whatever it quotes is escaped."""
    report = dp.verify(certificate())
    shown = report._repr_html_()

    assert shown == f"<pre>{html.escape(str(report))}</pre>"
    assert shown.count("\n") >= 5


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        (
            lambda: dp.PoissonLoader(DATA, sampling_probability=0.25, steps=20),
            "PoissonLoader(sampling=PoissonSampling(sampling_probability=0.25), steps=20)",
        ),
        (
            lambda: dp.AllocationLoader(DATA, steps_per_pass=4, passes=3),
            "AllocationLoader(sampling=RandomAllocation(steps_per_pass=4), steps=12)",
        ),
        (
            lambda: dp.UnamplifiedLoader(DATA, batch_size=10),
            "UnamplifiedLoader(sampling=Unamplified(backwards_per_step=1))",
        ),
    ],
    ids=["poisson", "allocation", "unamplified"],
)
def test_a_loader_says_public_numbers_only(loader, told):
    """How batches are drawn; not how many examples there are, which is private."""
    assert repr(loader()) == str(loader()) == told


@given(st.floats(0, 1e3), st.integers(1, 4))
def test_a_bound_is_rounded_up_wherever_it_is_read(value, decimals):
    """An epsilon that is shown with few digits is not below the one that holds."""
    shown = Fraction(bound(value, decimals))

    assert 0 <= shown - Fraction(value) < Fraction(1, 10**decimals)
