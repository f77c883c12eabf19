"""Train on the auditor's records, and keep what one run released and drew.

Shapes: ``T`` releases, ``M`` records that might be in the data, ``B`` in a batch.
"""

import io
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from dp._progress import Bar
from dp.audit._statistics import Floats
from dp.audit._subject import (
    DIRECTION,
    GRADIENT_NORM,
    Bools,
    CanaryDataset,
    CanaryModel,
    Train,
    fixed_seeds,
    hooked,
)
from dp.clipping import ScaledClipping, SparseClipping
from dp.exceptions import (
    BudgetExhaustedError,
    PrivacyError,
    UnsupportedOperationError,
)
from dp.ledger import Charge
from dp.optimizer import DPOptimizer
from dp.optimizer._guard import private_owner_of
from dp.plan import PrivacyPlan
from dp.sampling import PassStep


__all__ = ("Observation", "check_every_row", "observe_training")


@final
@dataclass(slots=True, kw_only=True)
class Observation:
    """One run, seen from outside: every release, and who was in its batch.

    Attributes:
        optimizer: The private optimizer that the training function made.
        num_records: How many records might have been in the data.
        charges: What each release was charged as, from the ledger.
    """

    optimizer: DPOptimizer
    num_records: int
    charges: list[Charge] = field(default_factory=list)
    _gradients: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _drawn: list[Bools] = field(default_factory=list)
    _places: list[PassStep | None] = field(default_factory=list)
    _segments: list[str] = field(default_factory=list)

    @property
    def num_releases(self) -> int:
        """How often parameters were updated."""
        return len(self._gradients)

    def signal(self) -> Floats:
        """Return [T, M]: releases along each record's gradient, in units of C."""
        a, b = DIRECTION
        first, second = self.parts()
        return a * first + b * second

    def orthogonal_noise(self) -> Floats:
        """Return [T, M]: releases at right angles to it, which are noise alone."""
        a, b = DIRECTION
        first, second = self.parts()
        return b * first - a * second

    def parts(self) -> tuple[Floats, Floats]:
        """Return the noisy sums of either parameter, [T, M], in units of C.

        With correlated noise they are those that noise was added to, which releases and
        their coefficients determine.
        """
        scale = self.optimizer.plan.expected_batch_size
        units = [scale / charge.max_grad_norm for charge in self.charges]
        first, second = (
            np.stack(
                [
                    pair[i].numpy() * unit
                    for pair, unit in zip(self._gradients, units, strict=True)
                ]
            )
            for i in (0, 1)
        )
        return self._combined(first), self._combined(second)

    def contributions(self) -> Floats:
        """Return [T, M]: what each record adds to noisy sums, in units of C."""
        return self._combined(self.drawn().astype(float))

    def _combined(self, of_steps_TM: Floats) -> Floats:
        """Return the sums over steps that noise is added to, of numbers of each step."""
        if self.optimizer.plan.correlation is None:
            return of_steps_TM
        combined_TM = np.zeros_like(of_steps_TM)
        before_T = self.steps_before()
        for back, unit in enumerate(self.unit_coefficients()):
            rows = np.flatnonzero(before_T >= back)
            combined_TM[rows] += unit * of_steps_TM[rows - back]
        return combined_TM

    def unit_coefficients(self) -> Floats:
        """Return what is planned for the correlation of noise, with norm 1."""
        noise = self.optimizer.plan.correlation
        planned = np.array((1.0,) if noise is None else noise.coefficients)
        units: Floats = planned / np.linalg.norm(planned)
        return units

    def steps_before(self) -> NDArray[np.int_]:
        """Return [T]: how many steps before each one its noise is correlated with.

        They are of the same chain of rounds, without a gap, since a state was loaded.
        """
        before: list[int] = []
        for release, place in enumerate(self._places):
            last = self._places[release - 1] if release else None
            goes_on = (
                place is not None
                and last is not None
                and (place.chain, place.position) == (last.chain, last.position + 1)
                and self._segments[release] == self._segments[release - 1]
            )
            before.append(before[-1] + 1 if goes_on else 0)
        return np.array(before, np.int_)

    def drawn(self) -> Bools:
        """Return [T, M]: who was in each batch."""
        return np.stack(self._drawn)

    @property
    def steps_per_pass(self) -> int | None:
        """Steps of a pass; None with samples."""
        return self.optimizer.plan.steps_per_pass

    @property
    def bands(self) -> int | None:
        """Steps of a round by cyclic Poisson sampling; None with other sampling."""
        return self.optimizer.plan.bands

    def passes(self) -> list[list[int]]:
        """Return the releases of each pass, or round of bands, in their order."""
        passes: dict[int, list[int]] = {}
        for release, place in enumerate(self._places):
            if place is not None:  # pragma: no branch -- of a plan that has passes
                passes.setdefault(place.number, []).append(release)
        return list(passes.values())

    def turns(self) -> list[list[list[int]]]:
        """Return the releases of each chain of rounds, by whose turn it was."""
        chains: dict[int | None, list[list[int]]] = {}
        for release, place in enumerate(self._places):
            if place is not None:  # pragma: no branch -- of a plan that has rounds
                turns = chains.setdefault(
                    place.chain, [[] for _ in range(place.num_steps)]
                )
                turns[place.step].append(release)
        return list(chains.values())

    def noise_multipliers(self) -> Floats:
        """Return [T, 1]: the noise on gradients that each release was charged for."""
        return np.array([[_noise_on_gradients(charge)] for charge in self.charges])

    def sampling_probabilities(self) -> Floats:
        """Return [T, 1]: what each release was charged as."""
        return np.array([[charge.sampling_probability] for charge in self.charges])

    def add(self, model: CanaryModel) -> None:
        """Record the release that was just applied to *model*."""
        first, second = (e.weight.grad for e in (model.first, model.second))
        if first is None or second is None:
            raise PrivacyError(
                "a step left no gradient on the canaries: the training function must"
                " step every parameter of the model"
            )
        if isinstance(self.optimizer.mechanism.clipping, ScaledClipping):
            raise UnsupportedOperationError(
                "clipping=ScaledClipping noises each coordinate on a scale of its own,"
                " and this audit knows none; audit the plan with FlatClipping, and scaled"
                " gradients by dp.audit.replay"
            )
        charged = self.optimizer.ledger.charges()
        plan, step = self.optimizer.plan, len(self.charges)
        charge = charged[-1] if charged else _planned(plan, step)
        _check(charge)
        self.charges.append(charge)
        pair = first[:, 0].double().cpu(), second[:, 0].double().cpu()
        drawn_M = np.zeros(self.num_records, dtype=np.bool_)
        for numbers_B in model.seen:
            drawn_M[numbers_B.numpy()] = True
        model.seen.clear()
        self._gradients.append((pair[0].clone(), pair[1].clone()))
        self._drawn.append(drawn_M)
        loader = self.optimizer.mechanism.loader
        ticket = None if loader is None else loader.ticket
        self._places.append(None if ticket is None else ticket.draw.in_pass)
        self._segments.append(self.optimizer.ledger.segment)


