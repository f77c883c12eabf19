"""The batch at hand: its clipped sums, and the ticket that it was drawn with.

A release may claim amplification by sampling only for exactly the examples of one
ticket. Whether the losses that arrive are these is checked here, when they arrive and
once more before the release; a ticket is spent by the first release that uses it.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import is_not
from typing import Any, final
from weakref import WeakKeyDictionary

from torch import Tensor

from dp._mechanism.likely_causes import explain_deepspeed
from dp._mechanism.sums import Sums
from dp.exceptions import PrivacyError, SamplingMismatchError
from dp.plan import PrivacyPlan
from dp.sampling import PassStep, RowsRead, Scheme, Ticket, TicketedLoader, Unamplified


__all__ = ("PendingBatch", "current_ticket", "held_against", "is_spent")

# The serial of the last ticket that any optimizer spent. The cost of a release counts
# on the chance not to be in its batch; two releases of one batch share that chance.
# Keyed by loader and not by optimizer, so that a second optimizer on the same batch
# (the two of a GAN, opacus#418) finds it spent.
_last_spent: WeakKeyDictionary[TicketedLoader, int] = WeakKeyDictionary()


@final
@dataclass(slots=True)
class PendingBatch:
    """Clipped sums of the batch at hand: not yet noised, never shown to anyone.

    Attributes:
        parameters: The parameters that the sums belong to.
        sums: The sums of their clipped gradients so far.
        ticket: What the batch was drawn with; None if the plan claims no amplification.
        max_grad_norm: The norm that the sums are clipped to.
        scales: What gradients of each parameter are multiplied by before they are
            clipped, and noisy sums divided by; none for gradients as they are.
        num_samples: How many units were added. Private.
        num_within: How many of them had norms within ``max_grad_norm``, less half of
            all, where the clipping rule counts that. Private.
        num_touched: How many of them touched each row of the tables, where it counts
            that. Private.
        units: Which of the drawn units were added, where calls said so. Private.
        rows_read: Which rows of the batch were read for them, as far as can be seen.
            Private.
        may_lack_units: Whether the caller named the units, and may leave out some.
        num_backwards: How many calls added them.
        all_scaled: Whether every loss passed through a private loss, which knows the
            scale that a trainer applied.
    """

    parameters: tuple[Tensor, ...]
    sums: Sums
    ticket: Ticket | None
    max_grad_norm: float
    scales: Sequence[Tensor] = ()
    num_samples: int = 0
    num_within: float | Tensor = 0.0
    num_touched: float | Tensor = 0.0
    units: set[int] = field(default_factory=set)
    rows_read: RowsRead = field(default_factory=RowsRead)
    may_lack_units: bool = False
    num_backwards: int = 0
    all_scaled: bool = True

    @property
    def in_pass(self) -> PassStep | None:
        """Which step of a pass or round its draw is; None for Poisson samples."""
        return None if self.ticket is None else self.ticket.draw.in_pass

    @property
    def num_drawn(self) -> int:
        """How many units the loader drew for this batch; a private number."""
        return 0 if self.ticket is None else self.ticket.num_samples

    @property
    def lacks_units(self) -> bool:
        """Whether a unit that was drawn for this batch was not added."""
        return self.num_samples < self.num_drawn

    def admit(
        self,
        num_samples: int,
        sampling: Scheme,
        units: Sequence[int] = (),
    ) -> None:
        """Raise unless another *num_samples* units may join this batch.

        Args:
            num_samples: How many.
            sampling: How batches are drawn.
            units: Which of the drawn units they are, where losses were grouped.

        Raises:
            SamplingMismatchError: If a unit could count twice.
        """
        # Example: 8 units were drawn. Calls with the losses of units {0, 1, 2} and {3,
        # ..., 7} join; {0, 1} and {1, 2} would clip unit 1 twice. Without units only
        # numbers are known: 5 and 3 losses join, 5 and 4 are more than 8.
        is_grouped = bool(units)
        if num_samples and self.num_samples and is_grouped != bool(self.units):
            raise SamplingMismatchError(
                "some losses of this step came with units and others without, so"
                " whether a unit counts twice cannot be checked; pass units to every"
                " backward call of the step"
            )
        if not self.units.isdisjoint(units):
            raise SamplingMismatchError(
                "a unit has losses in two backward calls of one step, so it would be"
                " clipped twice; pass all losses of a unit to one call (dp.MicroBatches"
                " splits a batch between units)"
            )
        # Each call clips on its own, so an example in two calls contributes 2 C where C
        # is charged. Opacus 1.6 lets it: two backward passes of one batch.
        if isinstance(sampling, Unamplified) and self.ticket is None:
            limit = sampling.backwards_per_step
            if self.num_backwards >= limit:
                raise SamplingMismatchError(
                    f"backward was called more than {limit} time(s) before step; one"
                    " example could count twice. Declare"
                    " Unamplified(backwards_per_step=...) if the calls of one step"
                    " never share an example"
                )
        elif self.num_samples + num_samples > self.num_drawn:
            raise SamplingMismatchError(
                "more losses than the loader drew examples for this batch; pass one"
                " loss per example, and each example to backward once. Add several losses"
                " of an example, such as a discriminator's on real and fake images:"
                " backward(real + fake)"
            )

    def may_hold_views(self, num_samples: int, plan: PrivacyPlan) -> bool:
        """Whether another *num_samples* are more than planned, and nothing counts them."""
        return (
            self.ticket is None
            and self.num_samples + num_samples > plan.expected_batch_size
        )

    def check_same(self, parameters: Sequence[Tensor], max_grad_norm: float) -> None:
        """Raise if what the sums were clipped for changed since the last backward.

        Raises:
            PrivacyError: If the clipping norm or the trainable parameters changed.
        """
        # Noise is scaled by one norm; sums of two norms have the larger sensitivity.
        # With a scheduled C, Opacus' ghost clipping clips at one and noises at another.
        if self.max_grad_norm != max_grad_norm:
            raise PrivacyError(
                f"max_grad_norm changed from {self.max_grad_norm!r} to"
                f" {max_grad_norm!r} between backward and step; call zero_grad()"
                " and run the batch again"
            )
        if len(self.parameters) != len(parameters) or any(
            map(is_not, self.parameters, parameters)
        ):
            raise PrivacyError(
                "the optimizer's trainable parameters changed between backward and"
                " step; call zero_grad() and run the batch again" + explain_deepspeed()
            )

    def check_complete(self) -> None:
        """Raise unless every example of the ticket was added.

        Raises:
            SamplingMismatchError: If some are missing, or if nothing was added where
                no ticket says that the batch is empty.
        """
        # A draw may be empty, and a step of noise alone is right then: skipping it would
        # show that the draw was empty (opacus#522, #530). Without tickets an empty draw
        # cannot be told from a step by mistake.
        if self.num_backwards == 0 and (self.ticket is None or self.num_drawn):
            raise SamplingMismatchError(
                "step was called without gradients; call optimizer.backward(loss_fn,"
                " batch) first, in place of loss.backward()" + explain_deepspeed()
            )
        # Units that the caller named may be fewer: one whose losses were left out
        # contributes nothing, and what the others contribute is their own.
        is_named = self.may_lack_units and len(self.units) == self.num_samples
        if self.lacks_units and not is_named:
            raise SamplingMismatchError(
                "backward has not seen every example that the loader drew for this"
                " batch; pass the losses of the whole batch to optimizer.backward"
                " before step. Where a user has several examples, let"
                " plan.loader(dataset, units=...) draw them together, and pass one loss"
                " per example"
            )

    def warn_if_complete(self, *, stacklevel: int) -> None:
        """Warn about accumulation over draws, which looks as if it worked."""
        if 0 < self.num_samples == self.num_drawn:
            warnings.warn(
                "a whole batch went through backward, but its step was never taken, and"
                " its gradients were dropped when the next batch was drawn. Each step is"
                " made of one draw: to accumulate, split the draw (dp.MicroBatches), and"
                " plan for larger ones; to skip a batch on purpose, call zero_grad()",
                stacklevel=stacklevel + 1,
            )

    def spend_ticket(self, loader: TicketedLoader | None) -> None:
        """Void the ticket of this batch for every optimizer of the process."""
        if self.ticket is not None and loader is not None:
            _last_spent[loader] = self.ticket.serial


def held_against(loader: TicketedLoader | None, batch: PendingBatch) -> dict[str, Any]:
    """Return what the engine holds a graph of losses against: the ticket's batch."""
    if loader is None:
        return {}
    # What the loader yielded is compared with what the graph kept, by storage.
    yielded = loader.yielded
    # A part that was moved is a copy of that part alone.
    rows = slice(None) if loader.part is None else loader.part
    units = loader.unit_of_row
    return {
        "batch": [tensor[rows] for tensor in yielded.rows],
        "unit_of_row": None if units is None else units[rows],
        "admit_data": lambda data: batch.rows_read.admit(data, yielded),
    }


