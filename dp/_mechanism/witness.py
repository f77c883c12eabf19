"""Compare the two ends of a release, at steps that nobody can foresee.

What lies between the gradients of a batch and the update of the optimizer (sums, current
values, the order of a step) is long, and none of it is needed to say what a release must
be. At the first releases, and then at random ones, its ends are compared:

* the sums that noise is added to are torch's own sums of gradients, for the factors that
  they were clipped with, and no unit's norm times its factor is more than was charged;
* one charge was added before the noise, and its noise multiplier times its norm is the
  standard deviation that the noise stage used; its probability is the loader's;
* what the wrapped optimizer is about to see in ``p.grad`` is what left the noise stage,
  divided by the plan's expected batch size, and no other parameter has a gradient.

They are compared in some elements of each parameter, which the operating system picks.
Elements are followed by where they lie in memory, so that no two share noise, and none is
released that the noise stage did not have.

Example: sums of 3.0 and -1.0 leave the noise stage as 3.5 and -0.75, for a batch of 10.
Gradients of 0.35 and -0.075 are right. If the second was 0.0 it lost its sum, and if it
was -0.1, its noise: both end the run before the optimizer moves a parameter.

Who calls are the engine's user and the noise stage's, whose errors this is about. If they
call too little, :meth:`ReleaseWitness.admit` finds something missing: it is called where a
private step is permitted (:mod:`dp.optimizer._guard`).

What slips through: what is wrong in some releases only, until one of them is compared;
what is smaller than rounding (in 16 bits, sums may be off by as much as the noise); sums
of groups of parameters that are clipped by themselves, but for one group at a time; and
whatever a run does that :attr:`ReleaseWitness.is_blind` names.

Shapes: ``K`` elements that were picked of a parameter, ``G`` groups, ``B`` examples.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, final

import torch
from torch import Tensor

from dp._mechanism.batch import PendingBatch, is_spent
from dp._mechanism.metering import counting, is_by_step, wrong_draw
from dp._mechanism.paid_for import Account
from dp._mechanism.picked_elements import are_apart, picked_of, values_of
from dp._ranks import rank_and_size
from dp.clipping import Clipping, QuantileClipping, ScaledClipping, SparseClipping
from dp.exceptions import WrongReleaseError
from dp.ledger import Charge, Ledger
from dp.noise import GaussianNoise
from dp.noise._gaussian import is_observed, witnessed_release
from dp.per_sample import Engine, OwnSums, PerSampleGradients
from dp.plan import PrivacyPlan
from dp.sampling import TicketedLoader, Unamplified


__all__ = ("ReleaseWitness",)

_FIRST: Final = 3
_MOST_TRIES: Final = 30  # Until so many releases have been compared.
_EVERY: Final = 512  # It takes one to three steps more than a step.
_MARGIN: Final = 1e-5  # Of norms times factors, whose rounding is below.
_ROUNDINGS: Final = 4.0  # Of a sum that is divided, and of its gradient.
_OTHERS: Final = (QuantileClipping, ScaledClipping, SparseClipping)


@final
@dataclass(slots=True)
class _Look:
    """What was seen of a batch on its way.

    Attributes:
        batch: Which one it is.
        group: The group of parameters whose sums are compared with torch's.
        index: [K] the elements of each parameter that were picked.
        sums: [K] what they were when the last gradients had been added.
        own: [K] what torch adds up for them.
        slack: By how much both may differ.
        num_units: How many units had gradients.
        has_batch: Whether all losses were compared with the loader's batch.
        longest: The largest norm of a unit's clipped gradient.
        is_blind: Whether something of the batch cannot be compared.
        noisy: [K] what they were when noise had been added; none before.
    """

    batch: PendingBatch
    group: int
    index: list[Tensor]
    sums: list[Tensor]
    own: list[Tensor]
    slack: list[float]
    num_units: int = 0
    has_batch: bool = True
    longest: float = 0.0
    is_blind: bool = False
    noisy: list[Tensor] = field(default_factory=list)


@final
class ReleaseWitness:
    """Compares the ends of releases: the first ones, and later ones at random.

    Args:
        plan: What a release is divided by, and how batches are drawn.
        clipping: The rule that clips.
        ledger: What it is charged to, and what keeps a failure.
        engine: What gradients come from.

    Attributes:
        has_compared: Whether all of a release was compared so far.
    """

    def __init__(
        self, plan: PrivacyPlan, clipping: Clipping, ledger: Ledger, engine: Engine
    ) -> None:
        self._plan = plan
        self._clipping = clipping
        self._ledger = ledger
        self._engine = engine
        self._account = Account(ledger)
        self.has_compared: bool = False
        self._num_seen = 0
        self._num_tries = 0
        self._num_passes = 0
        self._is_chosen = True
        self._has_released = False
        self._look: _Look | None = None

    @property
    def is_blind(self) -> bool:
        """Whether releases are of a kind that is not compared.

        Of several ranks, with correlated noise, and with rules that count beside the sum
        or that scale gradients; of parameters that are sharded or on a device, too. An
        audit reports what it sees by itself, and a program that puts a function of its
        own in the place of ``GaussianNoise.add_``, to look at sums, adds what it adds.
        """
        return (
            is_observed()
            or isinstance(self._clipping, _OTHERS)
            or self._plan.correlation is not None
            or rank_and_size()[1] > 1
        )

    @property
    def is_due(self) -> bool:
        """Whether the next release is compared."""
        return self._is_chosen and not self.is_blind

    def needs_graph(self, batch: PendingBatch) -> bool:
        """Whether torch is asked to differentiate the next losses of a batch, too."""
        if not (self.is_due and _are_plain(batch.parameters)):
            return False
        look = self._look
        return look is None or look.batch is not batch or not look.is_blind

    def added(
        self,
        batch: PendingBatch,
        gradients: PerSampleGradients,
        factors_GB: Tensor,
        groups: Sequence[int],
    ) -> None:
        """Compare sums, to which clipped gradients were just added, with torch's own.

        Raises:
            WrongReleaseError: If they are others, or a gradient was added before.
        """
        if not (self.is_due and _are_plain(batch.parameters)):
            return
        look, engine = self._look_at(batch, groups), self._engine
        sums = batch.sums.of_parameters()
        look.sums = values_of(sums, look.index)
        look.num_units += gradients.num_samples
        has_run = engine.num_passes != self._num_passes
        self._num_passes = engine.num_passes
        look.has_batch &= engine.has_batch or not has_run
        if look.is_blind:
            return
        if has_run and not engine.keeps_graph:
            self._fail("torch's own backward pass was left out")
        norms_GB = gradients.squared_norms(groups).sqrt()
        lengths_GB = torch.where(factors_GB == 0, 0.0, norms_GB * factors_GB)
        lengths_B = torch.linalg.vector_norm(lengths_GB, dim=0)
        look.longest = max([look.longest, *lengths_B.tolist()])
        own = engine.own_sums(factors_GB[look.group], norms_GB)
        look.is_blind = own is None  # Not finite, not linear, or another library's.
        if own is not None:
            self._compare_sums(look, own, groups)

    def _compare_sums(self, look: _Look, own: OwnSums, groups: Sequence[int]) -> None:
        """Compare the sums so far with what torch has added up so far."""
        for i, total in enumerate(values_of(own.sums, look.index)):
            look.own[i] += total
            look.slack[i] += own.slack[i]
            off = (look.sums[i] - look.own[i]).abs()
            if groups[i] == look.group and not bool((off <= look.slack[i]).all()):
                shape = tuple(look.batch.parameters[i].shape)
                self._fail(
                    f"clipped gradients of a parameter of shape {shape} add up to"
                    " another sum than torch's"
                )

    def releasing(
        self, batch: PendingBatch, loader: TicketedLoader | None, noise: GaussianNoise
    ) -> AbstractContextManager[None]:
        """Watch the one call of the noise stage in this context, which also charges.

        Raises:
            WrongReleaseError: If noise is added to anything but the sums that were seen,
                or not as it was charged.
        """
        self._has_released = True
        if self.is_blind:
            return witnessed_release(None)
        norm = batch.max_grad_norm
        count = counting(self._ledger, loader, max_grad_norm=norm)
        if not (self.is_due and _are_plain(batch.parameters)):
            return witnessed_release(count)
        look = self._look_at(batch, self._clipping.group_of(batch.parameters))
        sums, before = batch.sums.of_parameters(), self._num_charged()

        def watch(add: Callable[[], float], noised: Sequence[Tensor]) -> float:
            if not are_apart(sums, look.index, noised):
                self._fail("what is released is not what noise is added to")
            if not all(map(torch.equal, values_of(sums, look.index), look.sums)):
                self._fail("sums changed after the last gradients were added")
            self._check_batch(look, loader, noise)
            stddev = count(add, noised)
            self._check_charge(look, stddev, before, loader)
            look.noisy = values_of(sums, look.index)
            return stddev

        return witnessed_release(watch)

    def admit(self, param_groups: Iterable[Mapping[str, Any]]) -> None:
        """Compare what the wrapped optimizer is about to see with what got noise.

        Raises:
            WrongReleaseError: If it is anything else; all of it is cleared then.
        """
        if not self.is_due:
            if self._has_released:  # Or else a batch may be under way.
                self._choose(is_seen=False)
            return
        parameters = [p for group in param_groups for p in group["params"]]
        if not _are_plain(p for p in parameters if p.grad is not None):
            self._choose(is_seen=True)
            return
        look = self._look
        if look is None or not look.noisy:
            # An empty step, in which checkpoints create state, has no other gradients.
            if any(p.grad is not None and bool(p.grad.any()) for p in parameters):
                self._refuse(parameters, "it did not pass through the noise stage")
            return
        known = {id(p): i for i, p in enumerate(look.batch.parameters)}
        for parameter in parameters:
            index = known.get(id(parameter))
            if not self._is_released(look, parameter, index):
                self._refuse(
                    parameters,
                    f"the gradient of a parameter of shape {tuple(parameter.shape)} is"
                    " not its noisy sum over the expected batch size",
                )
        self._look = None
        self.has_compared |= not look.is_blind
        self._choose(is_seen=not look.is_blind)

    def _look_at(self, batch: PendingBatch, groups: Sequence[int]) -> _Look:
        """Return what was seen of a batch; nothing of one that has just begun."""
        if self._look is None or self._look.batch is not batch:
            counts = [parameter.numel() for parameter in batch.parameters]
            index = picked_of(counts)
            zeros = [torch.zeros(len(picked), dtype=torch.float64) for picked in index]
            group = secrets.choice([*groups] or [0])
            slack = [0.0] * len(counts)
            own = [torch.zeros_like(zero) for zero in zeros]
            self._look = _Look(batch, group, index, zeros, own, slack)
        return self._look

    def _check_batch(
        self, look: _Look, loader: TicketedLoader | None, noise: GaussianNoise
    ) -> None:
        """Check once more what is refused before a release."""
        batch, dataset, seeds = look.batch, None, [noise.seed]
        if loader is not None:
            dataset = loader.dataset
            seeds.append(loader.debug_seed)
            ticket = batch.ticket
            if ticket is None or not is_spent(ticket, loader) or not look.has_batch:
                self._fail("its losses were not compared with the batch that was drawn")
            if look.num_units > ticket.num_samples:
                self._fail("a unit of its batch has two gradients")
        batch.check_complete()
        self._account.check(batch.parameters, dataset)
        if any(seed is not None for seed in seeds) and self._ledger.failure is None:
            self._fail("a debugging seed was not told to the ledger")

    def _num_charged(self) -> int:
        segment = self._ledger.segments().get(self._ledger.segment, ())
        return sum(charge.count for charge in segment)

    def _check_charge(
        self, look: _Look, stddev: float, before: int, loader: TicketedLoader | None
    ) -> None:
        """Compare the newest charge with what was done for it."""
        scheme = getattr(loader, "sampling", Unamplified())
        if is_by_step(scheme) and self._num_charged() != before + 1:
            self._fail("it was not charged once")
        segment = self._ledger.segments().get(self._ledger.segment)
        if segment is None:
            return
        charge = segment[-1]
        release, norm = charge.to_release(), charge.max_grad_norm
        wrong = wrong_draw(self._plan, loader, charged=release.sampling_probability)
        if wrong is not None:
            self._fail(wrong)
        # Of more noise than was planned, the charge is of the planned.
        if not (
            stddev >= charge.noise_multiplier * norm
            and release.noise_multiplier <= charge.noise_multiplier
        ):
            self._fail("its noise is not the noise that was charged")
        if is_by_step(scheme):
            self._check_planned(charge)
        if not (look.is_blind or look.longest <= norm * (1 + _MARGIN)):
            self._fail("a clipped gradient is longer than was charged")

    def _check_planned(self, charge: Charge) -> None:
        """Check that a charge is of no more noise than planned, and that none is lost."""
        ledger, planned = self._ledger, self._plan.noise_multiplier_at
        # A number that was declared public depends on no release; a filter bounds those.
        may_be_more = charge.public is not None or self._plan.renyi_order is not None
        accounted = charge.to_release().noise_multiplier
        if not (may_be_more or accounted <= planned(ledger.steps - 1)):
            self._fail("it is accounted as more noise than was planned")
        counted = copy(ledger.meter)  # First: another thread may charge meanwhile.
        if counted.misses(ledger.segments(), failure=ledger.failure):
            self._fail("earlier ones have no charge any more")

    def _is_released(self, look: _Look, parameter: Tensor, index: int | None) -> bool:
        if parameter.grad is None or index is None:
            return parameter.grad is None and index is None
        (found,) = values_of([parameter.grad], [look.index[index]])
        dtype = torch.finfo(parameter.grad.dtype)
        expected = look.noisy[index] / self._plan.expected_batch_size
        # As it was stored, which may be infinite in 16 bits.
        expected = expected.to(parameter.grad.dtype).double()
        return torch.allclose(
            found,
            expected,
            rtol=_ROUNDINGS * dtype.eps,
            atol=_ROUNDINGS * dtype.tiny,
            equal_nan=True,
        )

    def _choose(self, *, is_seen: bool) -> None:
        self._has_released = False
        self._num_seen += is_seen
        self._num_tries += 1
        is_first = self._num_seen < _FIRST and self._num_tries < _MOST_TRIES
        self._is_chosen = is_first or secrets.randbelow(_EVERY) == 0

    def _refuse(self, parameters: Iterable[Tensor], why: str) -> NoReturn:
        for parameter in parameters:
            parameter.grad = None  # It may be without noise.
        self._fail(why)

    def _fail(self, why: str) -> NoReturn:
        """Raise, and end the run if anything was released or charged before."""
        self._look = None
        if self._ledger.steps:
            self._ledger.fail(f"a release was wrong: {why}")
        raise WrongReleaseError(
            f"a release is not what was charged for it: {why}; the optimizer did not see"
            " it. If nothing but this package touches gradients between backward and"
            " step, please report it, with the versions of dp and torch"
        )


def _are_plain(parameters: Iterable[Tensor]) -> bool:
    """Whether elements can be compared: whole real tensors on a CPU."""
    return all(
        p.is_cpu and p.is_floating_point() and not hasattr(p, "placements")
        for p in parameters
    )
