"""A Hugging Face Trainer, built as for training without privacy, becomes private."""

import math
from typing import Any

from transformers import TrainingArguments

from dp.exceptions import UnsupportedOperationError
from dp.integrations._trainer_arguments import check_arguments, check_strategy
from dp.integrations._trainer_methods import check_methods
from dp.integrations.private._request import Request
from dp.integrations.private._trainer_report import ReportCallback
from dp.integrations.private._trl import adapter_for
from dp.plan import PrivacyPlan
from dp.sampling._refused_arguments import check_map_style


__all__ = ("make_private",)


def make_private(trainer: Any, request: Request) -> None:
    """Make *trainer* a :class:`~dp.integrations.transformers.PrivateTrainer`.

    Its class becomes one that inherits from ours and from its own, as by ``class
    MyPrivateTrainer(PrivateTrainer, MyTrainer)``, so nothing that it holds is lost.

    Raises:
        ValueError, TypeError, UnsupportedOperationError: As :func:`dp.private`.
    """
    kind = type(trainer)
    adapter = adapter_for(trainer)
    check_methods(kind, adapter)
    check_strategy(trainer)
    check_map_style(trainer.train_dataset)
    _check_start(trainer)
    plan = _plan_of(trainer.args, request)
    check_arguments(trainer.args, plan)
    _check_units(trainer, request)

    own_losses = (
        {"per_example_losses": kind.per_example_losses}
        if hasattr(kind, "per_example_losses")
        else {}
    )
    trainer.__class__ = type(f"Private{kind.__name__}", (adapter, kind), own_losses)
    trainer._become_private(  # noqa: SLF001 -- it has become one of ours
        plan,
        units_of=None if request.units is None else request.units_of,
        max_per_unit=request.max_per_unit,
        assumptions=(*request.assumptions, *getattr(adapter, "assumptions", ())),
    )
    trainer.add_callback(ReportCallback(trainer))


def _check_start(trainer: Any) -> None:
    """Raise if weights know the data already, or if some would never be trained.

    Raises:
        UnsupportedOperationError: If the trainer trained before without privacy.
        ValueError: If its optimizer lacks parameters that are to be trained.
    """
    if trainer.state.global_step:
        raise UnsupportedOperationError(
            f"the trainer took {trainer.state.global_step} steps without privacy, which no"
            " later step takes back; build it anew, with weights that these data did not"
            " train"
        )
    if trainer.optimizer is None:
        return
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    left_out = [
        name
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]
    if left_out:
        # As where adapters were added, or the model moved, after it (opacus#820).
        raise ValueError(
            f"the optimizer that was passed does not hold {left_out[0]} and"
            f" {len(left_out) - 1} other trainable parameters of the model; make it after"
            " the adapters, or freeze what it leaves out"
        )


def _check_units(trainer: Any, request: Request) -> None:
    if request.units is not None and not isinstance(request.units, str):
        raise ValueError(
            "units must name a column of train_dataset, since trainers sort rows out or"
            f" shuffle them, got a {type(request.units).__name__}; add the column"
        )
    request.units_of(trainer.train_dataset)  # Raises if there is no such column.


def _plan_of(args: TrainingArguments, request: Request) -> PrivacyPlan:
    """Return the plan of a training with *args*: its batches, its length, its clipping."""
    if not args.max_grad_norm and request.max_grad_norm is None:
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm!r} turns clipping off, and a private"
            " step must clip each example; pass max_grad_norm= to dp.private"
        )
    batch_size = (
        args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * request.steps_per_epoch(batch_size))
    return request.plan(
        batch_size=batch_size, steps=steps, max_grad_norm=float(args.max_grad_norm)
    )
