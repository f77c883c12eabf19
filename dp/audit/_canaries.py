r"""Attack a run with canaries: how well can the best attacker tell them apart?

Shapes: ``T`` releases, ``M`` canaries, ``D`` points of the claimed trade-off.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import numpy as np

from dp import _checks
from dp._progress import progress_bars
from dp._reports import Finding
from dp.accounting import epsilon
from dp.audit._attack_report import AttackReport
from dp.audit._observation import Observation, check_every_row, observe_training
from dp.audit._statistics import FALSE_ALARM, Floats, lower_limit, upper_limit
from dp.audit._subject import Bools, Train, sample_membership


__all__ = ("CanaryReport", "canaries")

_FEWEST: Final = 1000
_DELTAS: Final = (0.01, 0.1, 0.3)
_NUM_THRESHOLDS: Final = 100


@final
@dataclass(frozen=True, slots=True)
class _Claim:
    """The (epsilon, delta) pairs that hold of a run, [D]: the trade-off it allows."""

    epsilons: Floats
    deltas: Floats

    def most(self, false_positive_rate: float) -> float:
        """Return the largest true-positive rate that any attacker may reach."""
        a = np.exp(self.epsilons) * false_positive_rate + self.deltas
        b = 1 - (1 - false_positive_rate - self.deltas) * np.exp(-self.epsilons)
        return min(1.0, float(a.min()), float(b.min()))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryReport(AttackReport):
    """The success of the best attacker, who sees every release."""

    _roc: tuple[Sequence[float], Sequence[float]] = field(repr=False)
    _claim: _Claim = field(repr=False)

    @property
    def name(self) -> str:
        """What the attack is called."""
        return "canaries"

    def draw(self, path: Path | str) -> None:
        """Draw the attack's ROC curve and what the claim allows, as a picture."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        rates = np.geomspace(1e-5, 1, 200)
        allowed = [self._claim.most(float(rate)) for rate in rates]
        axes.fill_between(rates, allowed, 1, color="tab:red", alpha=0.15, lw=0)
        axes.plot(rates, allowed, color="tab:red", label="the most that is claimed")
        axes.plot(*self._roc, color="tab:blue", label="the attack")
        axes.plot(rates, rates, ":", color="grey", label="guessing")
        axes.set(
            xscale="log",
            xlim=(1e-4, 1),
            ylim=(0, 1),
            xlabel="false positives: share of the absent taken for present",
            ylabel="true positives: share of the present found",
            title=f"empirical ε ≥ {self.epsilon_empirical:.2f}, proven ε ≤"
            f" {self.epsilon_proven:.2f}",
        )
        axes.legend(loc="lower right")
        figure.savefig(Path(path), dpi=150)


