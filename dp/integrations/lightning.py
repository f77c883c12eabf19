"""Private training in Lightning: epsilon in the logs, and an end at the budget.

A few lines of a module change, and one of the trainer::

    def losses(self, batch):
        x, y = batch
        return cross_entropy(self(x), y, reduction="none")

    def training_step(self, batch, batch_idx):
        return self.optimizers().private_loss(self.losses, batch)

    def configure_optimizers(self):
        return dp.DPOptimizer(AdamW(self.parameters()), plan=plan, loader=loader)

    trainer = Trainer(callbacks=[PrivacyCallback()])
    trainer.fit(module, loader)

Checkpoints carry the ledger with the optimizer's state. Manual optimisation works as
well: give ``private_loss`` to ``manual_backward``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, final

from torch import Tensor

from dp._mechanism.changed_options import warn_of_metric_schedulers
from dp.checking import check
from dp.checking._batches import common_size
from dp.evidence import LossFunction
from dp.evidence._exchange import devices_of
from dp.evidence._looking import look
from dp.evidence._program_state import ProgramState
from dp.exceptions import SamplingMismatchError, UnsupportedOperationError
from dp.integrations._lightning_names import Callback, LightningModule, Trainer
from dp.integrations._unwrapping import find_private_optimizer
from dp.micro_batches import MicroBatches, split_batch
from dp.optimizer import DPOptimizer
from dp.sampling import Unamplified


__all__ = ("PrivacyCallback", "unlogged")

_NAME: Final = "epsilon"
_NUM_CHECKED: Final = 4
_LOGS: Final = ("log", "log_dict")
_NAME_SO_FAR: Final = "epsilon_if_planned_to_stop_here"
_CALLBACKS_BY_LOSSES: Final = {
    "BatchSizeFinder": "a batch size",
    "LearningRateFinder": "a learning rate",
}


@final
class PrivacyCallback(Callback):
    """Log epsilon, stop at the budget, and refuse what would not do what it says.

    Epsilon of the run, whenever it ends, is logged as ``epsilon``, and that of the steps
    so far as ``epsilon_if_planned_to_stop_here``, whenever the trainer logs and at the
    end of every epoch; with several private optimizers, names have their numbers.
    Training stops after the step that the plan has no other after. A learning rate that
    follows a metric causes a warning: epsilon does not cover what it reveals.

    A loss function that is given to ``private_loss`` or ``backward`` is checked by
    :func:`dp.check` before its first step, on a few examples of the first batch that has
    two.

    Args:
        check_first: Whether to do that. It takes as long as a few steps.

    Raises:
        PrivacyError: Before the first step, if :func:`dp.check` finds an error.
        UnsupportedOperationError: When training starts, if no optimizer is private,
            if the trainer is to clip gradients, or if on several devices it would
            choose their examples (``use_distributed_sampler=False`` lets the loader);
            before, if a callback trains to choose a learning rate or a batch size, or
            accumulates now more batches, now fewer.
        SamplingMismatchError: When training starts, if the trainer accumulates another
            number of batches than the loader makes of one draw.
    """

    def __init__(self, *, check_first: bool = True) -> None:
        super().__init__()
        self._is_to_be_checked = check_first

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse callbacks that train by themselves, and Lightning's distributed sampler.

        Before Lightning puts that into the loader, and fails without saying why.
        """
        del pl_module
        if stage == "fit":
            _check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]  # Set late.
        connector = trainer._accelerator_connector  # noqa: SLF001 -- nowhere else
        if (
            stage == "fit"
            and trainer.world_size > 1
            and connector.use_distributed_sampler
        ):
            raise UnsupportedOperationError(
                "use_distributed_sampler=True would choose the examples of each device,"
                " which the private loader draws for all of them; pass"
                " use_distributed_sampler=False to the Trainer"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what the trainer was told against what a private step does."""
        private = _private(trainer)
        if not private:
            raise UnsupportedOperationError(
                "no optimizer is private: configure_optimizers returned"
                f" {[type(o).__name__ for o in trainer.optimizers]}; return"
                " dp.DPOptimizer(...) from it"
            )
        if trainer.gradient_clip_val:
            raise UnsupportedOperationError(
                f"gradient_clip_val={trainer.gradient_clip_val!r} would clip gradients"
                " that are not there yet: each example's is clipped at the plan's"
                " max_grad_norm; leave gradient_clip_val out"
            )
        for optimizer in private:
            _check_accumulation(trainer, optimizer)
            # Losses that are evaluated again would be logged, and averaged, twice.
            watch = optimizer.mechanism.watch
            watch.silenced[:] = [partial(unlogged, pl_module)]
            checks = [partial(_checked, pl_module)] if self._is_to_be_checked else []
            watch.checks[:] = checks
        self._is_to_be_checked = False  # A second fit goes on with the same module.
        warn_of_metric_schedulers(
            config.scheduler for config in trainer.lr_scheduler_configs
        )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log epsilon when the trainer logs, and stop at the end of the budget."""
        del outputs, batch, batch_idx
        private = _private(trainer)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Set late.
        if every and trainer.global_step % every == 0:
            _log(private, pl_module)
        if any(optimizer.ledger.is_exhausted for optimizer in private):
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the epoch cost."""
        _log(_private(trainer), pl_module)


def _check_callbacks(callbacks: Iterable[object]) -> None:
    for callback in callbacks:
        name = type(callback).__name__
        if name in _CALLBACKS_BY_LOSSES:
            raise UnsupportedOperationError(
                f"the callback {name} trains to choose {_CALLBACKS_BY_LOSSES[name]}, by"
                " losses that get no noise; choose on public data, or by dp.tune"
            )
        factors = getattr(callback, "scheduling", {}).values()
        if len({*factors}) > 1:
            raise UnsupportedOperationError(
                f"the callback {name} accumulates {[*factors]} batches in turn, and the"
                " plan has steps of one kind; set accumulate_grad_batches to one number"
            )


def _private(trainer: Trainer) -> list[DPOptimizer]:
    optimizers = [find_private_optimizer(optimizer) for optimizer in trainer.optimizers]
    return [optimizer for optimizer in optimizers if optimizer is not None]


def _log(private: list[DPOptimizer], pl_module: LightningModule) -> None:
    for number, optimizer in enumerate(private):
        suffix = "" if len(private) == 1 else f"-{number}"
        so_far, whole = optimizer.spent(), optimizer.guarantee()
        pl_module.log(f"{_NAME}{suffix}", whole.epsilon, batch_size=1)
        pl_module.log(f"{_NAME_SO_FAR}{suffix}", so_far.epsilon, batch_size=1)


@contextmanager
def unlogged(module: LightningModule) -> Iterator[None]:
    """Let *module* log nothing."""
    attributes: dict[str, Any] = vars(module)
    before: dict[str, Any] = {
        name: attributes[name] for name in _LOGS if name in attributes
    }
    for name in _LOGS:
        attributes[name] = _log_nothing
    try:
        yield
    finally:
        for name in _LOGS:
            del attributes[name]
        attributes.update(before)


def _checked(
    module: LightningModule, function: LossFunction, batch: Any, units: Tensor | None
) -> bool:
    """Run :func:`dp.check` on a few examples, unless there are none to compare.

    It leaves no trace, also not on metrics that the function keeps.

    Returns:
        Whether it is done with.
    """
    if units is not None or any(hasattr(p, "placements") for p in module.parameters()):
        return True  # It knows no units of several losses, and no shards.
    try:
        parts = split_batch(batch, max_examples=_NUM_CHECKED)
    except TypeError:
        return True  # Of graphs and their like no few can be taken here.
    if not parts or common_size(parts[0]) == 1:
        return False  # The next batch may have more.
    few = parts[0]
    state = ProgramState(function, devices_of(few))
    with state.excursion(), unlogged(module), look():
        report = check(module, lambda _, part: function(part), few, num_compared=2)
    report.raise_if_failed()
    return True


def _log_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Take the place of a module's ``log``."""


def _check_accumulation(trainer: Trainer, optimizer: DPOptimizer) -> None:
    loader = trainer.train_dataloader
    parts = loader.per_step if isinstance(loader, MicroBatches) else 1
    if isinstance(optimizer.plan.sampling, Unamplified):
        parts = optimizer.plan.sampling.backwards_per_step
    if trainer.accumulate_grad_batches != parts:
        raise SamplingMismatchError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches}, but each batch"
            f" that was drawn comes in {parts} part(s), and a step needs all of one:"
            " train on dp.MicroBatches(loader, per_step=accumulate_grad_batches)"
        )
