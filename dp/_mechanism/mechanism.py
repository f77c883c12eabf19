"""The state of one private run, and the two things that happen to it.

:class:`Mechanism` owns everything that decides what is released: the plan, the
clipping rule, the noise, the ledger, the loader whose tickets are spent, and the
clipped sums of the batch at hand. It knows parameters, not optimizers; which
update is made from the released gradient is :mod:`dp.optimizer`'s business.

Shapes: ``B`` examples in a batch, ``G`` clipping groups.
"""

import sys
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import final
from weakref import WeakKeyDictionary

from torch import Tensor

from dp._mechanism.consensus import Consensus
from dp._mechanism.current_values import CurrentValues, ScheduledClipping
from dp._mechanism.sums import zero_sums
from dp.clipping import Clipping
from dp.distributed import Exchange, sharding_of, unsharded_parameters
from dp.exceptions import (
    PrivacyError,
    SamplingMismatchError,
    UnsupportedOperationError,
)
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.per_sample import (
    Engine,
    PerSampleGradients,
    clear_grad_samples,
    from_grad_samples,
)
from dp.plan import PrivacyPlan
from dp.sampling import PoissonLoader, Ticket, Unamplified


__all__ = ("Mechanism", "Pending")


# The serial of the last ticket that any optimizer spent. The cost of a release counts
# on the chance not to be in its batch; two releases of one batch share that chance.
_last_spent: WeakKeyDictionary[PoissonLoader, int] = WeakKeyDictionary()


@final
@dataclass(slots=True)
class Pending:
    """Clipped sums of the batch at hand: not yet noised, never shown to anyone."""

    parameters: tuple[Tensor, ...]
    sums: list[Tensor]
    ticket: Ticket | None
    max_grad_norm: float
    num_samples: int = 0
    num_backwards: int = 0


