"""The step of a private optimizer: losses are clipped, released and applied.

:class:`PrivateStep` is what :class:`~dp.DPOptimizer` does between ``backward`` and the
update of the optimizer that it wraps. What a release is, is
:mod:`dp._mechanism.mechanism`'s business.

Shapes: ``B`` examples in a batch.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import torch
from torch import Tensor

from dp._mechanism import likely_causes
from dp._mechanism.loss_units import Reduction
from dp._mechanism.mechanism import Mechanism
from dp._mechanism.step_state import StepState
from dp.evidence import LossFunction
from dp.evidence._watch import NO_BATCH
from dp.exceptions import UnsupportedOperationError
from dp.ledger import Ledger
from dp.optimizer._beside import look_beside, remark
from dp.optimizer._bias_correction import AdamBiasCorrection
from dp.optimizer._guard import (
    check_in_place,
    private_owner_of,
    refresh,
    run_permitted,
)
from dp.optimizer._layers_around import hook_layers_around
from dp.optimizer._left_out import note_release
from dp.optimizer._private_loss import power_of_two_for
from dp.optimizer._second_moments import scaling_of
from dp.optimizer._step_hooks import disable_dynamo, wrap_step_hooks
from dp.optimizer._transparent import TransparentOptimizer
from dp.optimizer._validate import (
    check_form,
    check_losses,
    check_no_grad_sample,
)
from dp.per_sample import clear_grad_samples
from dp.plan import PrivacyPlan
from forwarding import forwarded, target


__all__ = ("PrivateStep",)

_REQUIRES_GRAD: Final = attrgetter("requires_grad")


class PrivateStep(TransparentOptimizer):
    """Base class of the private optimizer: what happens in a step."""

    # Own, in one object that copies and proxies of this optimizer share.
    mechanism: Mechanism = target(Mechanism)
    plan: PrivacyPlan = forwarded(mechanism.plan, set=False, delete=False)
    ledger: Ledger = forwarded(mechanism.ledger, set=False, delete=False)
    noise_multiplier: float = forwarded(mechanism.noise_multiplier)
    max_grad_norm: float = forwarded(mechanism.max_grad_norm)
    bias_correction: AdamBiasCorrection | None = None

    # Own: GradScaler asks for it, so that it leaves gradients alone and calls `step`.
    _step_supports_amp_scaling = True

    @wrap_step_hooks
    def step(
        self, closure: Callable[[], Any] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Release a private gradient and let the wrapped optimizer apply it.

        Args:
            closure: Computes losses, calls :meth:`backward` and returns a loss. It is
                evaluated once, with gradients enabled, before the release.
            *args: For the wrapped optimizer's step, after its closure.
            **kwargs: As *args*. Neither may depend on private data.

        Returns:
            What *closure* returned; without one, what the wrapped optimizer returned.

        Raises:
            BudgetExhaustedError: If the plan does not allow another step.
            SamplingMismatchError: If the batch does not match its ticket, or if it has
                per-example gradients from both :meth:`backward` and ``p.grad_sample``.
            UnsupportedOperationError: If losses under a gradient scaler did not pass
                through :meth:`private_loss`.
            RankFailedError: If another process raised, died, or did not come in time.
            RanksDivergedError: If processes that train together do not agree.
        """
        loss = _evaluated(closure)
        if not self.mechanism.beside.has_updated:
            hook_layers_around(self)
            if not self.mechanism.watch.silenced:
                likely_causes.warn_without_callback(closure, stacklevel=3)
        # The update itself is post-processing of what was released, and needs no lock.
        with self.mechanism.step:
            stddev = self._set_private_gradients()
        self._note_options()
        positional = (None, *args) if args else ()
        result = run_permitted(self, self._update, *positional, **kwargs)
        if self.bias_correction is not None and stddev is not None:
            inner = self.original_optimizer
            self.bias_correction.apply_(inner, noise_stddev=stddev)
        self._note_update()
        return result if closure is None else loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 -- torch's signature
        """Drop the batch at hand, and reset gradients as the wrapped optimizer does.

        A batch that was dropped may be computed again before its step.
        """
        self.mechanism.step.drop()
        clear_grad_samples(self._all_parameters())
        super().zero_grad(set_to_none=set_to_none)
        self.mechanism.beside.is_cleared = set_to_none

    @disable_dynamo
    def _losses_alone(
        self, losses: LossFunction | Tensor, batch: Any, units: Tensor | None
    ) -> Tensor:
        with self.mechanism.step:
            return self._losses_of(losses, batch, units)

    def _losses_of(
        self, losses: LossFunction | Tensor, batch: Any, units: Tensor | None
    ) -> Tensor:
        """Return the losses: evaluated here, or finished ones."""
        check_form(losses, has_batch=batch is not NO_BATCH)
        if isinstance(losses, Tensor):
            check_losses(losses, has_units=units is not None)
            segment = self.ledger.segment
            self.mechanism.watch.finished(self._trainable, segment=segment)
            return losses
        vector = self.mechanism.evaluate(losses, batch, units)
        check_losses(vector, has_units=units is not None)
        return vector

    @disable_dynamo
    def _backward(
        self,
        losses: LossFunction | Tensor,
        batch: Any,
        units: Tensor | None,
        reduction: Reduction,
    ) -> None:
        with self.mechanism.step as state:
            vector = self._losses_of(losses, batch, units)
            self._accumulate(state, vector, units, reduction, scale=None)

    @disable_dynamo
    def _backward_scaled(
        self,
        losses: Tensor,
        units: Tensor | None,
        reduction: Reduction,
        *,
        scale: float,
    ) -> None:
        with self.mechanism.step as state:
            self._accumulate(state, losses, units, reduction, scale=scale)

    def _accumulate(
        self,
        state: StepState,
        losses: Tensor,
        units: Tensor | None,
        reduction: Reduction,
        *,
        scale: float | None,
    ) -> None:
        refresh(self)
        self.mechanism.step.drop_cleared()
        check_no_grad_sample(self.param_groups, likely_causes.BESIDE, nor_soon=True)
        parameters = self._trainable()
        self._find_scales()
        look_beside(
            self.mechanism,
            losses,
            parameters,
            owned=self._all_parameters(),
            ledger_of=_ledger_of,
        )
        self.mechanism.accumulate(
            losses,
            parameters,
            units=units,
            reduction=reduction,
            loss_scale=power_of_two_for(
                scale, expected_batch_size=self.plan.expected_batch_size
            ),
            is_scaled=scale is not None,
        )
        state.hide_gradients(parameters, scale=scale)

    @disable_dynamo
    def _set_private_gradients(self) -> float | None:
        """Write the release to ``p.grad``; return its noise's standard deviation."""
        parameters = self._trainable()
        if self._only_initialises_state(parameters):
            return None
        self._find_scales()
        self._take_gradients(parameters)
        gradients = self.mechanism.release(parameters)  # Private from here on.
        # Cleared only now: what is refused above leaves everything as it was.
        for parameter in self._all_parameters():
            parameter.grad = None  # A frozen one may still hold a raw gradient.
        for parameter, gradient in zip(parameters, gradients, strict=True):
            is_wider = gradient.dtype != parameter.dtype
            parameter.grad = gradient.to(parameter.dtype) if is_wider else gradient
        self.mechanism.step.show([p.grad for p in parameters[:1] if p.grad is not None])
        return self.mechanism.released_stddev

    @disable_dynamo
    def _note_options(self) -> None:
        self.mechanism.options.note(self.param_groups, self, self.original_optimizer)
        note_release(self.mechanism.beside, self.mechanism.loader)
        remark(self.mechanism, self._all_parameters())
        self.mechanism.beside.forget()  # Until noted: an update may be broken off.

    @disable_dynamo
    def _note_update(self) -> None:
        # What is kept by the identity of parameters that come and go must not be traced.
        self.mechanism.beside.note(self._trainable(), since="updated")

    def _find_scales(self) -> None:
        """Tell the mechanism of the wrapped optimizer, which others may replace."""
        inner = self.original_optimizer
        self.mechanism.scaling = scaling_of(self.mechanism.clipping, inner)

    def _take_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make sure that the batch at hand is all that a release would be about.

        Raises:
            SamplingMismatchError: If ``backward`` and another library both made
                per-example gradients for it.
            UnsupportedOperationError: If a gradient scaler's scale is unknown, or if
                the wrapped optimizer could not write to the parameters.
        """
        check_in_place(self.param_groups)
        refresh(self)
        self.mechanism.step.drop_cleared()
        self._check_scaled()
        if self.mechanism.pending is None:  # Another library may have made them.
            self.mechanism.accumulate_grad_samples(parameters)
            return
        check_no_grad_sample(self.param_groups, likely_causes.BESIDE, nor_soon=False)
        if self.mechanism.step.has_foreign_grads(parameters):
            likely_causes.warn_of_other_gradients()

    def _only_initialises_state(self, parameters: Sequence[Tensor]) -> bool:
        """Whether this is the empty step by which checkpoints create missing state.

        ``torch.distributed.checkpoint`` puts a gradient of zeros on every parameter,
        sets every learning rate to 0 and calls ``step``: nothing private takes part.
        """
        # All four conditions are needed: a raw gradient at a learning rate of 0 would
        # still enter momentum, which later steps apply.
        return (
            self.mechanism.step.all_foreign(parameters)
            and not self.state
            and all(float(group.get("lr", 1)) == 0 for group in self.param_groups)
            and not any(bool(p.grad.any()) for p in parameters if p.grad is not None)
        )

    def _check_scaled(self) -> None:
        pending = self.mechanism.pending
        all_scaled = pending is None or pending.all_scaled
        if "grad_scale" in vars(self) and not all_scaled:
            raise UnsupportedOperationError(likely_causes.UNSCALED)

    def _trainable(self) -> list[Tensor]:
        return [*filter(_REQUIRES_GRAD, self._all_parameters())]


def _ledger_of(parameter: Tensor) -> Ledger | None:
    owner = private_owner_of(parameter)
    return owner.ledger if isinstance(owner, PrivateStep) else None


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    if not callable(closure):
        raise TypeError(
            "the first argument of step is a closure, or None, got a"
            f" {type(closure).__name__}; pass arguments of the wrapped optimizer's step by name"
        )
    with torch.enable_grad():
        return closure()
