"""A loss function that is evaluated, and what it is evaluated on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, final

from torch import Tensor

from dp.evidence._company import Drawn
from dp.evidence._named_values import tensors_of
from dp.sampling import TicketedLoader


__all__ = ("Evaluated", "LossFunction", "called", "holds_nothing", "is_at_hand")

LossFunction = Callable[[Any], Tensor]


@final
@dataclass(frozen=True, slots=True)
class Evaluated:
    """A function, its batch, and the losses that it returned."""

    function: LossFunction
    batch: Any
    losses: Tensor
    units: Tensor | None
    loader: TicketedLoader | None
    drawn: Drawn | None

    @classmethod
    def now(
        cls,
        function: LossFunction,
        batch: Any,
        losses: Tensor,
        units: Tensor | None,
        loader: TicketedLoader | None,
    ) -> Self:
        """Return it with what the loader says now of the batch at hand."""
        return cls(function, batch, losses.detach(), units, loader, Drawn.by(loader))


def is_at_hand(losses: Tensor) -> bool:
    """Whether reading losses does not wait for an accelerator."""
    return losses.device.type == "cpu"


def called(function: LossFunction, batch: Any) -> Tensor:
    """Return the losses that *function* returns.

    Raises:
        TypeError: If they are no tensor.
    """
    losses: object = function(batch)
    if not isinstance(losses, Tensor):
        raise TypeError(
            "the loss function must return a tensor with one loss an example, got a"
            f" {type(losses).__name__}"
        )
    return losses


def holds_nothing(batch: Any, loader: TicketedLoader | None) -> bool:
    """Whether nothing was drawn, and every tensor of the batch says so, too."""
    ticket = None if loader is None else loader.ticket
    if ticket is None or ticket.num_samples:
        return False
    tensors = tensors_of(batch)
    return bool(tensors) and not any(tensor.numel() for tensor in tensors)