def canaries(
    train: Train,
    *,
    num_canaries: int = 20_000,
    confidence: float = 0.95,
    progress: bool = False,
) -> CanaryReport:
    r"""Attack a training function, and compare what it leaks with its claim.

    Every record is a canary: its gradient, once clipped, has the whole clipping norm,
    along two coordinates that are its own. A fair coin decides whether it is in the
    data. The attacker sees all releases and guesses the coins by the exact
    log-likelihood ratio of the claimed mechanism (Neyman and Pearson: no attack is
    stronger),

    .. math:: \sum_t \log\bigl(1 - q_t + q_t e^{(x_t - 1/2) / \sigma_t^2}\bigr),

    with :math:`x_t` the release in units of the clipping norm; by random allocation, of
    the mean over the steps of a pass, and by cyclic Poisson sampling, over the groups.
    The coordinates are
    independent experiments, so the rates at which the attack errs are binomial. One
    half of the canaries chooses a threshold, the other half is counted.

    Where a claim is (epsilon, delta) for several pairs, the true-positive rate is at
    most ``delta`` more than ``exp(epsilon)`` times the other rate, for each. The claim is refuted if the
    Clopper-Pearson limits of both rates, at 1e-9 together, lie beyond that.

    Guarantees:
        * At the defaults and 40 steps of q = 0.1 and sigma = 1, half the noise, 1.5
          times the clipping norm, and twice the sampling probability are refuted with
          probability 0.999 and more. A wrong scale of 10 % is not: see
          :func:`dp.audit.conformance`.

    Args:
        train: What is audited, called as ``train(model, dataset)``.
        num_canaries: How many records there might be; about half are in the data.
        confidence: Of the lower bound on epsilon.
        progress: Whether to show a progress bar.

    Raises:
        PrivacyError: If the training function makes no ``DPOptimizer``.
        ValueError: If its plan has no noise, or a number is out of range.

    References:
        Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023,
        https://arxiv.org/abs/2305.08846, on one run with many canaries.
        Nasr et al., "Tight Auditing of Differentially Private Machine Learning", 2023,
        https://arxiv.org/abs/2302.07956, section 4, on auditing a whole trade-off.
        Dong, Roth, Su, "Gaussian Differential Privacy", 2022, definition 2.1.
    """
    if _checks.count(num_canaries=num_canaries) < _FEWEST:
        raise ValueError(f"num_canaries must be >= {_FEWEST}, got {num_canaries!r}")
    _checks.open_unit(confidence=confidence)
    present_M = sample_membership(num_canaries)
    with progress_bars(shown=progress) as bars:
        run, _ = observe_training(train, present_M, bar=bars.begin("canaries"))
    check_every_row(run.optimizer)
    claim, spent = _claimed(run), run.optimizer.guarantee()
    attack = _Attack(_scores(run), present_M)

    def epsilon_of(low: float, high: float) -> float:
        return _epsilon(low, high, spent.delta)

    found = max(0.0, epsilon_of(*attack.limits(epsilon_of, alpha=1 - confidence)))
    low, high = attack.limits(lambda a, b: a - claim.most(b), alpha=FALSE_ALARM)
    return CanaryReport(
        epsilon_empirical=found,
        epsilon_proven=spent.epsilon,
        delta=spent.delta,
        confidence=confidence,
        num_canaries=num_canaries,
        findings=(_judged(low, high, claim.most(high)),),
        _roc=attack.roc(),
        _claim=claim,
    )


def _judged(true_positives: float, false_positives: float, allowed: float) -> Finding:
    """Return whether rates at least and at most so large are within the claim."""
    holds = true_positives <= allowed
    return Finding(
        claim="the attack stays within the claim",
        holds=holds,
        detail="no record is identified more often than the claim allows"
        if holds
        else f"it identifies more than {true_positives:.3f} of the records present at a"
        f" false-positive rate below {false_positives:.3f}; {allowed:.3f} is allowed",
    )


def _claimed(run: Observation) -> _Claim:
    releases = run.optimizer.ledger.releases()
    spent = run.optimizer.spent()
    # A canary is added or removed, which zeroing out one is as far as.
    pairs = [(spent.epsilon, spent.delta)]
    for delta in _DELTAS:
        bound = epsilon(releases, delta=delta, neighboring_relation="add_or_remove_one")
        pairs.append((bound.epsilon, delta))
    epsilons_D, deltas_D = np.array(pairs).T
    return _Claim(epsilons_D, deltas_D)


def _scores(run: Observation) -> Floats:
    """Return every canary's log-likelihood ratio of being present, under the claim."""
    q_T1, sigma_T1 = run.sampling_probabilities(), run.noise_multipliers()
    if run.bands is not None:
        return _scores_of_rounds(run, run.bands)
    exponent_TM = (run.signal() - 1 / 2) / sigma_T1**2
    if run.steps_per_pass is not None:
        return _scores_of_passes(run, exponent_TM, run.steps_per_pass)
    with np.errstate(divide="ignore"):  # log 0 is the log-likelihood of q = 1.
        ratios_TM = np.logaddexp(np.log1p(-q_T1), np.log(q_T1) + exponent_TM)
    scores_M: Floats = ratios_TM.sum(axis=0)
    return scores_M


