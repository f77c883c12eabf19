"""Train one model with privacy and without, and report both runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp._progress import Bars, progress_bars
from dp.checking import check
from dp.cli import _input, _report, _training
from dp.cli._models import model_for
from dp.cli._processes import make_alike, process_group


__all__ = ("train_both",)

_NUM_CHECKED: Final = 8


def train_both(table: _input.Table, settings: _training.Settings, report: Path) -> None:
    """Train on *table*, show both runs, and write what they leave into *report*.

    Under torchrun all processes train; the first one alone shows and writes.
    """
    with process_group() as is_main:
        if settings.debug_seed is not None:
            torch.manual_seed(settings.debug_seed)
        model = model_for(table)
        make_alike(model)
        _training.optimizer_for(model, settings)  # A bad one is refused at once.
        _check(model, table)
        if is_main:
            _report.open_folder(report)
        console = Console(quiet=not is_main)
        with console.status("Calibrating the noise"):
            plan = _training.plan_of(settings, table)
        console.print(
            f"{table.name}: {len(table.train)} rows, {plan.expected_batch_size:g} a"
            f" batch, noise multiplier {plan.noise_multiplier_at(0):.4g}"
        )
        with progress_bars(console=console) as bars:
            private, certificate = _training.train_privately(
                model,
                table,
                plan=plan,
                settings=settings,
                show=_shown(bars, "private", plan.steps),
            )
            plain = _training.train_openly(
                model,
                table,
                plan=plan,
                settings=settings,
                show=_shown(bars, "not private", plan.steps),
            )
        if is_main:
            console.print(_report.summary(certificate, private, plain))
            _report.write(report, certificate, private, plain)
            console.print(
                "The certificate (JSON, text and picture) and"
                f" {_report.PICTURE} are in {report}"
            )


def _check(model: nn.Module, table: _input.Table) -> None:
    """Run ``dp.check`` before the first step, on random rows instead of private ones.

    Raises:
        PrivacyError: If it finds an error.
    """
    rows = table.train.tensors[0]
    x = torch.rand(_NUM_CHECKED, *rows.shape[1:], dtype=rows.dtype)
    y_B = torch.arange(_NUM_CHECKED) % table.num_classes

    def losses_of(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        x, y_B = batch
        return F.cross_entropy(model(x), y_B, reduction="none")

    check(model, losses_of, (x, y_B), num_compared=4).raise_if_failed()


def _shown(bars: Bars, name: str, num_steps: int) -> _training.Shown:
    """Return what shows a run's progress, loss, accuracy and epsilon."""
    bar = bars.begin(f"{name:11}")

    def show(taken: int, point: _training.Point) -> None:
        is_private = point.epsilon < float("inf")
        cost = (
            f"eps {point.epsilon:.2f} if planned to stop here"
            if is_private
            else "NOT PRIVATE"
        )
        figures = f"  loss {point.loss:.3f}  acc {point.accuracy:.3f}  {cost}"
        bar.show(taken, num_steps, figures)

    return show
