"""A differentially private optimizer around any :mod:`torch.optim` optimizer.

:class:`DPOptimizer` is the optimizer it wraps, as far as anyone can tell from
outside, except that ``step`` applies a private gradient. How it stays transparent is
:mod:`dp._transparent`'s business; what it releases is :mod:`dp._mechanism`'s.

Shapes: ``B`` examples in a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from dp._guard import permit, protect
from dp._mechanism import Mechanism
from dp._transparent import TransparentOptimizer
from dp.accounting import Guarantee
from dp.certificate import Certificate
from dp.clipping import Clipping, FlatClipping
from dp.distributed import sharding_of
from dp.exceptions import LedgerError, UnsupportedOperationError
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.plan import PrivacyPlan
from dp.sampling import PoissonLoader, PoissonSampling
from forwarding import forwarded, target


__all__ = ("DPOptimizer",)

# Optimizers whose update cannot be made from one private gradient a step.
_REFUSED = {
    "LBFGS": "its line search evaluates the loss many times within one step",
    "SparseAdam": "it needs sparse gradients, and private noise is dense",
}


class DPOptimizer(TransparentOptimizer):
    """Wrap an optimizer so that every step it takes is differentially private.

    Call :meth:`backward` with the vector of per-example losses, then :meth:`step`.
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
        original_optimizer: The optimizer that makes the update.
        plan: The public numbers of the run.
        loader: The loader whose batches are trained on, from ``plan.loader``.
            Required if the plan claims amplification by sampling, refused if not.
        clipping: The clipping rule; flat clipping at ``plan.max_grad_norm`` if None.
        noise: The source of noise; a cryptographic generator if None.

    Raises:
        TypeError: If *original_optimizer* is not an optimizer, or is private already.
        UnsupportedOperationError: If it cannot be made private, with the reason.
        ValueError: If *loader* or *clipping* contradict the plan.

    References:
        Abadi et al., "Deep Learning with Differential Privacy", 2016, Algorithm 1.
        https://arxiv.org/abs/1607.00133
    """

    # Own, in one object that copies and proxies of this optimizer share.
    mechanism: Mechanism = target(Mechanism)
    plan: PrivacyPlan = forwarded(mechanism.plan, set=False, delete=False)
    ledger: Ledger = forwarded(mechanism.ledger, set=False, delete=False)

    # Own: GradScaler asks for it, so that it leaves gradients alone and calls `step`.
    _step_supports_amp_scaling = True

    # Composed: step and zero_grad (the batch at hand), state_dict and
    # load_state_dict (the ledger).
    # Refused: a step of the wrapped optimizer, or of any other, that goes around
    # this one; see dp._guard.

    def __init__(
        self,
        original_optimizer: Optimizer,
        *,
        plan: PrivacyPlan,
        loader: PoissonLoader | None = None,
        clipping: Clipping | None = None,
        noise: GaussianNoise | None = None,
    ) -> None:
        _check_optimizer(original_optimizer)
        _check_loader(plan, loader)
        for group in original_optimizer.param_groups:
            for parameter in group["params"]:
                sharding_of(parameter)  # Raises if it is spread in an unknown way.
        super().__init__(original_optimizer)
        self.mechanism = Mechanism(
            plan=plan,
            clipping=_clipping_for(plan, clipping),
            noise=GaussianNoise() if noise is None else noise,
            ledger=Ledger(plan),
            loader=loader,
        )
        protect(self)

    def backward(self, losses_B: Tensor) -> None:
        """Add the clipped gradient of every example's loss to the sums of this step.

        May be called several times for one step, each time with other examples of
        the batch; the split into micro-batches does not change the result.

        Args:
            losses_B: One loss an example, with its autograd graph, which is freed.

        Raises:
            ValueError: If *losses_B* is not a vector of floating-point losses.
            SampleMixingError: If one example's loss depends on another example.
            SamplingMismatchError: If the losses do not fit the batch that was drawn.
        """
        if losses_B.dim() != 1 or not losses_B.is_floating_point():
            raise ValueError(
                "losses must be a floating-point vector, one loss an example, got"
                f" {losses_B.dtype} with {losses_B.dim()} dimensions; use"
                " reduction='none', and reduce over each example's own terms only"
            )
        self.mechanism.accumulate(losses_B, self._trainable())

    def private_loss(self, losses_B: Tensor) -> Tensor:
        """Return the mean loss as a scalar whose ``backward()`` is :meth:`backward`.

        For trainers that call ``loss.backward()`` themselves. The gradient that
        reaches the scalar (a loss scale, a division by the number of micro-batches)
        is not applied: the sum of clipped gradients is divided by the plan's
        expected batch size, once, in :meth:`step`.
        """
        anchor = losses_B.detach().mean().requires_grad_()
        loss: Tensor = _Gate.apply(  # type: ignore[no-untyped-call]  # torch has no types
            anchor, lambda: self.backward(losses_B)
        )
        return loss

    def step(  # type: ignore[override]  # torch overloads by closure; one form serves
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Release a private gradient and let the wrapped optimizer apply it.

        Args:
            closure: Computes losses, calls :meth:`backward` and returns a loss. It is
                evaluated once, with gradients enabled, before the release.

        Returns:
            What *closure* returned.

        Raises:
            BudgetExhaustedError: If the plan does not allow another step.
            SamplingMismatchError: If the batch does not match its ticket.
            UnsupportedOperationError: If a gradient scaler takes part in the step.
            RankFailedError: If another process raised, died, or did not come in time.
            RanksDivergedError: If processes that train together do not agree.
        """
        args = () if closure is None else (closure,)
        return self._with_step_hooks(lambda: self._private_step(closure), args)

    step.hooked = True  # type: ignore[attr-defined]  # torch's mark: leave it as it is

    def _private_step(self, closure: Callable[[], float] | None) -> float | None:
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._only_initialises_state():
            self._set_private_gradients()
        with permit():
            self.original_optimizer.step()
        return loss

    def _set_private_gradients(self) -> None:
        self._refuse_gradient_scaler()
        parameters = self._trainable()
        noisy_sums = self.mechanism.release(parameters)  # Private from here on.
        scale = 1 / self.plan.expected_batch_size  # A public constant.
        for parameter in self._all_parameters():
            parameter.grad = None  # A frozen one may still hold a raw gradient.
        for parameter, noisy_sum in zip(parameters, noisy_sums, strict=True):
            parameter.grad = noisy_sum.mul_(scale).to(parameter.dtype)

    def _only_initialises_state(self) -> bool:
        """Whether this is the empty step by which checkpoints create missing state.

        ``torch.distributed.checkpoint`` sets every gradient to zero and every
        learning rate to 0 and calls ``step``: nothing private takes part.
        """
        gradients = [p.grad for p in self._trainable()]
        return (
            self.mechanism.pending is None
            and bool(gradients)
            and all(float(group.get("lr", 1)) == 0 for group in self.param_groups)
            and not any(g is None or bool(g.any()) for g in gradients)
        )

    def _refuse_gradient_scaler(self) -> None:
        if "grad_scale" in vars(self):
            raise UnsupportedOperationError(
                "GradScaler cannot step a DPOptimizer yet: gradients were clipped"
                " before they could be unscaled; train in bfloat16 or float32, which"
                " need no loss scale"
            )

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 -- torch's signature
        """Drop the batch at hand, and reset gradients as the wrapped optimizer does.

        A batch that was dropped may be computed again before its step.
        """
        self.mechanism.discard()
        super().zero_grad(set_to_none=set_to_none)

    def _compose_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "ledger": self.ledger.state_dict()}

    def _take_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        if "ledger" not in state_dict:
            raise LedgerError(
                "the state has no 'ledger', so what was spent to reach it is unknown;"
                " save state_dict() of the DPOptimizer, or call"
                " load_state_dict_without_ledger if no private data was used for it"
            )
        self.mechanism.discard()
        self.ledger.load_state_dict(state_dict["ledger"])
        return {k: v for k, v in state_dict.items() if k != "ledger"}

    def load_state_dict_without_ledger(self, state_dict: dict[str, Any]) -> None:
        """Load a state that no private data went into; the ledger stays as it is.

        The caller vouches for it: a certificate cannot see what this state cost.
        """
        self.load_state_dict({**state_dict, "ledger": self.ledger.state_dict()})

    def attach(self, loader: PoissonLoader) -> None:
        """Take tickets from *loader* from now on, as after unpickling.

        Raises:
            ValueError: If *loader* does not sample as the plan says.
        """
        _check_loader(self.plan, loader)
        self.mechanism.attach(loader)

    def spent(self) -> Guarantee:
        """Return the (epsilon, delta) of every release so far, at the plan's delta."""
        return self.ledger.spent()

    def certificate(self, *, assumptions: Sequence[str] = ()) -> Certificate:
        """Return the document that says what was released and what it cost.

        Args:
            assumptions: What else must hold for it to be true, one sentence each.
        """
        return Certificate.of(
            self.ledger,
            noise=self.mechanism.noise.description,
            assumptions=assumptions,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        protect(self)

    def _trainable(self) -> list[Tensor]:
        return [p for p in self._all_parameters() if p.requires_grad]


@final
class _Gate(torch.autograd.Function):
    """Run the private backward when autograd reaches the scalar loss."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, backward: Callable[[], None]) -> Tensor:
        ctx.backward_losses = backward
        return anchor.detach().clone()

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> tuple[None, None]:
        with torch.enable_grad():
            ctx.backward_losses()
        return None, None


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "original_optimizer must be a torch.optim.Optimizer, got"
            f" {type(optimizer).__name__}; construct it first, then wrap it"
        )
    if isinstance(optimizer, DPOptimizer):
        raise TypeError(
            "original_optimizer is a DPOptimizer already; wrapping it twice would add"
            " noise twice and charge two ledgers"
        )
    for kind in type(optimizer).__mro__:
        if kind.__module__.startswith("torch.") and kind.__name__ in _REFUSED:
            raise UnsupportedOperationError(
                f"{kind.__name__} cannot be made private: {_REFUSED[kind.__name__]}"
            )


def _check_loader(plan: PrivacyPlan, loader: PoissonLoader | None) -> None:
    if not isinstance(plan.sampling, PoissonSampling):
        if loader is not None:
            raise ValueError(
                "loader was given, but the plan claims no amplification; plan with"
                " PoissonSampling, or use the loader without giving it here"
            )
        return
    if not isinstance(loader, PoissonLoader):
        raise ValueError(  # noqa: TRY004 -- None is the likely value, not a wrong type
            f"the plan claims amplification by {plan.sampling!r}, which only"
            f" plan.loader(dataset) can prove, got loader={loader!r}; pass that"
            " loader, or plan with Unamplified()"
        )
    planned = plan.sampling.sampling_probability
    if loader.sampling_probability != planned:
        raise ValueError(
            f"loader samples with probability {loader.sampling_probability!r}, but the"
            f" plan says {planned!r}; use plan.loader(dataset)"
        )


def _clipping_for(plan: PrivacyPlan, clipping: Clipping | None) -> Clipping:
    if clipping is None:
        return FlatClipping(max_grad_norm=plan.max_grad_norm)
    sensitivity = clipping.sensitivity("add_or_remove_one")
    if sensitivity != plan.max_grad_norm:
        raise ValueError(
            f"clipping has sensitivity {sensitivity!r}, but the plan's noise is for"
            f" max_grad_norm={plan.max_grad_norm!r}; make them equal"
        )
    return clipping
