"""Whose each loss is: a unit of privacy may have several.

What is clipped is the gradient of a unit: of all losses of a user, all views of an
image, all tokens of a document. The loader knows the units of its rows; a caller can
name the unit of each loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from dp._reports import shown
from dp.exceptions import SamplingMismatchError
from dp.plan import PrivacyPlan
from dp.sampling import Ticket
from dp.sampling._units import column_of_units


__all__ = ("LossUnits", "Reduction", "check_grouped", "loss_units")

Reduction = Literal["sum", "mean"]


@final
@dataclass(frozen=True, slots=True)
class LossUnits:
    """The units of a tensor of losses.

    Attributes:
        num_units: How many units have a loss. Private.
        of_loss: The unit of each loss, of the losses' shape; None where every loss is
            a unit, in the order of the batch.
        present: The units that have a loss, where ``of_loss`` says so.
        may_lack_units: Whether the caller named the units, and may have left out some.
    """

    num_units: int
    of_loss: Tensor | None = None
    present: Sequence[int] = ()
    may_lack_units: bool = False


def loss_units(
    losses: Tensor,
    units: Tensor | None,
    *,
    reduction: Reduction,
    ticket: Ticket | None,
    part: slice | None,
) -> LossUnits:
    """Return whose each loss is, by the caller's word or by the loader's.

    Args:
        losses: The losses.
        units: The unit of each loss, of the shape of *losses*; None if the loader
            knows, or if every loss is a unit.
        reduction: Whether a unit's gradient is the sum or the mean of its losses'.
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
            f"reduction={shown(reduction)} is for several losses a unit; pass units="
        )
    unit_of_row = None if ticket is None else ticket.draw.unit_of_row
    if unit_of_row is None:
        return LossUnits(len(losses))
    # Example: users 0, 1 and 2 were drawn, with rows of the users 0, 0, 1, 2, 2. Five
    # losses are three contributions, and the micro-batch slice(2, 5) has two: 1 and 2.
    rows = unit_of_row[slice(None) if part is None else part]
    if len(rows) != len(losses):
        raise SamplingMismatchError(
            "the loader draws units of several rows, and the losses are not one a row"
            " of the batch it yielded last. Split a batch by dp.MicroBatches, or say"
            " whose each loss is: backward(losses, units=loader.unit_of_row[...])"
        )
    present = sorted(set(rows.tolist()))
    return LossUnits(len(present), torch.from_numpy(rows), present)


def check_grouped(plan: PrivacyPlan, whose: LossUnits) -> None:
    """Raise if the plan protects what may have several losses, and no one grouped them.

    Raises:
        SamplingMismatchError: If every loss would be clipped on its own.
    """
    # None unless the unit is one value of a column, as of a user's number.
    column = column_of_units(plan.unit_of_privacy)
    if whose.num_units and whose.of_loss is None and column is not None:
        raise SamplingMismatchError(
            f"the plan protects {plan.unit_of_privacy!r}, which may have several losses;"
            f" pass the {column} of each: backward(losses, units=...)"
        )


def _by_caller(
    losses: Tensor, units: Tensor, reduction: Reduction, ticket: Ticket | None
) -> LossUnits:
    # A float user id above 2**24 is rounded in float32, and two users would be one;
    # True and False are a mask, and nobody's number.
    is_integral = not (units.is_floating_point() or units.is_complex())
    if not is_integral or units.dtype == torch.bool or units.shape != losses.shape:
        raise ValueError(
            "units must be integers of the shape of the losses,"
            f" {tuple(losses.shape)}, got {units.dtype} of shape {tuple(units.shape)}"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {shown(reduction)}")
    # The caller's units may be fewer than those drawn, and without a ticket any numbers
    # do.
    present = units.unique().tolist()
    # A number that no draw has would be a unit that nobody drew, and paid for.
    if ticket is not None and any(not 0 <= u < ticket.num_samples for u in present):
        raise ValueError(
            "units must be the positions of the drawn units, counted from 0 in the"
            " order of the batch; for a loader with units=, loader.unit_of_row has"
            " that of each row"
        )
    return LossUnits(len(present), units, present, may_lack_units=True)
