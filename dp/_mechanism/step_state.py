"""Where a private step stands: idle, accumulating a batch, or released.

A step goes round in three phases:

============  ======================  ==================  =====================
phase         ``backward``            ``step``            ``zero_grad``
============  ======================  ==================  =====================
idle          begins a batch:         refused, unless     stays idle
              accumulating            the draw is empty
accumulating  adds to the batch       charges, adds       drops the batch: idle
                                      noise: released
released      begins the next batch:  refused: the        idle
              accumulating            ticket is spent
============  ======================  ==================  =====================

What stands in ``p.grad`` follows from the phase. While a batch accumulates, its sums
are secret, but trainers look there all the same: a gradient scaler refuses to step
where it finds nothing, and a trainer that clears gradients on the model means this
batch. So one parameter carries a gradient of zeros, the *stand-in*, which tells who
takes it for a gradient. After the release
the private gradient stands there; any other gradient was put there by other code.
"""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, final

import torch
from torch import Tensor

from dp._mechanism.batch import PendingBatch
from dp._mechanism.stand_in import StandIn
from dp.exceptions import PrivacyError


__all__ = ("StepState",)

Phase = Literal["idle", "accumulating", "released"]


@final
@dataclass(slots=True)
class StepState:
    """The phase of a step, and what belongs to it.

    As a context it lets one thread at a time accumulate or release: clipped sums are
    updated in place, and of two threads one would read what the other has half written.
    Entering raises PrivacyError if another thread is inside, and changes nothing.

    Attributes:
        batch: The batch that accumulates; None in the other phases.
        stand_in: What stands in ``p.grad`` meanwhile.
    """

    batch: PendingBatch | None = None
    stand_in: StandIn = field(default_factory=StandIn)
    _is_scaled: bool = False  # Whether a trainer scales the losses of the batch.
    _released: weakref.ref[Tensor] | None = None  # A gradient that a step wrote.
    _is_released: bool = False
    _first_scale: float | None = None  # Where the run's gradient scaler began.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> Self:
        # Re-entrant, so that what an interrupt leaves locked stops no later step of
        # the same thread.
        if not self._lock.acquire(blocking=False):
            raise PrivacyError(
                "another thread is inside backward or step of this optimizer; call them"
                " from one thread at a time"
            )
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    @property
    def phase(self) -> Phase:
        """Where the step stands."""
        if self.batch is not None:
            return "accumulating"
        return "released" if self._is_released else "idle"

    def accumulate(self, batch: PendingBatch) -> None:
        """Hold *batch* until it is released or dropped."""
        self._is_released = False
        self.batch = batch

    def drop(self) -> None:
        """Forget the batch at hand; its ticket stays valid until it is spent."""
        self.batch = None
        self.stand_in.take()
        self._is_released = False

    def release(self) -> None:
        """Forget the batch at hand, whose release was charged."""
        self.batch = None
        self.stand_in.take()
        self._is_released = True

    def show(self, gradients: Sequence[Tensor]) -> None:
        """Remember *gradients* as those that the release left in ``p.grad``."""
        self._released = weakref.ref(gradients[0]) if gradients else None

    def hide_gradients(
        self, parameters: Sequence[Tensor], *, scale: float | None
    ) -> None:
        """Clear every ``p.grad``: none of them is of the batch at hand.

        Args:
            parameters: The trainable parameters.
            scale: What a trainer multiplied the loss with; None if it was given the
                losses themselves.

        A scaler that grew its scale finds an infinite stand-in and goes back to where
        it started. Whether a larger scale overflows is decided by the largest gradient
        of one example; nothing that depends on it, a skipped step or another scale,
        may be seen.
        """
        # A raw gradient in `p.grad` is one `original_optimizer.step()` away from being
        # released (opacus#313: Lightning trained without privacy).
        for parameter in parameters:
            parameter.grad = None
        self._is_scaled = scale is not None
        if scale is not None and self._first_scale is None:
            self._first_scale = scale
        has_grown = scale is not None and scale > max(self._first_scale or 0.0, 1.0)
        # The smallest: a scaler reads every gradient that it finds. One without elements
        # could not be infinite.
        with_elements = filter(Tensor.numel, parameters)
        smallest = min(with_elements, key=Tensor.numel, default=None)
        if smallest is not None and (
            scale is not None or self.stand_in.can_watch(smallest)
        ):
            self.stand_in.put(smallest, torch.inf if has_grown else 0.0)

    def drop_cleared(self) -> None:
        """Forget the batch at hand if a trainer set its gradients to None."""
        carrier = self.stand_in.parameter if self._is_scaled else None
        if carrier is not None and carrier.grad is None:
            self.drop()

    def has_foreign_grads(self, parameters: Sequence[Tensor]) -> bool:
        """Whether gradients of another loss joined the batch at hand."""
        for parameter in parameters:
            grad = parameter.grad
            if grad is not None and not self._is_ours(parameter, grad) and grad.any():
                return True
        return False

    def _is_ours(self, parameter: Tensor, grad: Tensor) -> bool:
        # A scaler makes NaN of an infinite stand-in, and nobody else wrote to zeros.
        is_carrier = parameter is self.stand_in.parameter
        return is_carrier and (self._is_scaled or self.stand_in.is_untouched(grad))

    def all_foreign(self, parameters: Sequence[Tensor]) -> bool:
        """Whether every parameter has a gradient that neither phase left there."""
        carrier = self.stand_in.parameter
        ours = set() if carrier is None else {id(carrier.grad)}
        if self._released is not None:
            ours.add(id(self._released()))
        for parameter in parameters:  # As a rule the first one decides.
            if parameter.grad is None or id(parameter.grad) in ours:
                return False
        return bool(parameters)
