"""The report that a private Trainer leaves in its output folder."""

from pathlib import Path
from typing import Any

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dp.integrations._report import FOLDER, write_report
from dp.integrations.transformers import PrivateTrainer


__all__ = ("ReportCallback",)


class ReportCallback(TrainerCallback):
    """Write the certificate, the plan and a verification when training ends.

    Args:
        trainer: The trainer whose run it is.
    """

    def __init__(self, trainer: PrivateTrainer) -> None:
        self._trainer = trainer

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write ``output_dir/privacy``, from one process of several."""
        del control, kwargs
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / FOLDER
            write_report(folder, self._trainer.certificate())
