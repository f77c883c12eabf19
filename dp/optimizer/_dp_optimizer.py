"""A differentially private optimizer around any :mod:`torch.optim` optimizer.

:class:`DPOptimizer` is the optimizer it wraps, as far as anyone can tell from
outside, except that ``step`` applies a private gradient. How it stays transparent is
:mod:`dp.optimizer._transparent`'s business; what it releases is :mod:`dp._mechanism.mechanism`'s.

Shapes: ``B`` examples in a batch.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from dp._mechanism.changed_options import CHANGED, warn_of_plateau_on
from dp._mechanism.loss_units import Reduction
from dp._mechanism.mechanism import Mechanism
from dp._mechanism.step_state import StepState
from dp.accounting import Guarantee
from dp.certificate import Certificate
from dp.clipping import Clipping, QuantileClipping
from dp.distributed import sharding_of
from dp.evidence import LossFunction
from dp.evidence._watch import NO_BATCH
from dp.exceptions import LedgerError, UnsupportedOperationError
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.optimizer import _checkpoint as carried
from dp.optimizer._beside import look_beside, sentences
from dp.optimizer._bias_correction import AdamBiasCorrection, check_correctable
from dp.optimizer._guard import (
    check_subclass,
    check_wrappable,
    private_owner_of,
    protect,
    refresh,
    run_permitted,
)
from dp.optimizer._joint_optimizer import JointOptimizer
from dp.optimizer._layers_around import accept_writes_around, hook_layers_around
from dp.optimizer._private_loss import power_of_two_for, private_loss
from dp.optimizer._second_moments import check_scalable, scaling_of
from dp.optimizer._step_hooks import disable_dynamo, wrap_step_hooks
from dp.optimizer._transparent import TransparentOptimizer
from dp.optimizer._validate import (
    Public,
    check_form,
    check_loader,
    check_losses,
    check_no_grad_sample,
    clipping_for,
    declared_public,
    ledger_for,
)
from dp.per_sample import clear_grad_samples
from dp.plan import PrivacyPlan
from dp.sampling import TicketedLoader
from forwarding import forwarded, target


__all__ = ("DPOptimizer",)

_STALE: Final = (
    "already, from before it was private, as a model in Opacus' GradSampleModule leaves"
    " it; set grad_sample to None on every parameter, and then wrap the optimizer"
)
_BESIDE_LOSSES: Final = (
    "while losses were given to backward or private_loss: an example has one gradient a"
    " step. Take the model out of Opacus' GradSampleModule (to_standard_module()) and"
    " call zero_grad(), or give no losses and let step take every grad_sample"
)


class DPOptimizer(TransparentOptimizer):
    """Wrap an optimizer so that every step it takes is differentially private.

    Call :meth:`backward` with the function that returns one loss an example and with
    its batch, then :meth:`step`.
    Everything else is as with the wrapped optimizer: learning-rate schedulers,
    hooks, parameter groups and checkpoints act on it through this object.

    Guarantees:
        * One example changes a released gradient sum by at most
          ``plan.max_grad_norm`` in L2 norm; an example whose gradient is NaN or
          infinite contributes nothing.
        * The ledger is charged before noise is drawn; a step that the plan does not
          allow raises and changes nothing.
        * No gradient without noise is ever written to ``p.grad``.

    Args:
        original_optimizer: The optimizer that makes the update; a
            :class:`~dp.JointOptimizer` of several.
        plan: The public numbers of the run.
        loader: The loader whose batches are trained on, from ``plan.loader``.
            Required if the plan claims amplification by sampling; a
            :class:`dp.sampling.UnamplifiedLoader`, or none, if not.
        clipping: The clipping rule; flat clipping at ``plan.max_grad_norm`` if None.
        noise: The source of noise; a cryptographic generator if None.
        public: Tensors that are no data, but constants of the program, for weights
            that are computed with them: a fixed basis, a mask, a buffer of a
            parametrization. Names, as of ``dict(model.named_buffers())``, go into the
            certificate. A function that returns such tensors is called at every step,
            for constants that follow from the parameters. That they are public is the
            caller's claim, which the certificate states: a buffer can have been computed
            from private data.
        continue_from: The optimizer, or its ledger, that trained these weights or on
            this data before. Its charges count in this one's budget and certificate, so
            *plan* has to allow for them: one that is equal shares the ledger.
        bias_correction: Takes the variance of the noise out of Adam's second moments;
            None leaves the wrapped optimizer's update as it is.

    Raises:
        TypeError: If *original_optimizer* is not an optimizer, or is private already.
        UnsupportedOperationError: If it cannot be made private, with the reason.
        ValueError: If *loader* or *clipping* contradict the plan.
        SamplingMismatchError: If a parameter has a ``grad_sample`` of another run.
        LedgerError: If what *continue_from* charged protects another unit.

    References:
        Abadi et al., "Deep Learning with Differential Privacy", 2016, Algorithm 1.
        https://arxiv.org/abs/1607.00133
    """

    # Own, in one object that copies and proxies of this optimizer share.
    mechanism: Mechanism = target(Mechanism)
    plan: PrivacyPlan = forwarded(mechanism.plan, set=False, delete=False)
    ledger: Ledger = forwarded(mechanism.ledger, set=False, delete=False)
    noise_multiplier: float = forwarded(mechanism.noise_multiplier)
    max_grad_norm: float = forwarded(mechanism.max_grad_norm)
    bias_correction: AdamBiasCorrection | None = None

    # Own: GradScaler asks for it, so that it leaves gradients alone and calls `step`.
    _step_supports_amp_scaling = True

    # Composed: step and zero_grad (the batch at hand), state_dict and
    # load_state_dict (the ledger).
    # Refused: a step of the wrapped optimizer, or of any other, that goes around
    # this one; optimizers and subclasses that need other gradients; see dp.optimizer._guard.

    def __init__(
        self,
        original_optimizer: Optimizer,
        *,
        plan: PrivacyPlan,
        loader: TicketedLoader | None = None,
        clipping: Clipping | None = None,
        noise: GaussianNoise | None = None,
        public: Public = (),
        continue_from: "DPOptimizer | Ledger | None" = None,
        bias_correction: AdamBiasCorrection | None = None,
    ) -> None:
        check_wrappable(original_optimizer)
        parts = (
            original_optimizer.optimizers
            if isinstance(original_optimizer, JointOptimizer)
            else (original_optimizer,)
        )
        if any(isinstance(part, DPOptimizer) for part in parts):
            raise TypeError(
                "original_optimizer is a DPOptimizer already; wrapping it twice would"
                " add noise twice and charge two ledgers"
            )
        check_loader(plan, loader)
        declared = declared_public(public)
        check_no_grad_sample(original_optimizer.param_groups, _STALE, nor_soon=False)
        # Built only from what can be trained: an error in the first step would come after
        # hours of preparation.
        for group in original_optimizer.param_groups:
            for parameter in group["params"]:
                sharding_of(parameter)  # Raises if it is spread in an unknown way.
        rule = clipping_for(plan, clipping)
        check_scalable(rule, original_optimizer)
        check_correctable(bias_correction, original_optimizer, rule)
        super().__init__(original_optimizer)
        ledger = ledger_for(plan, continue_from)
        ledger.declare_public(declared)
        self.mechanism = Mechanism(
            plan=plan,
            clipping=rule,
            noise=GaussianNoise() if noise is None else noise,
            ledger=ledger,
            loader=loader,
            public=tuple(declared.values()),
        )
        self.bias_correction = bias_correction
        self.mechanism.beside.note(self._trainable(), since="made")
        carried.reserve_key(self.param_groups)
        protect(self)
        accept_writes_around(_accept_writes)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_subclass(cls)

    @overload
    def backward(
        self,
        losses: LossFunction,
        batch: Any,
        *,
        units: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> None: ...

    @overload
    def backward(
        self,
        losses: Tensor,
        *,
        units: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> None: ...

    def backward(
        self,
        losses: LossFunction | Tensor,
        batch: Any = NO_BATCH,
        *,
        units: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> None:
        """Add the clipped gradient of every example's loss to the sums of this step.

        May be called several times for one step, each time with other examples of
        the batch; the split into micro-batches does not change the result.

        Guarantees:
            * Given a function, it is evaluated again on the same batch in the first
              steps, and in one of 50 after: with other examples in the places of some,
              and the same random numbers. The losses of the others must not change.
            * Afterwards generators, buffers, training modes and what the function keeps
              in variables and attributes are as one evaluation leaves them.

        Args:
            losses: A function that is called as ``losses(batch)`` and returns one loss
                an example, with its autograd graph, which is freed. With a loader that
                has ``units``, one loss a row of its batch. With *units*, losses of any
                shape. Or these losses themselves: then nobody can see what they were
                computed from, and the certificate says so.
            batch: What the function is called with: the batch, or a part of it.
            units: Whose each loss is, where a unit of privacy has several: integers of
                the shape of the losses, the positions of the units among those drawn.
                All losses of a unit are clipped as one.
            reduction: Whether a unit's loss is the ``"sum"`` or the ``"mean"`` of its
                losses; with *units* only.

        Raises:
            ValueError: If the losses are no vector of floating-point numbers, or
                if *units* do not fit it.
            TypeError: If a function comes without a batch, or losses with one.
            SampleMixingError: If one example's loss depends on another example.
            WrongGradientError: If a gradient is not torch's own, where it is verified.
            UnsupportedOperationError: If the losses come from none of the parameters.
            SamplingMismatchError: If the losses do not fit the batch that was drawn, if
                a unit has losses in two calls of a step, or if another library left
                per-example gradients in ``p.grad_sample``.

        References:
            Several views of an example, clipped once (augmentation multiplicity): De
            et al., "Unlocking High-Accuracy Differentially Private Image
            Classification through Scale", 2022, https://arxiv.org/abs/2204.13650.
        """
        self._backward(losses, batch, units, reduction)

    @overload
    def private_loss(
        self,
        losses: LossFunction,
        batch: Any,
        *,
        units: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> Tensor: ...

    @overload
    def private_loss(
        self,
        losses: Tensor,
        *,
        units: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> Tensor: ...

    def private_loss(
        self,
        losses: LossFunction | Tensor,
        batch: Any = NO_BATCH,
        *,
        units: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> Tensor:
        """Return the mean loss as a scalar whose ``backward()`` is :meth:`backward`.

        For trainers that call ``loss.backward()`` themselves. What they multiply the
        scalar with (a gradient scaler's loss scale, a division by the number of
        micro-batches) is divided out of every example's gradient before it is clipped:
        the sum of clipped gradients is divided by the plan's expected batch size,
        once, in :meth:`step`. Weigh the losses themselves instead.

        Args:
            losses: As for :meth:`backward`; a function is evaluated at once.
            batch: As for :meth:`backward`.
            units: As for :meth:`backward`.
            reduction: As for :meth:`backward`.

        Raises:
            ValueError: If the losses are no vector of floating-point numbers; from
                ``backward()``, if the scalar was multiplied with 0 or less.
            TypeError: If a function comes without a batch, or losses with one.
            SampleMixingError: If one example's loss depends on another example.
        """
        vector = self._losses_alone(losses, batch, units)
        return private_loss(
            vector, lambda g: self._backward_scaled(vector, units, reduction, scale=g)
        )

    @disable_dynamo
    def _losses_alone(
        self, losses: LossFunction | Tensor, batch: Any, units: Tensor | None
    ) -> Tensor:
        with self.mechanism.step.exclusive():
            return self._losses_of(losses, batch, units)

    def _losses_of(
        self, losses: LossFunction | Tensor, batch: Any, units: Tensor | None
    ) -> Tensor:
        """Return the losses: evaluated here, or finished ones."""
        check_form(losses, has_batch=batch is not NO_BATCH)
        if isinstance(losses, Tensor):
            check_losses(losses, has_units=units is not None)
            segment = self.ledger.segment
            self.mechanism.watch.finished(self._trainable(), segment=segment)
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
        with self.mechanism.step.exclusive() as state:
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
        with self.mechanism.step.exclusive() as state:
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
        self._drop_cleared()
        check_no_grad_sample(self.param_groups, _BESIDE_LOSSES, nor_soon=True)
        parameters = self._trainable()
        self._find_scales()
        look_beside(
            self.mechanism.beside,
            losses,
            parameters,
            owned=self._all_parameters(),
            ledger_of=_ledger_of,
            ledger=self.ledger,
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
        # The update itself is post-processing of what was released, and needs no lock.
        with self.mechanism.step.exclusive():
            stddev = self._set_private_gradients()
        if self.mechanism.options.note(self.param_groups):
            warn_of_plateau_on((self, self.original_optimizer))
        self.mechanism.beside.forget()  # Until noted: an update may be broken off.
        result = run_permitted(self._update, *((None, *args) if args else ()), **kwargs)
        if self.bias_correction is not None and stddev is not None:
            inner = self.original_optimizer
            self.bias_correction.apply_(inner, noise_stddev=stddev)
        self.mechanism.beside.note(self._trainable(), since="updated")
        return result if closure is None else loss

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

    def _find_scales(self) -> None:
        """Tell the mechanism of the wrapped optimizer, which others may replace."""
        inner = self.original_optimizer
        self.mechanism.scaling = scaling_of(self.mechanism.clipping, inner)

    def _take_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make sure that the batch at hand is all that a release would be about.

        Raises:
            SamplingMismatchError: If ``backward`` and another library both made
                per-example gradients for it.
            UnsupportedOperationError: If a gradient scaler's scale is unknown.
        """
        refresh(self)
        self._drop_cleared()
        self._check_scaled()
        if self.mechanism.pending is None:  # Another library may have made them.
            self.mechanism.accumulate_grad_samples(parameters)
            return
        check_no_grad_sample(self.param_groups, _BESIDE_LOSSES, nor_soon=False)
        if self.mechanism.step.has_foreign_grads(parameters):
            warnings.warn(
                "gradients of another loss were found on private parameters and dropped:"
                " only losses given to backward or private_loss count. Add every other"
                " term, such as a penalty on the weights, to each example's loss",
                stacklevel=5,
            )

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

    def _drop_cleared(self) -> None:
        """Drop the batch at hand if its gradients were set to None on the model."""
        if self.mechanism.step.was_cleared():
            self.mechanism.step.drop()

    def _check_scaled(self) -> None:
        pending = self.mechanism.pending
        all_scaled = pending is None or pending.all_scaled
        if "grad_scale" in vars(self) and not all_scaled:
            raise UnsupportedOperationError(
                "a gradient scaler takes part in this step, but the losses were given to"
                " backward(), which clips them as they are; call"
                " scaler.scale(optimizer.private_loss(loss_fn, batch)).backward()"
            )

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 -- torch's signature
        """Drop the batch at hand, and reset gradients as the wrapped optimizer does.

        A batch that was dropped may be computed again before its step.
        """
        self.mechanism.step.drop()
        clear_grad_samples(self._all_parameters())
        super().zero_grad(set_to_none=set_to_none)

    def _compose_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return carried.embed_ledger(state_dict, self.mechanism)

    def _take_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict, ledgers = carried.extract_ledgers(state_dict)
        if not ledgers:
            raise LedgerError(
                "the state has no ledger, so what was spent to reach it is unknown;"
                " save state_dict() of the DPOptimizer, or call"
                " load_state_dict_without_ledger if no private data was used for it"
            )
        values = self.mechanism.values
        overrides = values.overrides_from(
            [x["settings"] for x in ledgers if "settings" in x]
        )
        evidence = carried.evidence_in(ledgers)
        self.mechanism.step.drop()
        self.mechanism.beside.forget()
        for ledger in ledgers:
            self.ledger.load_state_dict(ledger)
        for records in evidence:
            self.mechanism.watch.load(records)
        if overrides is not None:
            values.restore(*overrides)
        return state_dict

    def load_state_dict_without_ledger(self, state_dict: dict[str, Any]) -> None:
        """Load a state that no private data went into; the ledger stays as it is.

        The caller vouches for it: a certificate cannot see what this state cost.

        Raises:
            LedgerError: If the state has a ledger after all.
        """
        state_dict, ledgers = carried.extract_ledgers(state_dict)
        if ledgers:
            raise LedgerError(
                "the state has a ledger, so private data was used for it; call"
                " load_state_dict, which adds what was spent"
            )
        self.load_state_dict(carried.embed_ledger(state_dict, self.mechanism))

    def attach(self, loader: TicketedLoader) -> None:
        """Take tickets from *loader* from now on, as after unpickling.

        Raises:
            ValueError: If *loader* does not sample as the plan says.
        """
        check_loader(self.plan, loader)
        self.mechanism.attach(loader)

    def spent(self) -> Guarantee:
        """Return what every release so far composes to, at the plan's delta.

        A guarantee only if the number of steps was fixed beforehand: see
        :meth:`guarantee` for what holds whenever the run ends.
        """
        return self.ledger.spent()

    def guarantee(self) -> Guarantee:
        """Return the (epsilon, delta) that holds of the run, whenever it ends.

        That of the whole plan, even after a part of its steps: what was released may
        have decided that the run ends there.
        """
        return self.ledger.guarantee()

    def assign_public(self, *, noise_multiplier: float, reason: str) -> None:
        """Let *noise_multiplier* hold from now on, whatever was planned.

        The caller vouches for it: the number, and that it was changed at this step, was
        fixed beforehand or follows from public facts alone. ``del
        optimizer.noise_multiplier`` returns to the plan.

        Args:
            noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
            reason: Why it is public; the certificate prints it.

        Raises:
            ValueError: If the number is out of range, or no reason is given.
        """
        self.mechanism.values.assign_public(noise_multiplier, reason=reason)

    def certificate(
        self,
        *,
        private_data_touches: Sequence[str] | None = None,
        assumptions: Sequence[str] = (),
        public_end: str | None = None,
    ) -> Certificate:
        """Return the document that says what was released and what it cost.

        Args:
            public_end: Why it is public after how many steps the run ended, where it
                ended before its plan: "the cluster's time limit". Epsilon is then that
                of the steps taken, and the reason is printed. If None, epsilon is the
                plan's, since what was released may have decided the end.
            private_data_touches: What else looked at private data, such as a choice
                of hyper-parameters, one sentence each; ``()`` says that nothing did.
                If None, the certificate says that this was not stated.
            assumptions: What else must hold for it to be true, one sentence each.
        """
        return Certificate.of(
            self.ledger,
            noise=self.mechanism.noise,
            # A count beside the gradients is one more number that was noised.
            num_parameters=sum(p.numel() for p in self._all_parameters())
            + isinstance(self.mechanism.clipping, QuantileClipping),
            evidence=self.mechanism.watch.records,
            private_data_touches=private_data_touches,
            assumptions=(*self._assumed(), *assumptions),
            public_end=public_end,
        )

    def _assumed(self) -> tuple[str, ...]:
        """Return what a certificate has to assume of what was seen beside gradients."""
        beside, options = self.mechanism.beside, self.mechanism.options
        if not options.have_changed:
            return sentences(beside)
        warn_of_plateau_on((self, self.original_optimizer))
        return *sentences(beside), CHANGED

    def __repr__(self) -> str:
        failure = self.ledger.failure
        verdict = "" if failure is None else f"NOT PRIVATE ({failure}): "
        return f"{verdict}{super().__repr__()}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        protect(self)
        accept_writes_around(_accept_writes)

    def _trainable(self) -> list[Tensor]:
        return [p for p in self._all_parameters() if p.requires_grad]


def _accept_writes(optimizer: DPOptimizer) -> None:
    optimizer.mechanism.beside.accept(optimizer._trainable())  # noqa: SLF001 -- its own module


def _ledger_of(parameter: Tensor) -> Ledger | None:
    owner = private_owner_of(parameter)
    return owner.ledger if isinstance(owner, DPOptimizer) else None


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    if not callable(closure):
        raise TypeError(
            f"the first argument of step is a closure, or None, got {closure!r}; pass"
            " arguments of the wrapped optimizer's step by name"
        )
    with torch.enable_grad():
        return closure()
