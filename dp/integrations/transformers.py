"""Private training with the Hugging Face Trainer.

One class and one argument of a script change::

    trainer = PrivateTrainer(model, args, train_dataset=dataset, plan=plan)
    trainer.train()
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from dp._mechanism.changed_options import warn_of_metric_schedulers
from dp.certificate import Certificate
from dp.checking import check
from dp.exceptions import LedgerError, UnsupportedOperationError
from dp.integrations._buffers import keep_buffers_apart
from dp.integrations._losses import per_example_losses
from dp.integrations._report import card_section, with_section
from dp.integrations._trainer_arguments import (
    check_arguments,
    check_strategy,
    private_arguments,
)
from dp.integrations._unwrapping import (
    find_private_optimizer,
    require_private_optimizer,
)
from dp.micro_batches import split_by_unit
from dp.optimizer import DPOptimizer
from dp.plan import PrivacyPlan
from dp.sampling import PoissonLoader, TicketedLoader, Unamplified
from dp.sampling._loader_of import loader_of
from dp.sampling._units import Units


__all__ = (
    "PrivacyCallback",
    "PrivateTrainer",
    "per_example_losses",
)

_NUM_CHECKED: Final = 4  # Examples of `dp.check` before the first step.
# What Trainer logs of the training data. It is not covered by the guarantee.
_UNCOVERED: Final = frozenset({"loss", "grad_norm", "train_loss"})


class _Withheld(float):
    """NaN, which says why where it is printed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "nan (withheld: the guarantee does not cover it; see unsafe_log_loss)"