@final
@dataclass(slots=True, kw_only=True)
class Mechanism:
    """One Gaussian mechanism over a stream of batches (Abadi et al. 2016).

    ``noise_multiplier`` and ``max_grad_norm`` are those of the next release: the
    plan's for its step, unless assigned. Deleting one returns to the plan.
    """

    plan: PrivacyPlan
    clipping: Clipping
    noise: GaussianNoise
    ledger: Ledger
    loader: PoissonLoader | None
    engine: Engine = field(default_factory=Engine)
    agreement: Consensus = field(default_factory=Consensus)
    pending: Pending | None = None
    assigned: dict[str, float] = field(default_factory=dict)
    settings: CurrentValues = field(init=False)
    rule: Clipping = field(init=False)

    def __post_init__(self) -> None:
        self.settings = CurrentValues(
            plan=self.plan, ledger=self.ledger, assigned=self.assigned
        )
        self.rule = self.clipping
        self.clipping = ScheduledClipping(self.rule, self.settings)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the next noise over ``max_grad_norm``."""
        return self.settings.noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        self.settings.assign("noise_multiplier", value)

    @noise_multiplier.deleter
    def noise_multiplier(self) -> None:
        self.settings.reset("noise_multiplier")

    @property
    def max_grad_norm(self) -> float:
        """L2 norm to which each gradient of the next batch is clipped."""
        return self.settings.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        self.settings.assign("max_grad_norm", value)

    @max_grad_norm.deleter
    def max_grad_norm(self) -> None:
        self.settings.reset("max_grad_norm")

    def accumulate(
        self, losses_B: Tensor, parameters: Sequence[Tensor], *, loss_scale: float = 1.0
    ) -> bool:
        """Add the clipped gradient of every example to the sums of its batch.

        Args:
            losses_B: One loss an example.
            parameters: What the release is about; the same for all of a batch.
            loss_scale: A power of two that the backward pass is multiplied with, and
                gradients are divided by before they are clipped.

        Returns:
            Whether these are the first losses of their batch.

        Raises:
            SamplingMismatchError: If the batch at hand was not drawn by the loader,
                was already released, or holds fewer examples than ``losses_B``.
            UnsupportedOperationError: If no parameter takes part in the losses.
        """
        pending = self._pending_for(parameters)
        self._admit(pending, num_samples=len(losses_B))
        with unsharded_parameters(pending.parameters) as leaves:
            if len(losses_B):
                gradients = self.engine.gradients(
                    losses_B, leaves, loss_scale=loss_scale
                )
                _check_attached(gradients, leaves)
                self._add(pending, gradients)
        pending.num_backwards += 1
        self.pending = pending
        return pending.num_backwards == 1

    def accumulate_grad_samples(self, parameters: Sequence[Tensor]) -> None:
        """Add the clipped gradients that are on the parameters already, if any are.

        Raises:
            SamplingMismatchError: As :meth:`accumulate`.
        """
        gradients = from_grad_samples(parameters)
        if gradients is None:
            return
        pending = self._pending_for(parameters)
        self._admit(pending, num_samples=gradients.num_samples)
        self._add(pending, gradients)
        pending.num_backwards += 1
        self.pending = pending
        clear_grad_samples(parameters)

    def _add(self, pending: Pending, gradients: PerSampleGradients) -> None:
        groups = self.clipping.group_of(pending.parameters)
        norms_GB = gradients.squared_norms(groups).sqrt()
        factors_GB = self.clipping.factors(norms_GB)
        self.pending = None  # A failure half-way must not leave half a sum.
        gradients.add_weighted_sum(
            factors_GB, groups, pending.sums, beta=int(pending.num_samples > 0)
        )
        pending.num_samples += gradients.num_samples

    def release(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Charge the ledger, then return the noised sums of the batch.

        Of several ranks, each gets the noised total of all ranks' sums, or its shard
        of it where the parameter is a shard.

        Guarantees:
            * Nothing changes if the batch does not match its ticket, if the budget
              does not allow the release, or if the ranks do not agree.
            * Every parameter gets noise, also one that no example reached, and gets
              it once, whatever the number of ranks is.
        """
        shardings = [sharding_of(p) for p in parameters]
        world, pending = self.agreement.check(
            lambda: self._complete(parameters),
            settings=self.settings,
            clipping=self.rule,
            noise=self.noise,
            loader=self.loader,
            parameters=parameters,
        )
        noise_multiplier = self.noise_multiplier
        stddev = noise_multiplier * pending.max_grad_norm
        self.ledger.reserve(
            sampling_probability=self.plan.sampling_probability,
            noise_multiplier=noise_multiplier,
            max_grad_norm=pending.max_grad_norm,
            truncation=self.plan.truncation,
        )
        self.pending = None
        if pending.ticket is not None and self.loader is not None:
            _last_spent[self.loader] = pending.ticket.serial
        exchange = Exchange(world, pending.sums, shardings)
        for share in exchange:  # Of the total over all ranks.
            self._add_noise(share, stddev)  # Private from here on.
            exchange.start_all_gather()
        return exchange.results()

    def _complete(self, parameters: Sequence[Tensor]) -> Pending:
        pending = self._pending_for(parameters)
        _check_complete(pending)
        return pending

    def _add_noise(self, sums: Sequence[Tensor], stddev: float) -> None:
        used = self.noise.add_(sums, stddev=stddev)
        if used != stddev:
            raise PrivacyError(
                f"the noise stage used a standard deviation of {used!r} where"
                f" {stddev!r} was charged; nothing was released"
            )

    def attach(self, loader: PoissonLoader) -> None:
        """Take tickets from *loader* from now on."""
        self.pending = None
        self.loader = loader

    def discard(self) -> None:
        """Forget the batch at hand; its ticket stays valid until it is spent."""
        self.pending = None

    def __deepcopy__(self, memo: dict[int, object]) -> "Mechanism":
        # The batch at hand is secret, the loader's data is not ours to copy.
        return Mechanism(
            plan=self.plan,
            clipping=deepcopy(self.rule, memo),
            noise=deepcopy(self.noise, memo),
            ledger=deepcopy(self.ledger, memo),
            loader=self.loader,
            assigned=dict(self.assigned),
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Another process has other loaders: attach one there.
        parts = (self.plan, self.rule, self.noise, self.ledger, self.assigned)
        return _unpickled, parts

    def _pending_for(self, parameters: Sequence[Tensor]) -> Pending:
        ticket = self._current_ticket()
        pending = self.pending
        if pending is None or pending.ticket is not ticket:
            # Sums of a batch that was broken off are dropped: its ticket is void.
            _warn_if_complete(pending)
            sums = zero_sums(parameters)
            return Pending(tuple(parameters), sums, ticket, self.max_grad_norm)
        if pending.max_grad_norm != self.max_grad_norm:
            raise PrivacyError(
                f"max_grad_norm changed from {pending.max_grad_norm!r} to"
                f" {self.max_grad_norm!r} between backward and step; call zero_grad()"
                " and run the batch again"
            )
        if not _same(pending.parameters, parameters):
            raise PrivacyError(
                "the optimizer's trainable parameters changed between backward and"
                " step; call zero_grad() and run the batch again" + _told_of_deepspeed()
            )
        return pending

    def _current_ticket(self) -> Ticket | None:
        if isinstance(self.plan.sampling, Unamplified):
            return None
        if self.loader is None:
            raise SamplingMismatchError(
                "the plan claims amplification by sampling, but no loader is attached;"
                " call optimizer.attach(plan.loader(dataset))"
            )
        ticket = self.loader.ticket
        if ticket is None:
            raise SamplingMismatchError(
                "no batch has been drawn from the loader; iterate over the loader that"
                " was given to DPOptimizer" + _told_of_deepspeed()
            )
        if ticket.serial <= _last_spent.get(self.loader, -1):
            raise SamplingMismatchError(
                "this batch was already used for a step; draw the next one from the"
                " loader. Two optimizers that release the same batch would cost more"
                " than their ledgers say: put the parameters into groups of one"
                " optimizer, or give each a loader of its own"
            )
        return ticket

    def _admit(self, pending: Pending, *, num_samples: int) -> None:
        if isinstance(self.plan.sampling, Unamplified):
            limit = self.plan.sampling.backwards_per_step
            if pending.num_backwards >= limit:
                raise SamplingMismatchError(
                    f"backward was called more than {limit} time(s) before step; one"
                    " example could count twice. Declare"
                    " Unamplified(backwards_per_step=...) if the calls of one step"
                    " never share an example"
                )
        elif pending.num_samples + num_samples > _drawn(pending):
            raise SamplingMismatchError(
                "more losses than the loader drew examples for this batch; pass one"
                " loss per example, and each example to backward once"
            )


def _check_attached(
    gradients: PerSampleGradients, parameters: Sequence[Tensor]
) -> None:
    if gradients.is_detached and parameters:
        raise UnsupportedOperationError(
            "none of the optimizer's parameters takes part in the losses, so the step"
            " would be noise alone: they were computed under no_grad or by another"
            " model, or a framework trains copies in place of the model's parameters,"
            " for which there is no gradient of one example" + _told_of_deepspeed()
        )


def _check_complete(pending: Pending) -> None:
    if pending.ticket is None and pending.num_backwards == 0:
        raise SamplingMismatchError(
            "step was called without gradients; call optimizer.backward(losses) first"
            + _told_of_deepspeed()
        )
    if pending.num_samples < _drawn(pending):
        raise SamplingMismatchError(
            "backward has not seen every example that the loader drew for this batch;"
            " pass the losses of the whole batch to optimizer.backward before step"
        )


def _told_of_deepspeed() -> str:
    """Return why its engines come to these errors, where there is one."""
    if "deepspeed" not in sys.modules:
        return ""
    return (
        ". DeepSpeed's ZeRO stages 1 to 3 and its fp16 and bf16 engines put copies in"
        " place of the parameters, and may step before any batch: train with stage 0 in"
        " float32 or with torch_autocast, with DistributedDataParallel or with FSDP2"
    )


def _warn_if_complete(pending: Pending | None) -> None:
    """Warn of accumulation over draws, which looks as if it worked."""
    if pending is not None and 0 < pending.num_samples == _drawn(pending):
        warnings.warn(
            "a whole batch went through backward, but its step was never taken, and its"
            " gradients were dropped when the next batch was drawn. Each step is made"
            " of one draw: to accumulate, split the draw (dp.MicroBatches), and plan"
            " for larger ones; to skip a batch on purpose, call zero_grad()",
            stacklevel=6,
        )


def _drawn(pending: Pending) -> int:
    """How many examples the loader drew for this batch; a private number."""
    return 0 if pending.ticket is None else pending.ticket.num_samples


def _unpickled(
    plan: PrivacyPlan,
    clipping: Clipping,
    noise: GaussianNoise,
    ledger: Ledger,
    assigned: dict[str, float],
) -> Mechanism:
    return Mechanism(
        plan=plan,
        clipping=clipping,
        noise=noise,
        ledger=ledger,
        loader=None,
        assigned=assigned,
    )


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(
        a is b for a, b in zip(left, right, strict=True)
    )