def is_spent(ticket: Ticket, loader: TicketedLoader) -> bool:
    """Whether a release has used *ticket*, or a later one of *loader*."""
    return ticket.serial <= _last_spent.get(loader, -1)


def current_ticket(plan: PrivacyPlan, loader: TicketedLoader | None) -> Ticket | None:
    """Return the ticket of the batch that *loader* yielded last.

    Returns:
        None if *plan* claims no amplification, and no loader is attached.

    Raises:
        SamplingMismatchError: If there is no ticket that was not spent.
    """
    if loader is None:
        if isinstance(plan.sampling, Unamplified):
            return None
        raise SamplingMismatchError(
            "the plan claims amplification by sampling, but no loader is attached;"
            " call optimizer.attach(plan.loader(dataset))"
        )
    ticket = loader.ticket
    if ticket is None:
        raise SamplingMismatchError(
            "no batch has been drawn from the loader; iterate over the loader that"
            " was given to DPOptimizer" + explain_deepspeed()
        )
    # A fork copies the ticket and the memory of what was spent, so that neither process
    # sees what the other releases.
    if ticket.process != os.getpid():
        raise SamplingMismatchError(
            "this batch was drawn before the process forked, so two processes would"
            " release it; draw the next one in this process"
        )
    if is_spent(ticket, loader):
        raise SamplingMismatchError(
            "this batch was already used for a step; draw the next one from the"
            " loader. Two optimizers that release the same batch would cost more"
            " than their ledgers say: put the parameters into groups of one"
            " optimizer, or give each a loader of its own and one ledger"
            " (continue_from=)"
        )
    return ticket