def observe_training(
    train: Train, included_M: Bools, *, bar: Bar, resumed: bytes | None = None
) -> tuple[Observation, bytes]:
    """Train on the records that are included; return what was seen.

    Generators of torch, numpy and random start from the same seeds every time, as in a
    script that seeds them.

    Args:
        train: The training function.
        included_M: Which records are in the data.
        bar: Shows progress.
        resumed: A checkpoint to load after the first release, as of a run that was
            broken off there. Its charges count, so the budget ends one step early.

    Returns:
        The observation, and a checkpoint of the optimizer after the first release.

    Raises:
        PrivacyError: If the canaries were not trained by a ``DPOptimizer``.
        UnsupportedOperationError: If batches are truncated, or cut by position.
        ValueError: If the plan's numbers leave nothing to observe.
    """
    watch = _Watch(CanaryModel(len(included_M)), bar, resumed)
    with fixed_seeds(), hooked(watch):
        try:
            train(watch.model, CanaryDataset(included_M))
        except BudgetExhaustedError:
            if resumed is None:
                raise
    if watch.observation is None:
        raise PrivacyError(
            "no DPOptimizer stepped the audit's model; make one from"
            " model.parameters() in the training function"
        )
    return watch.observation, watch.checkpoint


@final
class _Watch:
    """Called after every step of any optimizer; records those of the canaries."""

    def __init__(self, model: CanaryModel, bar: Bar, resumed: bytes | None) -> None:
        self.model = model
        self.observation: Observation | None = None
        self.checkpoint = b""
        self._bar = bar
        self._resumed = resumed

    def __call__(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        owner = private_owner_of(self.model.first.weight)
        if not isinstance(owner, DPOptimizer) or optimizer is not owner:
            return  # What wraps it, or steps other parameters.
        if self.observation is None:
            num_records = self.model.first.num_embeddings
            self.observation = Observation(optimizer=owner, num_records=num_records)
        self.observation.add(self.model)
        self._bar.show(self.observation.num_releases, owner.plan.steps)
        if not self.checkpoint:
            self.checkpoint = _saved(owner)
            if self._resumed is not None:
                owner.load_state_dict(torch.load(io.BytesIO(self._resumed)))


def check_every_row(optimizer: DPOptimizer) -> None:
    """Raise if rows of the canaries' tables may not be kept, which tell nothing then.

    Raises:
        UnsupportedOperationError: With what else to do.
    """
    if isinstance(optimizer.mechanism.clipping, SparseClipping):
        raise UnsupportedOperationError(
            "clipping=SparseClipping keeps rows that several examples touched, and in"
            " this audit each record has rows of its own, which are hardly ever kept;"
            " audit the plan with FlatClipping, and the rows of tables by"
            " dp.audit.conformance and dp.audit.replay"
        )


def _check(charge: Charge) -> None:
    if charge.truncation is not None:
        raise UnsupportedOperationError(
            "batches are truncated, which needs a public number of records, and this"
            " audit draws who is in the data; audit the plan with PoissonSampling, and"
            " truncated batches by dp.audit.replay"
        )
    if charge.disjoint == "position":
        raise UnsupportedOperationError(
            "batches are cut by position, which needs a public number of records, and"
            " this audit draws who is in the data; audit the plan with"
            " assigned_by='coin', and batches by position by dp.audit.replay"
        )
    if charge.noise_multiplier == 0:
        raise ValueError(
            "noise_multiplier is 0, so that nothing is private: there is nothing to"
            " audit; plan with noise"
        )
    if charge.max_grad_norm > GRADIENT_NORM / 10:
        raise ValueError(
            f"max_grad_norm must be at most {GRADIENT_NORM / 10:g} for an audit, whose"
            f" gradients have norm {GRADIENT_NORM:g}, got {charge.max_grad_norm!r};"
            " audit a plan with a smaller one, which has the same epsilon"
        )


def _noise_on_gradients(charge: Charge) -> float:
    noises = charge.noise_beside_count
    return charge.noise_multiplier if noises is None else noises.gradients


def _saved(optimizer: DPOptimizer) -> bytes:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return file.getvalue()


def _planned(plan: PrivacyPlan, step: int) -> Charge:
    """Return the planned charge of a release that the ledger does not have."""
    return Charge(
        sampling_probability=plan.sampling_probability,
        noise_multiplier=plan.noise_multiplier_at(step),
        max_grad_norm=plan.max_grad_norm_at(step),
        count=1,
        steps_per_pass=plan.steps_per_pass,
        disjoint=plan.disjoint,
        bands=plan.bands,
    )
