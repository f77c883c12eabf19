"""What a one-line run is planned from, and what it writes, piece by piece."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import ConstantLR
from transformers import TrainerState

import dp
from dp.integrations._report import card_section, with_section
from dp.integrations._scheduler_moves import move_schedulers
from dp.integrations.private import _lightning
from dp.integrations.private._request import Request
from dp.integrations.private._trainer_report import ReportCallback


NUMBERS = {"epsilon": 3.0, "delta": 1e-4, "dataset_size": 20}


class Columns(dict):
    """A dataset of columns, as of the library ``datasets``."""

    column_names = ("text", "user", "place")


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("user", [1, 1, 2]),
        ("place", [3, 4, 4]),
        (None, None),
    ],
)
def test_a_column_names_the_unit_of_every_row(units, expected):
    """In a list, or in anything else that is read row by row."""
    data = Columns(user=[1, 1, 2], place=iter([3, 4, 4]))
    request = Request(**NUMBERS, units=units, max_per_unit=2 if units else None)

    assert request.units_of(data) == expected


def test_a_column_that_is_not_there_is_told_with_those_that_are():
    """Of a dataset of columns, and of rows that have none."""
    request = Request(**NUMBERS, units="name")

    with pytest.raises(ValueError, match=r"there are \('text', 'user', 'place'\)"):
        request.units_of(Columns())
    with pytest.raises(ValueError, match=r"there are \[\]"):
        request.units_of([torch.zeros(2)])
    with pytest.raises(ValueError, match=r"there are \[\]"):
        request.units_of([])


def test_the_section_of_a_card_takes_the_place_of_an_earlier_one():
    """And what follows it stays."""
    card = "# Model\n\n## Privacy\n\nold\n\n## Usage\n\ntext\n"

    replaced = with_section(card, "## Privacy\n\nnew\n")

    assert replaced == "# Model\n\n## Privacy\n\nnew\n\n## Usage\n\ntext\n"


def test_the_section_of_a_run_that_failed_says_so_first():
    """No epsilon is stated."""
    ledger = SimpleNamespace(failure="a seed for debugging")
    section = card_section(SimpleNamespace(plan=None, ledger=ledger))

    assert section == "## Privacy\n\nNOT PRIVATE: a seed for debugging.\n"


def test_a_scheduler_of_another_optimizer_stays_with_it():
    """Only those of the wrapped one are moved, and no rate is changed."""
    inner, other, private = (
        torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.3) for _ in range(3)
    )
    ours, theirs = ConstantLR(inner, 0.5), ConstantLR(other, 0.5)
    for scheduler in (ours, theirs):
        move_schedulers(scheduler, private=private, inner=inner)

    assert ours.optimizer is private
    assert theirs.optimizer is other
    assert private.param_groups[0]["lr"] == 0.3


def test_one_process_of_several_writes_the_report(tmp_path, monkeypatch):
    """The others leave it to the first."""
    callback = ReportCallback(None)
    callback.on_train_end(None, TrainerState(is_world_process_zero=False), None)
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    monkeypatch.setattr(_lightning, "write_report", None)  # It would fail.
    trainer = Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path)
    trainer = dp.private(trainer, epsilon=3.0, delta=1e-4, dataset_size=60)
    trainer._leave_report()

    assert not list(tmp_path.iterdir())
