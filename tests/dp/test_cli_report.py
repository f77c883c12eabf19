"""What the screen says of a trained model, with and without privacy, whatever came of it."""

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from dp import GaussianNoise
from dp.certificate import Certificate
from dp.cli import _report
from dp.cli._input import Table
from dp.cli._problem import Classification
from dp.cli._training import Point, Run
from dp.ledger import Ledger


GOOD, BAD = 1.0, -1.0
PRIVATE_IS_BAD = "WARNING: the private model is no better than always naming"
PLAIN_IS_BAD = "The model without privacy is no better either"


@pytest.fixture(scope="module")
def table():
    """Eighty held-out rows, the sign of whose only feature is the class."""
    x = torch.linspace(-1, 1, 80).unsqueeze(1)
    rows = TensorDataset(x, (x[:, 0] > 0).long())
    return Table(
        name="signs",
        unit="one row",
        problem=Classification(classes=("no", "yes")),
        train=rows,
        test=rows,
        units=None,
        num_units=80,
    )


@pytest.fixture
def certificate(make_plan, monkeypatch):
    for check in ("check_agreement", "check_recomputed"):
        monkeypatch.setattr(f"dp.certificate._document.{check}", lambda *_, **__: None)
    return Certificate.of(Ledger(make_plan()), noise=GaussianNoise(), num_parameters=4)


def trained(slope):
    """A run that ended with a model of this slope: right everywhere, or nowhere."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-slope], [slope]]))
    return Run(model=model, points=(Point(5, 0.5, 1.0),), seconds=0.1)


@pytest.mark.parametrize("plain", [GOOD, BAD, None], ids=["good", "bad", "none"])
@pytest.mark.parametrize("private", [GOOD, BAD], ids=["good", "bad"])
def test_the_screen_tells_which_models_are_no_better_than_naming_a_class(
    table, certificate, private, plain
):
    """Of each model by itself: noise is at fault only where the twin is better."""
    console = Console(width=400, record=True, quiet=False)
    twin = None if plain is None else trained(plain)
    _report.show(console, table, certificate, trained(private), twin)
    shown = console.export_text()

    assert (PRIVATE_IS_BAD in shown) == (private == BAD)
    assert (PLAIN_IS_BAD in shown) == (plain == BAD)
    assert ("not private" in shown) == (plain is not None)
