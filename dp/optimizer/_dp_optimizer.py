"""A differentially private optimizer around any :mod:`torch.optim` optimizer.

:class:`DPOptimizer` is the optimizer it wraps, as far as anyone can tell from
outside, except that ``step`` applies a private gradient. How it stays transparent is
:mod:`dp.optimizer._transparent`'s business; how it steps, that of
:mod:`dp.optimizer._private_step`; and what it owes, that of
:mod:`dp.optimizer._accounted`.

Shapes: ``B`` examples in a batch.
"""

from collections.abc import Sequence
from typing import Any, Final, overload

from torch import Tensor
from torch.optim import Optimizer

from dp._mechanism.loss_units import Reduction
from dp.certificate import Certificate
from dp.clipping import Clipping
from dp.distributed import sharding_of
from dp.evidence import LossFunction
from dp.evidence._watch import NO_BATCH
from dp.ledger import Ledger  # noqa: TC001 -- for whoever reads the hints
from dp.noise import GaussianNoise
from dp.optimizer._accounted import AccountedStep
from dp.optimizer._adapts import check_fits, num_noised
from dp.optimizer._beside import sentences
from dp.optimizer._bias_correction import AdamBiasCorrection, check_correctable
from dp.optimizer._checkpoint import reserve_key
from dp.optimizer._guard import (
    check_subclass,
    check_wrappable,
    protect,
)
from dp.optimizer._joint_optimizer import JointOptimizer
from dp.optimizer._layers_around import accept_writes_around
from dp.optimizer._private_loss import private_loss
from dp.optimizer._validate import (
    Public,
    check_loader,
    check_no_grad_sample,
    clipping_for,
    declared_public,
)
from dp.plan import PrivacyPlan
from dp.sampling import TicketedLoader


__all__ = ("DPOptimizer",)

_STALE: Final = (
    "already, from before it was private, as a model in Opacus' GradSampleModule leaves"
    " it; set grad_sample to None on every parameter, and then wrap the optimizer"
)


class DPOptimizer(AccountedStep):
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

    # Composed: step and zero_grad (the batch at hand), and the state (the ledger).
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
        check_fits(rule, original_optimizer)
        check_correctable(bias_correction, original_optimizer, rule, plan)
        super().__init__(original_optimizer)
        self._begin(
            plan,
            continue_from,
            declared,
            loader=loader,
            clipping=rule,
            noise=GaussianNoise() if noise is None else noise,
        )
        self.bias_correction = bias_correction
        self.mechanism.beside.note(self._trainable(), since="made")
        reserve_key(self.param_groups)
        protect(self)
        accept_writes_around()

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

    def attach(self, loader: TicketedLoader) -> None:
        """Take tickets from *loader* from now on, as after unpickling.

        Raises:
            ValueError: If *loader* does not sample as the plan says.
        """
        check_loader(self.plan, loader)
        self.mechanism.attach(loader)

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
        self.mechanism.options.warn_again(self, self.original_optimizer)
        return Certificate.of(
            self.ledger,
            noise=self.mechanism.noise,
            num_parameters=num_noised(self.mechanism.clipping, self._all_parameters()),
            evidence=self.mechanism.watch.records,
            private_data_touches=private_data_touches,
            assumptions=(
                *sentences(self.mechanism),
                *self.mechanism.watch.assumed(),
                *assumptions,
            ),
            public_end=public_end,
        )

    def __repr__(self) -> str:
        failure = self.ledger.failure
        verdict = "" if failure is None else f"NOT PRIVATE ({failure}): "
        return f"{verdict}{super().__repr__()}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        protect(self)
        accept_writes_around()
