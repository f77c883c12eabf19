"""Evaluate the loss functions of one run, and look at them now and then.

Three kinds of steps are looked at: the first, those that a schedule makes due, and
those whose losses surprise. What happens at every other step is a call of the function,
a few comparisons and one pass over the losses.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, final

import torch
from torch import Tensor

from dp._ranks import rank_and_size
from dp.evidence import _texts
from dp.evidence._callers import callers_level
from dp.evidence._checked_models import checked_on
from dp.evidence._company import Companies, Company
from dp.evidence._evaluated import (
    Evaluated,
    LossFunction,
    called,
    holds_nothing,
    is_at_hand,
)
from dp.evidence._exchange import copied, devices_of
from dp.evidence._look import Look
from dp.evidence._named_values import (
    Changed,
    NamedValues,
    labels_in_words,
    tensors_of,
)
from dp.evidence._origin import is_computed
from dp.evidence._program_state import ProgramState
from dp.evidence._random_state import numpys_position
from dp.evidence._record import Evidence, longest
from dp.evidence._schedule import FIRST, asks_gradients, is_due, picks_call
from dp.evidence._surprise import Surprises, spread_of
from dp.evidence._together import Together
from dp.evidence._verdicts import Seen, Verdict
from dp.exceptions import EvidenceWarning, SampleMixingError
from dp.sampling import TicketedLoader


__all__ = ("NO_BATCH", "LossFunction", "Watch")

NO_BATCH: Final = object()
"""Stands for the batch where losses were finished before."""

_Form = Literal["function", "losses"]
_NOTHING: Final = Evidence()
_MOST_TRIES: Final = 3  # Of comparing other sizes of batch.


@final
class Watch:
    """What one run's losses showed.

    Args:
        records: The evidence so far, by the segment of the ledger.

    Attributes:
        silenced: Called at every second evaluation for a context to run it in, such as
            one in which a framework logs nothing.
        together: What several ranks ask of each other.
        follows_others: Whether losses followed what changed beside their batch.
        checks: Called with a function, its batch and the units of its losses before it
            is evaluated, each until it returns True.
    """

    def __init__(self, records: Mapping[str, Evidence] | None = None) -> None:
        self.silenced: list[Callable[[], AbstractContextManager[None]]] = []
        self.checks: list[Callable[[LossFunction, Any, Tensor | None], bool]] = []
        self._records = dict(records or {})
        self._companies = Companies()
        self._surprises = Surprises()
        self._told: set[str] = set()
        self._checked: str | None = None
        self._tries_left = _MOST_TRIES  # 0 once other sizes were compared.
        self._numpys = True  # Whether the function drew from numpy's generator.
        self._owes_look = False
        self._named = NamedValues()
        self.follows_others: bool = False
        self._single: Any = None  # The last batch of one example that was looked at.
        # Of the step at hand:
        self._segment, self._number = "", -1  # Where it will be charged.
        self._num_calls = 0
        self._form: _Form | None = None
        # Of steps before it:
        self._last_form: _Form | None = None
        self._num_undecided = 0  # Steps without losses, before the first that had any.
        self._unread: Evaluated | None = None
        self.together: Together = Together(self._surprises)

    @property
    def records(self) -> Mapping[str, Evidence]:
        """The evidence by the segment of the ledger."""
        return dict(self._records)

    def losses(
        self,
        function: LossFunction,
        batch: Any,
        *,
        segment: str,
        units: Tensor | None = None,
        loader: TicketedLoader | None = None,
    ) -> Tensor:
        """Return ``function(batch)``, and look at it if it is time.

        Alone, the function is not called for a draw of no examples, which many a model
        cannot take: there are no losses. Ranks may need each other's forward passes.

        Args:
            function: Returns the losses of a batch, with their graph.
            batch: The batch.
            segment: The segment of the ledger that the step will be charged to.
            units: The unit of each loss, if the caller names it.
            loader: The loader that drew the batch, if there is one.

        Raises:
            SampleMixingError: If one example's loss depends on another example.
            TypeError: If *function* does not return a tensor.
        """
        is_alone = rank_and_size()[1] == 1
        if is_alone and holds_nothing(batch, loader):
            # Of the shape that units of no losses have, as [0, T] of tokens.
            shape = (0,) if units is None or units.numel() else units.shape
            device = tensors_of(batch)[0].device
            return torch.zeros(shape, device=device, requires_grad=True)
        if self.checks:
            self.checks[:] = [c for c in self.checks if not c(function, batch, units)]
        step = self._begin(segment)
        if (kept := self.together.take()) is not None:
            self._look_from_here(kept)
        if self._unread is not None and is_alone:
            self._read_late(self._unread)
        self._num_calls += 1
        self._form = self._form or "function"
        looks = is_due(segment, step) and picks_call(segment, step, self._num_calls)
        looks = looks or (is_alone and self._named.changes_anew(function))
        if not looks and not self._owes_look:
            self._named.forget()
            losses = called(function, batch)
            evaluated = partial(Evaluated.now, function, batch, losses, units, loader)
            if is_alone:
                self._read(losses, evaluated)
            else:
                self.together.keep(evaluated(), self._number)
            return losses
        return self._looked_at(function, batch, segment, units, loader)

    def assumed(self) -> tuple[str, ...]:
        """Return what a certificate has to assume of what losses followed."""
        return (_texts.FOLLOWED,) if self.follows_others else ()

    def finished(
        self, parameters: Callable[[], Iterable[Tensor]], *, segment: str
    ) -> None:
        """Note that losses came finished; warn once if nothing is known of them.

        Args:
            parameters: Returns what is trained.
            segment: The segment of the ledger that the step will be charged to.
        """
        self._begin(segment)
        self._form = "losses"
        if "finished" not in self._told:
            self._checked = checked_on(parameters())
            if self._checked is None:
                self._tell("finished", _texts.FINISHED)
            self._told.add("finished")

    def released(self, segment: str) -> None:
        """Note that the step at hand was charged to *segment*."""
        step = self._begin(segment)
        self._last_form = self._form = self._form or self._last_form
        self._num_undecided += 1
        known = self._records.get(segment, _NOTHING)
        evaluated, looks = known.evaluated, known.looks
        # That a draw was empty, and so had no losses, is private: such a step counts
        # as the others do.
        # Example: steps 0 and 1 had empty draws, and step 2 had losses of a function.
        # All three count as evaluated, and the looks that were due are those of the
        # steps 0 to 2.
        if self._form == "function":
            first = step + 1 - self._num_undecided
            evaluated += self._num_undecided
            looks += sum(is_due(segment, number) for number in range(first, step + 1))
        if self._form is not None:
            self._num_undecided = 0
        self._records[segment] = Evidence(
            steps=known.steps + 1,
            evaluated=evaluated,
            looks=looks,
            other_sizes=known.other_sizes,
            inconclusive=known.inconclusive,
            checked=self._checked if known.checked is None else known.checked,
        )

    def load(self, records: Mapping[str, Evidence]) -> None:
        """Add what another state of the run knows."""
        for segment, record in records.items():
            self._records[segment] = longest(self._records.get(segment), record)

    def _begin(self, segment: str) -> int:
        """Return the number of the step at hand; forget the one before."""
        number = self._records.get(segment, _NOTHING).steps
        if number != self._number or segment != self._segment:
            self._segment, self._number = segment, number
            self._num_calls, self._form = 0, None
        return number

    def _read(self, losses: Tensor, evaluated: Callable[[], Evaluated]) -> None:
        """Look at a batch that was not due if its losses surprise."""
        if not is_at_hand(losses):  # Read in the next step, when they are there.
            self._unread = evaluated()
        elif self._surprises.admits(spread_of(losses), self._number):
            self._look_from_here(evaluated())

    def _read_late(self, evaluated: Evaluated) -> None:
        self._unread = None
        if self._surprises.admits(spread_of(evaluated.losses.cpu()), self._number):
            self._look_from_here(evaluated)

    def _looked_at(
        self,
        function: LossFunction,
        batch: Any,
        segment: str,
        units: Tensor | None,
        loader: TicketedLoader | None,
    ) -> Tensor:
        """Return ``function(batch)``, and look at it."""
        state = ProgramState(function, devices_of(batch), numpys=self._numpys)
        state.note_batch(tensors_of(batch))
        changed = self._named.earlier(state)
        position = numpys_position()
        # A function that writes to its batch does so from the first part on.
        if self._num_calls == 1 and is_computed(batch, loader):
            self._record(inconclusive=True)
            self._tell("computed", _texts.COMPUTED)
        before: Any = NO_BATCH
        with suppress(Exception):  # Of the caller's own types, which may refuse it.
            before = copied(batch)
        losses = called(function, batch)
        self._named.keep(state)
        if is_at_hand(losses):
            self._surprises.breaks_record(spread_of(losses))
        draws_from_numpy = numpys_position() != position
        # Its state was not put aside, since it never drew from it: the next call is
        # looked at in place of this one.
        self._owes_look = draws_from_numpy and not self._numpys
        self._numpys = draws_from_numpy
        if not self._owes_look:
            evaluated = Evaluated.now(function, before, losses, units, loader)
            self._look(evaluated, state, segment, changed)
        return losses

    def _look_from_here(self, evaluated: Evaluated) -> None:
        """Look at a batch of which nothing was put aside before: evaluate it twice."""
        state = ProgramState(evaluated.function, devices_of(evaluated.batch))
        self._look(evaluated, state, None)

    def _look(
        self,
        evaluated: Evaluated,
        state: ProgramState,
        segment: str | None,
        changed: Changed = ({}, {}),
    ) -> None:
        """Look at losses; *segment* is None if they surprised, and were not due."""
        losses, num_ranks = evaluated.losses, rank_and_size()[1]
        if losses.dim() != 1 and evaluated.units is None:
            return  # It will be refused.
        if losses.numel() == 0 and num_ranks == 1:
            return
        company = self._company_of(evaluated)
        if company is None:
            self._record(inconclusive=True)
            self._tell("axis", _texts.NO_AXIS)
            return
        try:
            with state.excursion() as after:
                look = Look(
                    evaluated.function,
                    company,
                    state,
                    after,
                    None if segment is None else losses,
                    in_step=num_ranks > 1,
                    silenced=self.silenced,
                    earlier=self._earlier_than(evaluated.batch, company),
                )
                seen = self._seen(look, segment, num_ranks)
                follows = look.follows(*changed)
        except Exception:  # noqa: BLE001 -- another batch is none that the caller tried
            seen, follows = Seen("unclear"), None
        self._act(seen)
        self.follows_others |= follows is not None
        if follows == "data":
            self._record(inconclusive=True)
            self._tell("beside", _texts.BESIDE.format(labels_in_words(changed[0])))
        self._tell_of_buffers(seen.written)

    def _seen(self, look: Look, segment: str | None, num_ranks: int) -> Seen:
        # What depends on one example alone shows when its place is given away: both
        # halves are exchanged in the first look, one of them later.
        # In the first looks, all but one example's are given away, too.
        verdict = look.verdict(
            both_halves=segment is None or self._number == 0,
            one_alone=segment is None or self._number < FIRST,
        )
        # Once a run: whether losses change with the number of examples. Where it cannot
        # be told, as for a batch of one, two more looks may try.
        depends: bool | None = None
        if segment is not None and self._is_to_ask_size(verdict, num_ranks):
            depends = look.depends_on_size()
            self._tries_left = self._tries_left - 1 if depends is None else 0
        if verdict == "alone" and depends:
            verdict = "sized"
        is_to_ask = num_ranks > 1 or verdict == "alone"
        if is_to_ask and asks_gradients(segment, self._number, self._num_calls):
            of_gradients = look.verdict_of_gradients(
                1 + (self._number == 0), asks_size=depends is not None
            )
            verdict = of_gradients if verdict == "alone" else verdict
        return Seen(verdict, depends is False and verdict == "alone", look.written)

    def _company_of(self, evaluated: Evaluated) -> Company | None:
        if evaluated.batch is NO_BATCH:
            return None
        return self._companies.of(
            evaluated.batch,
            num_losses=evaluated.losses.numel(),
            units=evaluated.units,
            loader=evaluated.loader,
            drawn=evaluated.drawn,
        )

    def _earlier_than(self, batch: Any, company: Company) -> Any:
        """Return the batch of one example before this one, which is remembered."""
        earlier, self._single = self._single, batch if company.num_units == 1 else None
        return earlier

    def _is_to_ask_size(self, verdict: Verdict, num_ranks: int) -> bool:
        """Whether to evaluate other sizes of batch; several ranks do, or none does."""
        if num_ranks > 1:
            return self._number == 0 and self._num_calls == 1
        return verdict == "alone" and self._tries_left > 0

    def _act(self, seen: Seen) -> None:
        if seen.verdict in _texts.REFUSED:
            raise _mixing(_texts.REFUSED[seen.verdict])
        if seen.has_other_sizes:
            self._record(other_sizes=True)
        if seen.verdict == "unclear":
            self._record(inconclusive=True)
            self._tell("unclear", _texts.UNCLEAR)

    def _record(self, *, other_sizes: bool = False, inconclusive: bool = False) -> None:
        known = self._records.get(self._segment, _NOTHING)
        self._records[self._segment] = replace(
            known,
            other_sizes=known.other_sizes or other_sizes,
            inconclusive=known.inconclusive or inconclusive,
        )

    def _tell_of_buffers(self, names: list[str]) -> None:
        if names:
            self._tell(
                "buffers",
                f"the forward pass writes private data into {', '.join(names)}: they are"
                " saved with the model, and get no noise. Call eval() on the modules"
                " that keep statistics, or use ones that keep none",
            )

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(text, EvidenceWarning, stacklevel=callers_level())

    def __reduce__(self) -> tuple[object, ...]:
        # A copy starts a segment of its own, and so looks at its first steps.
        return Watch, (self._records,)


def _mixing(text: str) -> SampleMixingError:
    error = SampleMixingError(text)
    error.began_earlier = True  # It was not looked for at every step.
    return error