class PrivacyCallback(TrainerCallback):
    """Stop at the budget, and refuse to go on from a state whose cost is unknown."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Check that the ledger knows every step that the checkpoint took.

        Warns of a learning rate that follows a metric.

        Raises:
            LedgerError: If it does not, as when only the model was saved.
        """
        del args, control
        warn_of_metric_schedulers([kwargs.get("lr_scheduler")])
        ledger = require_private_optimizer(kwargs["optimizer"]).ledger
        if ledger.steps < state.global_step:
            raise LedgerError(
                f"the checkpoint took {state.global_step} steps, but the ledger knows"
                f" of {ledger.steps}, so what was spent is unknown; resume from a"
                " checkpoint that was saved with its optimizer (save_only_model=False)"
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stop training if the plan allows no other step.

        The epoch is how often an example was drawn on average, resumed or not: the
        Trainer counts from the draws of this process, of which there are fewer.
        """
        del args
        loader = kwargs.get("train_dataloader")
        if isinstance(loader, TicketedLoader):
            state.epoch = state.global_step / len(loader)
        if require_private_optimizer(kwargs["optimizer"]).ledger.is_exhausted:
            control.should_training_stop = True


class PrivateTrainer(Trainer):
    """The Trainer, with its batches, losses, optimizer and logs made private.

    Put it before a trainer of your own to make that one private:
    ``class MyPrivateTrainer(PrivateTrainer, MyTrainer)``.

    Batches are drawn by the plan. ``per_device_train_batch_size`` is how many examples
    go through the model at once, whatever was drawn, and an epoch is the number of
    steps in which an example is drawn once on average. The plan says how many steps
    there are; ``max_steps`` may only lower that. Training losses and gradient norms
    are not logged, for the guarantee does not cover them; epsilon is.

    Guarantees:
        * Training stops at the plan's budget, and a checkpoint resumes with its ledger.
        * Arguments that a private step cannot honour are refused, none is ignored.

    Args:
        args: What the Trainer takes.
        plan: The public numbers of the run.
        unsafe_log_loss: Log the loss of the training data all the same.
        check_first: Whether to run :func:`dp.check` on four examples before the first
            step, which takes as long as a few steps.
        kwargs: What the Trainer takes.

    Raises:
        PrivacyError: Before the first step, if :func:`dp.check` finds an error.
        UnsupportedOperationError: If DeepSpeed, FSDP or DataParallel is to train.
        ValueError: If an argument of the trainer contradicts the plan.
    """

    # Trainer shall divide the loss it shows by the number of batches it adds up.
    loss_is_scaled_for_ga: bool | None = False

    def __init__(
        self,
        *args: Any,
        plan: PrivacyPlan,
        unsafe_log_loss: bool = False,
        check_first: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._become_private(
            plan, unsafe_log_loss=unsafe_log_loss, check_first=check_first
        )

    def _become_private(
        self,
        plan: PrivacyPlan,
        *,
        unsafe_log_loss: bool = False,
        check_first: bool = True,
        units_of: Callable[[Any], Units | None] | None = None,
        max_per_unit: int | None = None,
        assumptions: Sequence[str] = (),
    ) -> None:
        """Take a plan; also of a Trainer that was built before its class became ours."""
        check_strategy(self)
        check_arguments(self.args, plan)
        self.args: TrainingArguments = private_arguments(self.args, plan)
        self.plan = plan
        self._is_to_be_checked = check_first
        self._units_of = units_of
        self._max_per_unit = max_per_unit
        self._assumptions = tuple(assumptions)
        self._rows: Any = None
        self._collate: Callable[[list[Any]], Any] | None = None
        self.unsafe_log_loss = unsafe_log_loss
        self._loader: PoissonLoader | None = None
        self._known: DPOptimizer | None = None
        self.add_callback(PrivacyCallback())

    @property
    def private_optimizer(self) -> DPOptimizer:
        """The private optimizer, once training has begun."""
        return require_private_optimizer(self.optimizer)

    def certificate(self) -> Certificate:
        """Return the document that says what was released and what it cost."""
        return self.private_optimizer.certificate(assumptions=self._assumptions)

    def make_private(
        self, optimizer: Optimizer, loader: PoissonLoader | None
    ) -> DPOptimizer:
        """Return *optimizer* made private; override it to choose clipping or noise."""
        return DPOptimizer(optimizer, plan=self.plan, loader=loader)

    def get_train_dataloader(self) -> Any:
        """Return the loader of the plan's batches, set up as the Trainer's own."""
        own = super().get_train_dataloader()
        self._collate, self._rows = self._collation(own.collate_fn), own.dataset
        if isinstance(self.plan.sampling, Unamplified):
            return own
        # Rounded up, as where dp.private counts epochs; 1 / 0.2 may be more than 5.
        per_epoch = math.ceil(1 / self.plan.sampling.sampling_probability - 1e-9)
        self._loader = loader_of(
            self.plan.sampling,
            own.dataset,
            steps=min(self.plan.steps, per_epoch),
            collate_fn=self._collate,
            num_workers=own.num_workers,
            pin_memory=own.pin_memory,
            timeout=own.timeout,
            worker_init_fn=own.worker_init_fn,
            multiprocessing_context=own.multiprocessing_context,
            prefetch_factor=own.prefetch_factor,
            persistent_workers=own.persistent_workers,
            units=None
            if self._units_of is None
            else self._units_of(self.train_dataset),
            max_per_unit=self._max_per_unit,
        )
        return self._loader

    def _collation(
        self, collate: Callable[[list[Any]], Any]
    ) -> Callable[[list[Any]], Any]:
        """Return how training examples are collated; the first axis is the examples'."""
        return collate

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Create the Trainer's optimizer, and make it private.

        A private one that was made or passed before goes on, on the new loader.
        """
        optimizer: Optimizer = super().create_optimizer(model)
        private = find_private_optimizer(optimizer)
        if private is None:
            private = optimizer = self.make_private(optimizer, self._loader)
        elif private.plan != self.plan:
            raise ValueError(
                "the optimizer that was passed has another plan than the trainer; pass"
                " the same one, or an optimizer that is not private yet"
            )
        elif self._loader is not None:
            private.attach(self._loader)
        if self._known is not None and self._known is not private:
            # A model that is trained anew on the same data adds to what was spent.
            private.ledger.load_state_dict(self._known.ledger.state_dict())
        # The Trainer clips by default, at a norm that was compared with the plan's.
        private.mechanism.step.stand_in.is_watched = False
        self.optimizer: Optimizer | None = optimizer
        self._known = private
        return optimizer

    def per_example_losses(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return one loss for every example of *inputs*.

        It is called again now and then, to see that a loss depends on one example
        only; ``dp.looking()`` is true then.

        By default that of :func:`per_example_losses`, or of the ``compute_loss_func``
        that the trainer was given. Override it for a model with another loss.
        """
        inputs = dict(inputs)
        plain = self.accelerator.unwrap_model(model)
        config = getattr(plain, "config", None)
        labels = inputs.get("labels")
        if labels is None:
            raise ValueError(
                f"the batch has no 'labels', only {sorted(inputs)}; name them so in the"
                " data and in forward (a Trainer drops what it does not take), or"
                " override per_example_losses"
            )
        if not getattr(config, "is_encoder_decoder", False):
            del inputs["labels"]  # The decoder's inputs are made of them, if any.
        outputs = model(**inputs)
        if self.compute_loss_func is not None:
            losses: Tensor = self.compute_loss_func(
                outputs, labels, num_items_in_batch=None
            )
            return losses
        return per_example_losses(
            plain,
            outputs["logits"] if isinstance(outputs, Mapping) else outputs[0],
            labels,
            label_smoothing=self.args.label_smoothing_factor,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: FBT001, FBT002 -- Trainer's signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the private loss in training, and the Trainer's in evaluation."""
        if return_outputs or not model.training:
            return super().compute_loss(
                model,
                inputs,
                return_outputs=return_outputs,
                num_items_in_batch=num_items_in_batch,
            )
        return self.private_optimizer.private_loss(
            partial(self.per_example_losses, model), inputs
        )

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Run the Trainer's step on as many examples at once as the device shall hold.

        An empty batch needs no pass: the step adds its noise all the same.
        """
        keep_buffers_apart(model)
        if self._is_to_be_checked:
            self._is_to_be_checked = False
            self._check(model)
        if isinstance(self.plan.sampling, Unamplified):
            step: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return step
        total = torch.zeros((), device=self.args.device)
        num_parts = 0
        for part in self._parts_of(inputs):
            total += super().training_step(model, part, num_items_in_batch)
            num_parts += 1
        return total / max(1, num_parts)

    def _parts_of(self, inputs: Any) -> Iterable[Any]:
        """Return a draw in parts that the device shall hold, no unit in two of them."""
        at_once = self._train_batch_size
        assert self._loader is not None  # noqa: S101 -- it drew the batch
        return split_by_unit(self._loader, inputs, max_examples=at_once)

    def _check(self, model: Any) -> None:
        """Run :func:`dp.check` on a few examples; it leaves no trace of itself."""
        dataset = self._rows
        num_at_once = max(2, min(_NUM_CHECKED, self._train_batch_size))
        places = range(min(num_at_once, len(dataset)))
        if len(places) < 2 or self._collate is None:  # noqa: PLR2004 -- a pair
            return
        batch = self._prepare_inputs(self._collate([dataset[i] for i in places]))

        def losses_of(model: Any, batch: Any) -> Tensor:
            with self.compute_loss_context_manager():
                return self.per_example_losses(model, batch)

        plain = self.accelerator.unwrap_model(model)
        check(plain, losses_of, batch, num_compared=2).raise_if_failed()

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Return 0: what a batch costs to compute tells how many examples it has.

        Their sum is saved in every checkpoint and logged, and no noise is added to it.
        """
        return 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Create the Trainer's model card, with a section on privacy."""
        super().create_model_card(*args, **kwargs)
        private = find_private_optimizer(self.optimizer)
        if private is not None and self.is_world_process_zero():
            path = Path(str(self.args.output_dir)) / "README.md"
            card = with_section(path.read_text("utf-8"), card_section(private))
            path.write_text(card, encoding="utf-8")

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log what the guarantee covers, and epsilon with it."""
        private = find_private_optimizer(self.optimizer)
        if not self.unsafe_log_loss:
            logs = {k: v for k, v in logs.items() if k not in _UNCOVERED}
        if private is not None:
            logs["epsilon"] = private.guarantee().epsilon
            logs["epsilon_if_planned_to_stop_here"] = private.spent().epsilon
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as the Trainer does; the loss in the result is NaN unless asked for."""
        output: TrainOutput = super().train(*args, **kwargs)
        if self.unsafe_log_loss:
            return output
        metrics = {k: v for k, v in output.metrics.items() if k not in _UNCOVERED}
        return output._replace(training_loss=_Withheld("nan"), metrics=metrics)

    def hyperparameter_search(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse: every trial trains on the private data, and so does the choice."""
        raise UnsupportedOperationError(
            "hyperparameter_search trains on the private data once a trial and chooses"
            " by the result, which no ledger of one run covers; search on public data,"
            " or plan for every trial and add their costs up"
        )
