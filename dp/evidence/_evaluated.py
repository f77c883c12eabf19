"""A loss function that was evaluated, and what it was evaluated on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, final

from torch import Tensor

from dp.evidence._company import Drawn
from dp.sampling import TicketedLoader


__all__ = ("Evaluated", "LossFunction", "is_at_hand")

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
