"""How well the losses of the final model tell who was in the data: an attack in one run.

The attacker sees no release and no gradient, as whoever downloads a model: only the loss
of every record, before and after training. So it attacks a real model on real records,
where :func:`dp.audit.canaries` brings a model and records of its own; what it finds is
less, by as much as a final model shows less than all of its steps.

Shapes: ``M`` canaries, ``B`` of them in a batch.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Subset, default_collate

from dp import _checks
from dp._mechanism.paid_for import apart
from dp._progress import progress_bars
from dp._reports import Finding
from dp.accounting import Guarantee, Release, epsilon
from dp.audit._attack_report import AttackReport
from dp.audit._guessing import (
    ByPairs,
    Gaussian,
    Pairs,
    TradeOff,
    largest_permitted,
    permits,
)
from dp.audit._statistics import FALSE_ALARM, Floats
from dp.audit._subject import Bools, Train, hooked, sample_membership
from dp.exceptions import PrivacyError, UnsupportedOperationError
from dp.ledger import remaining
from dp.optimizer import DPOptimizer
from dp.optimizer._registry import parameters_of


__all__ = ("OneRunReport", "one_run")

_FEWEST: Final = 100
_SHARES_GUESSED: Final = (0.02, 0.1, 0.3, 1.0)  # Of the canaries; others are left open.
_OTHER_DELTAS: Final = (1e-13, 1e-9, 1e-3, 1e-2, 0.1)
_BATCH: Final = 256
_LARGEST_EPSILON: Final = 50.0
_BISECTIONS: Final = 40


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OneRunReport(AttackReport):
    """What the losses of one trained model tell of its records.

    Attributes:
        epsilon_if_gaussian: The same as ``epsilon_empirical``, if what the run permits
            is a Gaussian trade-off, as of many steps it nearly is. It is no bound where
            it is not.
    """

    epsilon_if_gaussian: float

    @property
    def name(self) -> str:
        """What the attack is called."""
        return "one run"

    def to_text(self) -> str:
        """Return the report for people to read."""
        headline, *rest = AttackReport.to_text(self).split("\n")
        gaussian = f"  empirical >= {self.epsilon_if_gaussian:.2f} if it is Gaussian"
        return "\n".join([headline, rest[0], gaussian, *rest[1:]])


def one_run(
    train: Train,
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    canaries: Sequence[int] | None = None,
    confidence: float = 0.95,
    progress: bool = False,
) -> OneRunReport:
    r"""Train once on a random half of the canaries, and guess which from losses alone.

    A fair coin of the operating system decides for each canary whether it is in the
    data; all other records are. After training, those whose loss is lowest, or fell
    most, are guessed to have been in it, those at the other end to have been out, and
    the others are left open. If the run is (epsilon, delta)-private, the number of right
    guesses among :math:`r` is at least :math:`v` with a probability of at most

    .. math:: P[W \ge v] + 2 M \delta \max_i \frac{1}{i} P[v > W \ge v - i],
       \quad W \sim \mathrm{Bin}(r, e^\epsilon / (1 + e^\epsilon)),

    and also of what its whole trade-off permits (f-DP), of several such pairs together.
    Both bounds hold, so the smaller one counts. Four shares of the canaries are guessed
    by either score, and each of these attacks counts with an eighth of the error.

    What is trained is for the auditor alone: to publish it as well would cost as much
    again as it states, and no ledger of another run counts it.

    Guarantees:
        * A right run is accused with a probability of 1e-9 at most, and the lower bound
          is wrong with one minus *confidence*, whatever the model and the records are.

    Args:
        train: What is audited, called as ``train(model, dataset)`` with a copy.
        model: The model, called with a batch; it returns one loss an example.
        dataset: The records, map-style.
        canaries: Positions of the records that are left to the coins; all if None. Rare
            or mislabelled records are found most easily.
        confidence: Of the lower bound on epsilon.
        progress: Whether to show a progress bar.

    Raises:
        PrivacyError: If the training function makes no ``DPOptimizer``.
        UnsupportedOperationError: If batches are cut by position, or truncated: their
            claim is for a public number of records, and this audit draws who is in the
            data.
        ValueError: If there are fewer than 100 canaries, or a number is out of range.

    References:
        Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023,
        https://arxiv.org/abs/2305.08846: the first bound, and the attack by losses.
        Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run", 2024,
        https://arxiv.org/abs/2410.22235: the second one.
    """
    _checks.open_unit(confidence=confidence)
    num_records = len(dataset)  # type: ignore[arg-type]  # Map-style ones have it.
    positions = list(range(num_records) if canaries is None else canaries)
    if len(set(positions)) != len(positions) or len(positions) < _FEWEST:
        raise ValueError(
            f"canaries must be >= {_FEWEST} different positions, got {len(positions)},"
            f" {len(set(positions))} of them different"
        )
    included_M = sample_membership(len(positions))
    kept = set(range(num_records)).difference(positions)
    kept.update(p for p, is_in in zip(positions, included_M, strict=True) if is_in)
    trained = copy.deepcopy(model)
    optimizer = _train(train, trained, Subset(dataset, sorted(kept)), progress=progress)
    _check_claim(optimizer)
    before_M, after_M = (_losses(m, dataset, positions) for m in (model, trained))
    claim = optimizer.guarantee()
    # A low loss, or one that fell by much, speaks for membership.
    guesses = _Guesses.of([-after_M, before_M - after_M], included_M)
    surprise = guesses.p_value(_claims(optimizer, claim))
    return OneRunReport(
        epsilon_empirical=guesses.largest_refuted(claim.delta, 1 - confidence),
        epsilon_if_gaussian=guesses.largest_refuted_gaussian(
            claim.delta, 1 - confidence
        ),
        epsilon_proven=claim.epsilon,
        delta=claim.delta,
        confidence=confidence,
        num_canaries=len(positions),
        findings=(
            Finding(
                claim="the attack stays within the claim",
                holds=surprise >= FALSE_ALARM,
                detail=f"{guesses.words}, p = {surprise:.2g}",
            ),
        ),
    )


def _check_claim(optimizer: DPOptimizer) -> None:
    plan = optimizer.plan
    if plan.disjoint == "position" or plan.truncation is not None:
        raise UnsupportedOperationError(
            f"the claim of {plan.sampling!r} is for a public number of records, and this"
            " audit draws who is in the data; audit it by dp.audit.replay"
        )


def _claims(optimizer: DPOptimizer, claim: Guarantee) -> Pairs:
    """Return pairs of epsilon and delta that the run claims, all of which hold.

    Beside the stated one those of smaller deltas, which by themselves make no number of
    right guesses likely, and of larger ones, where its trade-off is less steep. A Renyi
    filter claims the stated pair alone.
    """
    ledger = optimizer.ledger
    pairs = [(claim.epsilon, claim.delta)]
    if optimizer.plan.renyi_order is None and ledger.failure is None:
        releases = [*ledger.releases(), *remaining(ledger.plan, ledger.charges())]
        relation = claim.neighboring_relation
        for delta in _OTHER_DELTAS:
            bound = epsilon(releases, delta=delta, neighboring_relation=relation)
            pairs.append((bound.epsilon, delta))
    return tuple(pairs)


def _train(
    train: Train, model: nn.Module, dataset: Dataset[Any], *, progress: bool
) -> DPOptimizer:
    """Train *model*, and return the private optimizer that stepped it last.

    Its ledger has the charges of those before it, or it could not have stepped.
    """
    parameters = set(map(id, model.parameters()))
    optimizers: list[DPOptimizer] = []
    with progress_bars(shown=progress) as bars:
        bar = bars.begin("one run")

        def look(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            stepped = set(map(id, parameters_of(optimizer)))
            if isinstance(optimizer, DPOptimizer) and stepped & parameters:
                optimizers[:] = [optimizer]
                bar.show(optimizer.ledger.steps, optimizer.plan.steps)

        with hooked(look), apart():
            train(model, dataset)
    if not optimizers:
        raise PrivacyError(
            "no DPOptimizer stepped the model; make one from model.parameters() in the"
            " training function"
        )
    return optimizers[0]


@torch.no_grad()
def _losses(model: nn.Module, dataset: Any, positions: Sequence[int]) -> Floats:
    """Return the loss of every canary, as the model has it in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        parts: list[Tensor] = [
            model(default_collate([dataset[p] for p in positions[i : i + _BATCH]]))
            for i in range(0, len(positions), _BATCH)
        ]
    finally:
        model.train(was_training)
    losses_M: Floats = torch.cat(parts).double().cpu().numpy()
    return losses_M


