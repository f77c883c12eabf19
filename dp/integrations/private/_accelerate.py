"""An Accelerator whose ``prepare`` and ``backward`` are private."""

from pathlib import Path
from typing import Any, Final, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from dp.certificate import Certificate
from dp.checking import check
from dp.checking._batches import common_size
from dp.evidence import LossFunction
from dp.evidence._watch import NO_BATCH
from dp.exceptions import UnsupportedOperationError
from dp.integrations._report import FOLDER, write_report
from dp.integrations._scheduler_moves import move_schedulers
from dp.integrations._unwrapping import require_private_optimizer
from dp.integrations.accelerate import prepare_by
from dp.integrations.private._loaders import batch_size_of, private_loader
from dp.integrations.private._request import Request
from dp.micro_batches import split_batch
from dp.optimizer import DPOptimizer
from dp.plan import PrivacyPlan


__all__ = ("make_private",)

_NUM_CHECKED: Final = 4  # Examples of `dp.check` before the first step.
_OWN_NORM: Final = 1.0  # An Accelerator clips where its loop says, so it has no number.


def make_private(accelerator: Any, request: Request) -> None:
    """Make *accelerator* one that prepares a private optimizer, and steps by it.

    Raises:
        UnsupportedOperationError: If it prepared an optimizer that is not private.
    """
    if accelerator._optimizers:  # noqa: SLF001 -- accelerate has no name for them
        raise UnsupportedOperationError(
            "the Accelerator prepared an optimizer before it was made private, and a loop"
            " with that one would train without privacy; call dp.private first, then"
            " prepare the model, the optimizer and the loader"
        )
    kind = type(accelerator)
    accelerator.__class__ = type(
        f"Private{kind.__name__}", (_PrivateAccelerator, kind), {}
    )
    accelerator.request = request


class _PrivateAccelerator(Accelerator):  # type: ignore[misc]  # It has no types.
    """The mixin that goes before the class of the accelerator."""

    request: Request
    plan: PrivacyPlan | None = None
    private_optimizer: DPOptimizer | None = None
    _unchecked: tuple[nn.Module, ...] = ()

    def prepare(self, *objects: Any, **kwargs: Any) -> Any:
        """Prepare objects as accelerate does, and the optimizer and its loader privately.

        Raises:
            UnsupportedOperationError: If there are several optimizers, or not one
                training loader beside the optimizer.
        """
        if not any(isinstance(item, Optimizer) for item in objects):
            return super().prepare(*objects, **kwargs)
        return prepare_by(super().prepare, self, *self._made_private(objects), **kwargs)

    def _made_private(self, objects: tuple[Any, ...]) -> list[Any]:
        optimizers = [item for item in objects if isinstance(item, Optimizer)]
        loaders = [item for item in objects if isinstance(item, DataLoader)]
        if self.private_optimizer is not None or len(optimizers) != 1:
            raise UnsupportedOperationError(
                "dp.private plans for one optimizer, and a second one would cost as much"
                " again; join several by dp.JointOptimizer, and prepare once"
            )
        if len(loaders) != 1:
            raise UnsupportedOperationError(
                f"prepare got {len(loaders)} loaders beside the optimizer, and needs the"
                " one that is trained on, in the same call; prepare those for evaluation"
                " in another"
            )
        (inner,), (loader,) = optimizers, loaders
        batch_size = batch_size_of(loader)
        batch_size *= self.gradient_accumulation_steps * self.num_processes
        plan = self.request.plan(batch_size=batch_size, max_grad_norm=_OWN_NORM)
        drawn = private_loader(
            loader, plan, self.request, steps=self.request.steps_per_epoch(batch_size)
        )
        private = DPOptimizer(inner, plan=plan, loader=drawn)
        self.plan = plan
        self.private_optimizer = private
        self._unchecked = tuple(item for item in objects if isinstance(item, nn.Module))
        for item in objects:
            if isinstance(item, LRScheduler):
                move_schedulers(item, private=private, inner=inner)
        swapped = {id(inner): private, id(loader): drawn}
        return [swapped.get(id(item), item) for item in objects]

    def backward(
        self, loss: LossFunction | Tensor, batch: Any = NO_BATCH, **kwargs: Any
    ) -> None:
        """Add the clipped gradient of every example's loss to the sums of this step.

        Args:
            loss: A function that returns one loss an example of *batch*, or these
                losses: then nobody can see what they were computed from.
            batch: What the function is called with.
            kwargs: As accelerate's.

        Raises:
            PrivacyError: Before the first step, if :func:`dp.check` finds an error.
            TypeError: If nothing private was prepared.
            ValueError: If the losses are not a vector of floating-point numbers.
            SampleMixingError: If one example's loss depends on another example.
        """
        private = require_private_optimizer(self.private_optimizer)
        if batch is NO_BATCH:
            super().backward(private.private_loss(cast("Tensor", loss)), **kwargs)
            return
        losses = cast("LossFunction", loss)
        self._check_once(losses, batch)
        super().backward(private.private_loss(losses, batch), **kwargs)

    def _check_once(self, losses: LossFunction, batch: Any) -> None:
        """Run :func:`dp.check` on a few examples of the first batch that has two."""
        parts = split_batch(batch, max_examples=_NUM_CHECKED) if self._unchecked else []
        if not parts or (common_size(parts[0]) or 0) < 2:  # noqa: PLR2004 -- a pair
            return
        models, self._unchecked = self._unchecked, ()
        model = nn.ModuleList([self.unwrap_model(model) for model in models])
        check(
            model, lambda _, part: losses(part), parts[0], num_compared=2
        ).raise_if_failed()

    def clip_grad_norm_(
        self, parameters: Any, max_norm: float, norm_type: float = 2
    ) -> Tensor:
        """Return 0 where a loop clips at what each example is clipped at.

        Raises:
            UnsupportedOperationError: If it is to clip at another norm.
        """
        del parameters
        private = require_private_optimizer(self.private_optimizer)
        is_euclidean = norm_type == 2  # noqa: PLR2004 -- the norm that examples have
        if not is_euclidean or max_norm != private.max_grad_norm:
            raise UnsupportedOperationError(
                f"clip_grad_norm_(..., {max_norm!r}) has nothing to clip: each example is"
                f" clipped at {private.max_grad_norm!r} before it is added. Pass"
                f" max_grad_norm={max_norm!r} to dp.private, or leave the call out"
            )
        return torch.zeros(())

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Refuse to clip each number: the norm of each example's gradient is clipped.

        Raises:
            UnsupportedOperationError: Always.
        """
        del parameters
        raise UnsupportedOperationError(
            f"clip_grad_value_(..., {clip_value!r}) has nothing to clip: the norm of each"
            " example's gradient is clipped instead, at max_grad_norm; leave the call out"
        )

    def certificate(self) -> Certificate:
        """Return the document that says what was released and what it cost.

        Raises:
            TypeError: If nothing private was prepared.
        """
        private = require_private_optimizer(self.private_optimizer)
        return private.certificate(assumptions=self.request.assumptions)

    def end_training(self) -> None:
        """End training as accelerate does, and write the report, if there is a folder."""
        if self.project_dir is not None and self.is_main_process:
            write_report(Path(self.project_dir) / FOLDER, self.certificate())
        super().end_training()
