"""The state of one private run, and the two things that happen to it.

:class:`Mechanism` owns everything that decides what is released: the plan, the
clipping rule, the noise, the ledger, the loader whose tickets are spent, and the
clipped sums of the batch at hand. It knows parameters, not optimizers; which
update is made from the released gradient is :mod:`dp.optimizer`'s business.

Shapes: ``B`` examples in a batch, ``G`` clipping groups.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from dp._mechanism.batch import PendingBatch, current_ticket, held_against
from dp._mechanism.correlated import correlated_step
from dp._mechanism.likely_causes import check_attached, warn_of_many_rows
from dp._mechanism.loss_units import LossUnits, Reduction, check_grouped, loss_units
from dp._mechanism.private_run import PrivateRun
from dp._mechanism.sums import Sums
from dp.accounting._counted import NoiseBesideCount
from dp.distributed import Exchange, World, shardings_of, unsharded_parameters
from dp.evidence import LossFunction
from dp.exceptions import (
    PrivacyError,
    SampleMixingError,
    WrongGradientError,
    WrongNoiseError,
)
from dp.per_sample import (
    PerSampleGradients,
    clear_grad_samples,
    from_grad_samples,
)


__all__ = ("Mechanism",)


@final
@dataclass(slots=True, kw_only=True)
class Mechanism(PrivateRun):
    """One Gaussian mechanism over a stream of batches (Abadi et al. 2016)."""

    def evaluate(
        self, function: LossFunction, batch: Any, units: Tensor | None
    ) -> Tensor:
        """Return ``function(batch)``, which is evaluated once more now and then.

        Raises:
            SampleMixingError: If one example's loss depends on another example.
        """
        try:  # At every step: a context would take longer than what is in it.
            return self.watch.losses(
                function,
                batch,
                segment=self.ledger.segment,
                units=units,
                loader=self.loader,
            )
        except SampleMixingError as error:
            self._end_if_released(error)
            raise

    def accumulate(
        self,
        losses: Tensor,
        parameters: Sequence[Tensor],
        *,
        units: Tensor | None = None,
        reduction: Reduction = "sum",
        loss_scale: float = 1.0,
        is_scaled: bool = True,
    ) -> None:
        """Add the clipped gradient of every example to the sums of its batch.

        Args:
            losses: One loss an example, or several a unit.
            parameters: What the release is about; the same for all of a batch.
            units: The unit of each loss; None if the loader knows.
            reduction: Whether a unit's loss is the sum or the mean of its losses.
            loss_scale: A power of two that the backward pass is multiplied with, and
                gradients are divided by before they are clipped.
            is_scaled: Whether the scale of a trainer, if it has one, is known.

        Raises:
            SamplingMismatchError: If the batch at hand was not drawn by the loader,
                was already released, or holds fewer examples than there are losses.
            UnsupportedOperationError: If no parameter takes part in the losses.
        """
        # Everything that can be refused is, before the first gradient is computed.
        batch = self._batch_for(parameters)
        whose = loss_units(
            losses,
            units,
            reduction=reduction,
            ticket=batch.ticket,
            part=None if self.loader is None else self.loader.part,
        )
        check_grouped(self.plan, whose)
        batch.admit(whose.num_units, self.plan.sampling, whose.present)
        is_told = whose.of_loss is not None or self.has_warned
        if not is_told and batch.may_hold_views(whose.num_units, self.plan):
            self.has_warned = True
            warn_of_many_rows(stacklevel=5)
        with unsharded_parameters(batch.parameters) as leaves:
            if whose.num_units:
                try:  # As in `evaluate`.
                    gradients = self.engine.gradients(
                        losses,
                        leaves,
                        loss_scale=loss_scale,
                        units=whose.of_loss,
                        reduction=reduction,
                        groups=self.effective_clipping.group_of(batch.parameters),
                        keep_graph=self.witness.needs_graph(batch),
                        **held_against(self.loader, batch),
                    )
                except (SampleMixingError, WrongGradientError) as error:
                    self._end_if_released(error)
                    raise
                check_attached(gradients, leaves)
                self._add_clipped(gradients, batch)
        batch.rows_read.keep()
        batch.units.update(whose.present)
        batch.may_lack_units |= whose.may_lack_units
        batch.num_backwards += 1
        batch.all_scaled &= is_scaled
        self.step.accumulate(batch)

    def accumulate_grad_samples(self, parameters: Sequence[Tensor]) -> None:
        """Add the clipped gradients that are on the parameters already, if any are.

        Raises:
            SamplingMismatchError: As :meth:`accumulate`.
        """
        gradients = from_grad_samples(parameters)
        if gradients is None:
            return
        batch = self._batch_for(parameters)
        check_grouped(self.plan, LossUnits(gradients.num_samples))
        batch.admit(gradients.num_samples, self.plan.sampling)
        self._add_clipped(gradients, batch)
        batch.num_backwards += 1
        self.step.accumulate(batch)
        clear_grad_samples(parameters)

    def _end_if_released(self, error: SampleMixingError | WrongGradientError) -> None:
        """End the run if gradients turn out to be wrong after something was released.

        Earlier releases may have been of mixed examples, or of gradients that were not
        clipped as their true norms demand, too, between two verifications; and
        that the run stops here depends on data. Neither was paid for, so no epsilon
        holds any more. Before the first release nothing is lost by trying again.
        """
        if self.ledger.steps:
            self.step.drop()
            is_mixed = isinstance(error, SampleMixingError)
            what = "examples were mixed" if is_mixed else "a gradient was wrong"
            self.ledger.fail(f"{what}: {error}")
            error.add_note(
                "Releases were made before this was noticed, so the run ends here:"
                " its ledger keeps the failure, and its epsilon is infinite."
            )

    def _add_clipped(self, gradients: PerSampleGradients, batch: PendingBatch) -> None:
        """Clip every example's gradient and add it: sensitivity <= C from here on."""
        groups = self.effective_clipping.group_of(batch.parameters)
        norms_GB = gradients.squared_norms(groups, batch.scales).sqrt()
        factors_GB = self.effective_clipping.factors(norms_GB)
        self.row_map.count(batch, gradients, norms_GB)
        self.step.drop()  # A failure half-way must not leave half a sum.
        batch.sums.add(gradients, factors_GB, groups)
        self.witness.added(batch, gradients, factors_GB, groups)
        batch.num_samples += gradients.num_samples
        batch.num_within += self.count.of(norms_GB, batch.max_grad_norm)

    def release(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Charge the ledger, then return the private gradient of the batch.

        This is Algorithm 1 of Abadi et al. (2016) from the sum on; its clipping is
        in :meth:`accumulate`. Of several ranks, each gets the noised total of all
        ranks' sums, or its shard of it where the parameter is a shard.

        Guarantees:
            * Nothing changes if the batch does not match its ticket, if the budget
              does not allow the release, or if the ranks do not agree.
            * Every parameter gets noise, also one that no example reached, and gets
              it once, whatever the number of ranks is; but for rows of tables that a
              sparse rule leaves at zero.
        """
        # Charging comes before noise is drawn: a crash in between loses a release,
        # never a charge, and no noise can be looked at before it is paid for.
        world, batch, noises = self._ready_to_release(parameters)
        with self.witness.releasing(batch, self.loader, self.noise):
            return self._released(world, batch, noises, parameters)

    def _released(
        self,
        world: World,
        batch: PendingBatch,
        noises: NoiseBesideCount | None,
        parameters: Sequence[Tensor],
    ) -> list[Tensor]:
        count = self.count.as_sums(batch, noises)  # None, unless the rule needs one.
        sums = batch.sums.of_parameters()
        stddev = self._charge(batch, noises)
        for total, scale in zip(sums, batch.scales, strict=False):
            total.mul_(scale)  # As it was clipped; none is there without scales.
        rows = self.row_map.release(world, batch, noises, stddev, self._add_noise)
        # Of tables with a sparse rule, what is not kept gets no noise, and is gone.
        sums, buffers = rows.of(sums, batch.sums.buffers)
        summed = [*sums, *count]
        totals = Exchange(
            world,
            summed,
            [*shardings_of(parameters), *[None] * len(count)],
            buffers=[*buffers, *count],
        )
        with correlated_step(
            self.recursion, batch, summed, self.ledger.segment, world.size
        ) as recursion:
            for share in totals:
                if recursion is not None:
                    recursion.combine(share)
                self._add_noise(share, stddev)  # Private from here on.
                if recursion is not None:
                    recursion.separate(share)
                self._divide(share)
                totals.start_all_gather()
        released = totals.results()
        self.count.adapt(self.values, released[len(parameters) :], noises)
        for gradient, scale in zip(released, batch.scales, strict=False):
            gradient.div_(scale)
        growth = 1.0 if self.recursion is None else self.recursion.noise_growth
        self.released_stddev: float = growth * stddev / self.plan.expected_batch_size
        return rows.spread(released[: len(parameters)], parameters)

    def _ready_to_release(
        self, parameters: Sequence[Tensor]
    ) -> tuple[World, PendingBatch, NoiseBesideCount | None]:
        """Return the ranks, the batch and its noises if nothing speaks against a release.

        Raises:
            SamplingMismatchError: If the batch does not match its ticket.
            ValueError: If the sums could not hold the noise.
            LedgerError: If the parameters or the data were paid for by another ledger.
            PrivacyError: If parameters or the clipping norm changed meanwhile.
            RankFailedError: If another rank raised, died, or did not come in time.
            RanksDivergedError: If the ranks do not agree.
        """
        world = World.current()
        try:
            batch = self._batch_for(parameters)
            batch.check_complete()
            self.beside.note_units(are_missing=batch.lacks_units)
            dataset = None if self.loader is None else self.loader.dataset
            self.account.check(parameters, dataset)
            # Charged is only what can be released: noise may not fit into the sums.
            size = self.plan.expected_batch_size
            noises = self.count.noises(self.noise_multiplier, size)
            noises = noises or self.row_map.noises(self.noise_multiplier, parameters)
            self.noise.check(batch.sums.buffers, stddev=self._stddev(batch, noises))
        except Exception:
            world.tell_failure()
            raise
        asked = self.consensus.check(
            world,
            ticket=batch.ticket,
            max_grad_norm=batch.max_grad_norm,
            values=self.values,
            clipping=self.clipping,
            noise=self.noise,
            loader=self.loader,
            parameters=parameters,
            asks=self.watch.together.asks,
        )
        self.watch.together.answer(asked=asked)
        return world, batch, noises

    def _stddev(self, batch: PendingBatch, noises: NoiseBesideCount | None) -> float:
        sigma = self.noise_multiplier if noises is None else noises.gradients
        return sigma * batch.max_grad_norm

    def _charge(self, batch: PendingBatch, noises: NoiseBesideCount | None) -> float:
        """Charge the ledger; return the standard deviation that it was charged for.

        The ticket is spent and the batch let go only afterwards: a refused charge
        changes nothing. An interrupt in between loses a release, never a charge.
        """
        stddev = self._stddev(batch, noises)
        self.note_debugging()
        self.ledger.reserve(
            sampling_probability=self.plan.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=batch.max_grad_norm,
            truncation=self.plan.truncation,
            in_pass=batch.in_pass,
            public=self.values.reason,
            noise_beside_count=noises,
        )
        self.watch.released(self.ledger.segment)
        self.step.release()
        batch.spend_ticket(self.loader)
        return stddev

    def _add_noise(self, share: Sequence[Tensor], stddev: float) -> None:
        """Add noise to a share of the totals, once, on the rank that has it."""
        # What was charged is held against what the noise stage says it did, and not
        # against what it was told: an accountant that is fed the configured sigma misses
        # the noise that was really added (opacus#807).
        try:
            used = self.noise.add_(share, stddev=stddev)
        except WrongNoiseError as error:
            self.ledger.fail(f"noise was wrong: {error}")  # Of releases before, too.
            raise
        if used != stddev:
            raise PrivacyError(
                f"the noise stage used a standard deviation of {used!r} where"
                f" {stddev!r} was charged; nothing was released"
            )

    def _divide(self, share: Sequence[Tensor]) -> None:
        """Divide by a public constant; never by the size that the batch really had.

        The size is private, and dividing by it also changes the sensitivity of the
        mean (opacus#571, #819: the denominator followed ``len(dataset)``).
        """
        for total in share:
            total.mul_(1 / self.plan.expected_batch_size)

    def __deepcopy__(self, memo: dict[int, object]) -> "Mechanism":
        # The batch at hand is secret, and the loader's data is not ours to copy. A copied
        # ledger charges under an id of its own, so that forks add up.
        return Mechanism(
            plan=self.plan,
            clipping=deepcopy(self.clipping, memo),
            noise=deepcopy(self.noise, memo),
            ledger=deepcopy(self.ledger, memo),
            loader=self.loader,
            watch=deepcopy(self.watch, memo),
            assigned=dict(self.assigned),
            public_reasons=dict(self.public_reasons),
            public=self.public,
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Another process has other loaders: attach one there.
        stages = {
            "plan": self.plan,
            "clipping": self.clipping,
            "noise": self.noise,
            "ledger": self.ledger,
            "assigned": self.assigned,
            "public_reasons": self.public_reasons,
            "public": self.public,
            "watch": self.watch,
        }
        return _unpickled, (stages,)

    def _batch_for(self, parameters: Sequence[Tensor]) -> PendingBatch:
        """Return the batch at hand, or an empty one if another was drawn meanwhile."""
        ticket = current_ticket(self.plan, self.loader)
        batch = self.step.batch
        if batch is not None and batch.ticket is ticket:
            batch.check_same(parameters, self.max_grad_norm)
            return batch
        if batch is not None:
            # Sums of a batch that was broken off are dropped: its ticket is void.
            batch.warn_if_complete(stacklevel=6)
        sums = Sums(parameters)
        scales = () if self.scaling is None else self.scaling(parameters)
        return PendingBatch(tuple(parameters), sums, ticket, self.max_grad_norm, scales)


def _unpickled(stages: Mapping[str, Any]) -> Mechanism:
    return Mechanism(loader=None, **stages)