def _scores_of_passes(
    run: Observation, exponent_TM: Floats, steps_per_pass: int
) -> Floats:
    """Return the same where a canary is in one step of each pass.

    Of a pass that is not complete, the steps that were not released say nothing.
    """
    scores_M = np.zeros(run.num_records)
    for rows in run.passes():
        unseen = steps_per_pass - len(rows)
        total_M = np.logaddexp.reduce(exponent_TM[rows], axis=0)
        if unseen:
            total_M = np.logaddexp(total_M, math.log(unseen))
        scores_M += total_M - math.log(steps_per_pass)
    return scores_M


def _scores_of_rounds(run: Observation, bands: int) -> Floats:
    """Return the same where a canary is in one of several groups, which take turns.

    What it adds to the noisy sum of a step, and of those after it that the noise is
    correlated with, are multiples of one vector, whose likelihood ratio is that of all
    of them together. The attacker averages over the group.
    """
    signal_TM, sigma_T1, before_T = (
        run.signal(),
        run.noise_multipliers(),
        run.steps_before(),
    )
    exponent_TM = np.zeros_like(signal_TM)
    for later, unit in enumerate(run.unit_coefficients()):
        rows = np.flatnonzero(before_T >= later)
        gain = (unit * signal_TM[rows] - unit**2 / 2) / sigma_T1[rows] ** 2
        exponent_TM[rows - later] += gain
    coin = _checks.cyclic_coin(float(run.sampling_probabilities()[0, 0]), bands)
    with np.errstate(divide="ignore"):
        ratios_TM = np.logaddexp(np.log1p(-coin), np.log(coin) + exponent_TM)
    scores_M = np.zeros(run.num_records)
    for turns in run.turns():
        of_groups = [ratios_TM[rows].sum(axis=0) for rows in turns]
        scores_M += np.logaddexp.reduce(of_groups, axis=0) - math.log(bands)
    return scores_M


def _epsilon(true_positives: float, false_positives: float, delta: float) -> float:
    """Return the epsilon that rates at least and at most so large imply."""
    present = (true_positives - delta, false_positives)
    absent = (1 - false_positives - delta, 1 - true_positives)
    return max(math.log(a / b) if 0 < b < a else 0.0 for a, b in (present, absent))


@final
class _Attack:
    """Guesses by threshold: one half of the canaries chooses it, one is counted."""

    def __init__(self, scores_M: Floats, present_M: Bools) -> None:
        chooses_M = sample_membership(len(scores_M))
        self._scores, self._present = scores_M, present_M
        self._chooses, self._counts = chooses_M, ~chooses_M
        self._thresholds = np.quantile(
            scores_M[chooses_M], np.linspace(0, 1, _NUM_THRESHOLDS, endpoint=False)
        )

    def limits(
        self, value: Callable[[float, float], float], *, alpha: float
    ) -> tuple[float, float]:
        """Return limits of both rates at the threshold that is worth most.

        Both hold together but with probability *alpha*.
        """
        best = max(
            self._thresholds,
            key=lambda t: value(*self._limits_at(t, self._chooses, alpha)),
        )
        return self._limits_at(float(best), self._counts, alpha)

    def _limits_at(
        self, threshold: float, among: Bools, alpha: float
    ) -> tuple[float, float]:
        guessed = self._scores > threshold
        present, absent = among & self._present, among & ~self._present
        return (
            lower_limit(
                int((guessed & present).sum()), int(present.sum()), alpha=alpha / 2
            ),
            upper_limit(
                int((guessed & absent).sum()), int(absent.sum()), alpha=alpha / 2
            ),
        )

    def roc(self) -> tuple[Sequence[float], Sequence[float]]:
        """Return false- and true-positive rates of all canaries, from few to many."""
        order = np.argsort(-self._scores)
        present = self._present[order]
        absent_rates = np.cumsum(~present) / max(1, int((~present).sum()))
        present_rates = np.cumsum(present) / max(1, int(present.sum()))
        return absent_rates.tolist(), present_rates.tolist()
