"""Whose each loss is.

Shapes: ``N`` losses, ``U`` units.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dp.per_sample._isolation.owners import Owners, regularized


__all__ = ("Units",)


@final
@dataclass(frozen=True, slots=True)
class Units:
    """The units of privacy that a batch of losses belongs to.

    Attributes:
        owners: Whose each loss is.
        num_units: How many units there are.
        of_loss: [N] the unit of each loss by number, 0 .. U - 1; None if every loss is a
            unit of its own.
    """

    owners: Owners
    num_units: int
    of_loss: Tensor | None = None

    @classmethod
    def of(cls, losses: Tensor, units: Tensor | None) -> "Units":
        """Return the units of some losses.

        Args:
            losses: The losses, of any shape.
            units: Whole numbers of that shape; equal ones are one unit.

        Raises:
            ValueError: If they are no whole numbers, or of another shape.
        """
        if units is None:
            return cls(Owners.regular(0), len(losses))
        if units.shape != losses.shape or units.is_floating_point():
            raise ValueError(
                f"units must be whole numbers of the losses' shape {tuple(losses.shape)},"
                f" got {units.dtype} of shape {tuple(units.shape)}"
            )
        known, numbers = units.to(losses.device).unique(return_inverse=True)
        owners = Owners.irregular(numbers)
        if len(known) > 1:
            owners = regularized(owners, losses.shape, len(known))
        return cls(owners, len(known), numbers.flatten())

    @property
    def are_given(self) -> bool:
        """Whether somebody said whose each loss is."""
        return self.of_loss is not None

    @property
    def key(self) -> Hashable:
        """What tells these units from others of as many losses."""
        if self.of_loss is None:
            return None
        return self.num_units, self.of_loss.cpu().numpy().tobytes()

    def nonfinite(self, losses: Tensor) -> Tensor:
        """Return [U] infinity for a unit of which a loss is not finite, else 0.

        By a unit's own losses alone, so that no other one can change it.
        """
        own_N = losses.detach().flatten()
        own_N = own_N if own_N.dtype == torch.float64 else own_N.float()
        found_N = (own_N - own_N).nan_to_num_(nan=torch.inf)
        if self.of_loss is None:
            return found_N
        return found_N.new_zeros(self.num_units).index_add_(0, self.of_loss, found_N)

    def weights(self, reduction: str) -> Tensor:
        """Return [U] what each loss of a unit is multiplied with.

        Raises:
            ValueError: If *reduction* is neither "sum" nor "mean".
        """
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        if reduction == "sum" or self.of_loss is None:
            return torch.ones(self.num_units, dtype=torch.float64)
        return self.of_loss.bincount(minlength=self.num_units).double().reciprocal()

    def by_loss(self, values_U: Tensor, losses: Tensor) -> Tensor:
        """Return the value of each loss's unit, of the losses' shape and dtype."""
        values_N = values_U if self.of_loss is None else values_U[self.of_loss]
        return values_N.to(losses.dtype).view(losses.shape)
