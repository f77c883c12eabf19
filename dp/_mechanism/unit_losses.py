"""Several losses a unit of privacy, as one loss each.

What is clipped is the gradient of a unit: all losses of a user, all views of an image,
all tokens of a document. So the losses of a unit become one, before any gradient is
taken; from there on a unit is to the engine what an example is.

Shapes: ``U`` units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from dp.exceptions import SamplingMismatchError
from dp.sampling import Ticket


__all__ = ("Reduction", "UnitLosses", "unit_losses")

Reduction = Literal["sum", "mean"]


@final
@dataclass(frozen=True, slots=True)
class UnitLosses:
    """One loss a unit, and which units they are.

    Attributes:
        losses: The losses, of shape ``U``.
        units: The positions of the units among those drawn; empty where every loss is
            a unit, in the order of the batch.
        in_order: Whether row ``i`` of the batch is loss ``i``.
        may_lack_units: Whether the caller chose the units, and may have left out some.
    """

    losses: Tensor
    units: Sequence[int] = ()
    in_order: bool = True
    may_lack_units: bool = False


def unit_losses(
    losses: Tensor,
    units: Tensor | None,
    *,
    reduction: Reduction,
    ticket: Ticket | None,
    part: slice | None,
) -> UnitLosses:
    """Return one loss for each unit that has a loss.

    Args:
        losses: The losses, with their graph.
        units: The unit of each loss, of the shape of *losses*; None if the loader
            knows, or if every loss is a unit.
        reduction: Whether a unit's loss is the sum or the mean of its losses.
        ticket: What the batch was drawn with.
        part: Which rows of the batch *losses* are of; None if of all.

    Raises:
        ValueError: If *units* are not integers of the shape of *losses*, or are not
            among those drawn.
        SamplingMismatchError: If the loader grouped rows, and it cannot be told which
            of them *losses* are of.
    """
    if units is not None:
        return _by_caller(losses, units, reduction, ticket)
    if reduction != "sum":
        raise ValueError(
            f"reduction={reduction!r} is for several losses a unit; pass units="
        )
    unit_of_row = None if ticket is None else ticket.draw.unit_of_row
    if unit_of_row is None:
        return UnitLosses(losses)
    rows = unit_of_row[slice(None) if part is None else part]
    if len(rows) != len(losses):
        raise SamplingMismatchError(
            "the loader draws units of several rows, and the losses are not one a row"
            " of the batch it yielded last. Split a batch by dp.MicroBatches, or say"
            " whose each loss is: backward(losses, units=loader.unit_of_row[...])"
        )
    grouped, present = _grouped(losses, torch.from_numpy(rows), "sum")
    return UnitLosses(grouped, present, in_order=False)


def _by_caller(
    losses: Tensor, units: Tensor, reduction: Reduction, ticket: Ticket | None
) -> UnitLosses:
    integral = not (units.is_floating_point() or units.is_complex())
    if not integral or units.dtype == torch.bool or units.shape != losses.shape:
        raise ValueError(
            "units must be integers of the shape of the losses,"
            f" {tuple(losses.shape)}, got {units.dtype} of shape {tuple(units.shape)}"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    grouped, present = _grouped(losses.flatten(), units.flatten(), reduction)
    if ticket is not None and any(not 0 <= u < ticket.num_samples for u in present):
        raise ValueError(
            "units must be the positions of the drawn units, counted from 0 in the"
            " order of the batch; for a loader with units=, loader.unit_of_row has"
            " that of each row"
        )
    return UnitLosses(grouped, present, in_order=False, may_lack_units=True)


def _grouped(
    losses_N: Tensor, units_N: Tensor, reduction: Reduction
) -> tuple[Tensor, Sequence[int]]:
    present_U, index_N, counts_U = torch.unique(
        units_N.to(losses_N.device), return_inverse=True, return_counts=True
    )
    if reduction == "mean":
        losses_N = losses_N / counts_U.to(losses_N.dtype)[index_N]
    grouped_U = losses_N.new_zeros(len(present_U)).index_add(0, index_N, losses_N)
    return grouped_U, present_U.tolist()
