"""A Lightning Trainer whose ``fit`` is private."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor
from torch.optim import Optimizer

from dp.certificate import Certificate
from dp.exceptions import UnsupportedOperationError
from dp.integrations._lightning_names import LightningModule, Trainer
from dp.integrations._report import FOLDER, write_report
from dp.integrations._scheduler_moves import move_schedulers
from dp.integrations._unwrapping import require_private_optimizer
from dp.integrations.lightning import PrivacyCallback, unlogged
from dp.integrations.private._loaders import batch_size_of, private_loader
from dp.integrations.private._request import Request
from dp.micro_batches import MicroBatches
from dp.optimizer import DPOptimizer
from dp.plan import PrivacyPlan
from dp.sampling import PoissonLoader


__all__ = ("make_private",)

_UNCLIPPED: Final = 1.0  # The clipping norm of a Trainer that has none.

# Either package's class of trainers comes after the mixin; to be one of the other's, too,
# would refuse the user's modules.
if TYPE_CHECKING:
    _AnyTrainer = Trainer
else:
    _AnyTrainer = object


def make_private(trainer: Any, request: Request) -> None:
    """Make *trainer* one whose ``fit`` is private.

    Raises:
        UnsupportedOperationError: If it takes a part of its batches, or clips values.
    """
    _check(trainer)
    kind = type(trainer)
    trainer.__class__ = type(f"Private{kind.__name__}", (_PrivateTrainer, kind), {})
    trainer.request = request
    # Each example is clipped at what the whole batch would have been clipped at.
    trainer.own_norm = float(trainer.gradient_clip_val or _UNCLIPPED)
    trainer.gradient_clip_val = None
    # The private loader draws for all devices; evaluation is whole on each of them.
    trainer._accelerator_connector.use_distributed_sampler = False  # noqa: SLF001


def _check(trainer: Any) -> None:
    if trainer.limit_train_batches != 1.0:  # As overfit_batches sets it, too.
        raise UnsupportedOperationError(
            f"limit_train_batches={trainer.limit_train_batches!r} takes a part of the"
            " batches, and the plan draws them of all the data; leave it and"
            " overfit_batches out, and say by max_steps how long to train"
        )
    if trainer.global_step:
        raise UnsupportedOperationError(
            f"the trainer took {trainer.global_step} steps without privacy, which no later"
            " step takes back; make a new one, and weights that these data did not train"
        )
    if trainer.gradient_clip_algorithm == "value":
        raise UnsupportedOperationError(
            "gradient_clip_algorithm='value' clips each number, and a private step clips"
            " the norm of each example's gradient; use 'norm'"
        )
    if trainer.max_steps < 0 and (trainer.max_epochs or -1) < 0:
        raise UnsupportedOperationError(
            f"max_epochs={trainer.max_epochs!r} and max_steps={trainer.max_steps!r} set"
            " no end, and a plan has to know it; set one of them"
        )


class _PrivateTrainer(_AnyTrainer):
    """The mixin that goes before the class of the trainer."""

    request: Request
    own_norm: float
    plan: PrivacyPlan | None = None
    private_optimizer: DPOptimizer | None = None

    def fit(  # type: ignore[override]  # The arguments after these are passed on.
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        **kwargs: Any,
    ) -> None:
        """Train *model* privately on the dataset of the loader.

        Raises:
            UnsupportedOperationError: If the loader is left to a data module or to the
                module, if it optimizes by itself, or if it was trained before; and as
                :class:`~dp.integrations.lightning.PrivacyCallback` does.
            PrivacyError: Before the first step, if :func:`dp.check` finds an error.
        """
        self._check_fit(model, train_dataloaders, datamodule)
        batch_size = batch_size_of(train_dataloaders)
        batch_size *= self.accumulate_grad_batches * self.world_size
        per_epoch = self.request.steps_per_epoch(batch_size)
        steps = self.max_steps
        if steps < 0:
            steps = (self.max_epochs or 0) * per_epoch  # One of the two is set.
        plan = self.request.plan(
            batch_size=batch_size, steps=steps, max_grad_norm=self.own_norm
        )
        self.plan = plan
        loader = private_loader(train_dataloaders, plan, self.request, steps=per_epoch)
        parts = self.accumulate_grad_batches
        batches = loader if parts == 1 else MicroBatches(loader, per_step=parts)
        # A new one, that checks this module: an earlier fit may have ended before a step.
        callbacks: list[Any] = self.callbacks  # type: ignore[has-type]  # Set late.
        others = [c for c in callbacks if not isinstance(c, PrivacyCallback)]
        self.callbacks = [*others, PrivacyCallback()]
        with self._private(model, plan, loader):
            super().fit(model, batches, val_dataloaders, **kwargs)
        self._leave_report()

    def certificate(self) -> Certificate:
        """Return the document that says what was released and what it cost."""
        private = require_private_optimizer(self.private_optimizer)
        return private.certificate(assumptions=self.request.assumptions)

    def _leave_report(self) -> None:
        if self.is_global_zero:
            write_report(Path(self.default_root_dir) / FOLDER, self.certificate())

    def _check_fit(self, model: LightningModule, loader: Any, datamodule: Any) -> None:
        before = self.private_optimizer
        if before is not None and before.ledger.steps:
            raise UnsupportedOperationError(
                "this trainer was fitted before, and a second run would cost as much"
                " again; make a new trainer private, for a target that allows for both,"
                " or resume by fit(..., ckpt_path=...) in a new one"
            )
        if loader is None or datamodule is not None:
            raise UnsupportedOperationError(
                "the training loader comes from a data module or the module itself; pass"
                " it: trainer.fit(module, datamodule.train_dataloader(), ...)"
            )
        if not model.automatic_optimization:
            raise UnsupportedOperationError(
                f"{type(model).__name__} optimizes by itself, so that its steps are not"
                " the trainer's to make private; wrap its optimizer in dp.DPOptimizer,"
                " and use PrivacyCallback"
            )

    @contextmanager
    def _private(
        self, model: LightningModule, plan: PrivacyPlan, loader: PoissonLoader
    ) -> Iterator[None]:
        """Let *model* return private optimizers and losses, while it is trained."""
        configure, step = model.configure_optimizers, model.training_step

        def losses_of(batch: Any, batch_idx: int) -> Tensor:
            with unlogged(model):
                result: Any = step(batch, batch_idx)
            losses: Tensor = result["loss"] if isinstance(result, dict) else result
            return losses

        def configure_optimizers() -> Any:
            made = configure()
            self.private_optimizer = _make_private(made, plan, loader)
            return _replaced(made, self.private_optimizer)

        def training_step(batch: Any, batch_idx: int) -> Tensor:
            private = require_private_optimizer(self.private_optimizer)
            return private.private_loss(lambda part: losses_of(part, batch_idx), batch)

        replaced = {
            "configure_optimizers": configure_optimizers,
            "training_step": training_step,
        }
        for name, function in replaced.items():
            setattr(model, name, function)
        try:
            yield
        finally:
            for name in replaced:
                delattr(model, name)


def _make_private(made: Any, plan: PrivacyPlan, loader: PoissonLoader) -> DPOptimizer:
    """Return the private optimizer of what ``configure_optimizers`` made.

    Raises:
        UnsupportedOperationError: If it made none, several, or a private one.
    """
    optimizers, schedulers = _parts(made)
    if len(optimizers) != 1 or isinstance(optimizers[0], DPOptimizer):
        raise UnsupportedOperationError(
            "dp.private needs one optimizer that is not private yet, and"
            f" configure_optimizers made {[type(o).__name__ for o in optimizers]}; join"
            " several by dp.JointOptimizer"
        )
    private = DPOptimizer(optimizers[0], plan=plan, loader=loader)
    for scheduler in schedulers:
        move_schedulers(scheduler, private=private, inner=optimizers[0])
    return private


def _parts(made: Any) -> tuple[list[Any], list[Any]]:
    """Return the optimizers and the schedulers, in whatever form Lightning takes."""
    if isinstance(made, dict):
        configs = [made["lr_scheduler"]] if "lr_scheduler" in made else []
        optimizers = [made["optimizer"]]
    elif isinstance(made, tuple | list):
        has_both = len(made) == 2 and isinstance(made[0], tuple | list)  # noqa: PLR2004
        optimizers, configs = made if has_both else (made, [])
    else:
        optimizers, configs = [] if made is None else [made], []
    schedulers = [c["scheduler"] if isinstance(c, dict) else c for c in configs]
    return list(optimizers), schedulers


def _replaced(made: Any, private: Optimizer) -> Any:
    """Return what ``configure_optimizers`` made, with the private optimizer in it."""
    if isinstance(made, dict):
        return {**made, "optimizer": private}
    _, schedulers = _parts(made)
    return ([private], made[1]) if schedulers else private