@final
@dataclass(frozen=True, slots=True)
class _Guesses:
    """How many of so many guesses were right, for each score and share of canaries."""

    num_canaries: int
    counts: tuple[tuple[int, int], ...]  # Of guesses, and of right ones.

    @classmethod
    def of(cls, scores: Sequence[Floats], included_M: Bools) -> "_Guesses":
        """Guess the highest scores to be in and the lowest to be out.

        Ties are broken at random, or an order of the records would be guessed.
        """
        M = len(included_M)
        counts = []
        for scores_M in scores:
            keys_M = -np.nan_to_num(scores_M, nan=0.0)
            order = np.lexsort((np.random.default_rng().random(M), keys_M))
            for share in _SHARES_GUESSED:
                # Example: of 1000 canaries a share of 0.1 guesses the 50 highest scores
                # to be in and the 50 lowest to be out: 100 guesses, of which 50 are
                # right by chance.
                half = max(1, int(share * M / 2))
                right = int(included_M[order[:half]].sum())
                right += int((~included_M[order[M - half :]]).sum())
                counts.append((2 * half, right))
        return cls(M, tuple(counts))

    @property
    def words(self) -> str:
        """The number of right guesses, for people."""
        listed = ", ".join(f"{right} of {guessed}" for guessed, right in self.counts)
        return f"right guesses: {listed}"

    def p_value(self, pairs: Pairs) -> float:
        """Return how likely so many right guesses are at most, if all of *pairs* hold."""
        least = min(
            min(
                largest_permitted(
                    ByPairs(pairs),
                    num_coins=self.num_canaries,
                    num_guesses=r,
                    num_right=v,
                ),
                *(self._by_one_pair(r, v, *pair) for pair in pairs),
            )
            for r, v in self.counts
        )
        return min(1.0, least * len(self.counts))

    def _by_one_pair(self, r: int, v: int, claimed: float, delta: float) -> float:
        """Return it by randomised response, the worst of one pair (2305.08846)."""
        from scipy.stats import binom

        right = 1 / (1 + math.exp(-claimed))
        masses = binom.pmf(np.arange(v - 1, -1, -1), r, right)  # Of v - 1, v - 2, ...
        averages = np.cumsum(masses) / np.arange(1, v + 1)
        of_delta = 2 * self.num_canaries * delta * float(averages.max(initial=0.0))
        return min(1.0, float(binom.sf(v - 1, r, right)) + of_delta)

    def largest_refuted(self, delta: float, alpha: float) -> float:
        """Return the largest epsilon that is refuted with an error of *alpha*."""
        each = alpha / len(self.counts)

        def is_refuted(claimed: float) -> bool:
            return not self._permits(ByPairs(((claimed, delta),)), each) or any(
                self._by_one_pair(r, v, claimed, delta) <= each for r, v in self.counts
            )

        return _largest(is_refuted)

    def largest_refuted_gaussian(self, delta: float, alpha: float) -> float:
        """Return the epsilon at *delta* of the largest Gaussian that is refuted."""
        each = alpha / len(self.counts)
        mu = _largest(lambda mu: not self._permits(Gaussian(mu), each))
        if mu == 0:
            return 0.0
        noise = Release(sampling_probability=1.0, noise_multiplier=1 / mu, count=1)
        return epsilon(
            [noise], delta=delta, neighboring_relation="add_or_remove_one"
        ).epsilon

    def _permits(self, trade_off: TradeOff, probability: float) -> bool:
        """Whether each of the attacks may be so successful with a *probability*."""
        return all(
            permits(
                trade_off,
                probability,
                num_coins=self.num_canaries,
                num_guesses=r,
                num_right=v,
            )
            for r, v in self.counts
        )


def _largest(is_refuted: Callable[[float], bool]) -> float:
    """Return the largest number up to 50 that is refuted, as all smaller ones are."""
    low, high = 0.0, _LARGEST_EPSILON  # `low` is refuted, or none is.
    if not is_refuted(low):
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
