"""Run candidates a random number of times, and keep the best.

Nothing here tells how many runs there were, not even a progress bar.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar, final

from dp._ranks import rank_and_size
from dp.accounting._selection import NegativeBinomialRuns, NumRuns
from dp.certificate._json import sha256
from dp.certificate._tuning import TuningCertificate, check_tunable
from dp.exceptions import UnsupportedOperationError
from dp.plan import PrivacyPlan
from dp.selection._draw import draw_candidates, draw_num_runs
from dp.selection._progress_file import ProgressFile
from dp.selection._watched import watched


__all__ = ("Best", "Tuned", "tune")

C = TypeVar("C")
R = TypeVar("R")

_TEN: Final = NegativeBinomialRuns(mean=10.0)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Best(Generic[C, R]):
    """The best run: all that is published.

    Attributes:
        candidate: Its candidate.
        score: Its score.
        result: What it returned with the score.
    """

    candidate: C
    score: float
    result: R


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(Generic[C, R]):
    """What tuning came to.

    Attributes:
        best: The best run; None if no run was drawn, which a Poisson number may be.
        certificate: What the whole procedure cost.
    """

    best: Best[C, R] | None
    certificate: TuningCertificate


def tune(
    train: Callable[[C], tuple[float, R]],
    candidates: Sequence[C],
    *,
    plan: PrivacyPlan | Callable[[C], PrivacyPlan],
    file: Path | str,
    runs: NumRuns = _TEN,
    public_scores: str | None = None,
) -> Tuned[C, R]:
    """Train with candidates drawn at random, and return the best run and its price.

    A grid search that publishes its best run costs as much as publishing all of them.
    With a random, secret number of runs it costs little more than one, whatever the number
    of candidates is: each run takes one of them at random.

    Called again with the same *file* after an interruption, it goes on. The file is
    secret, and is removed at the end.

    Example::

        plan = dp.plan_for(..., queries=[dp.Query(name="accuracy", noise_multiplier=30)])

        def train(learning_rate):
            optimizer = ...  # dp.DPOptimizer(..., plan=plan), trained on a new model
            asked = dp.query.Queries(optimizer)
            answer = asked.mean("accuracy", correct_N, low=0, high=1, num_units=5000)
            return answer.value, model.state_dict()

        tuned = dp.tune(train, [0.1, 0.3, 1.0], plan=plan, file="tuning.secret")

    Guarantees:
        * The number of runs has the law *runs*, from coins of the operating system, and
          is drawn once, also if tuning is interrupted.
        * Each run charged one ledger, of its candidate's plan, and no other; what is not
          so raises, and the file stays.
        * No run began with weights that another one had left, interrupted or not.
        * Of several processes that go on with one file, the last one alone returns.
        * Nothing is printed or logged here.

    Args:
        train: Trains anew with a candidate; returns its score, of which the largest is
            best, and what to publish with it. Nothing else that it computes may be kept,
            printed or looked at.
        candidates: Configurations, in a fixed order: anything with a ``repr`` of its own.
        plan: What each run may release; a function returns that of a candidate, and the
            bound is then that of the worst.
        file: Where progress is kept. Only its owner may read it.
        runs: The law of the number of runs: 10 on average, unless stated.
        public_scores: If scores are computed without private data: from what, in words,
            for the certificate. None if they are answers of the plan's queries, as
            :meth:`dp.query.Queries.mean` gives them: a score on private data without
            noise is covered by nothing.

    Raises:
        ValueError: If there is no candidate, if no bound is known for a plan, or if plans
            differ in their delta, relation or unit.
        PrivacyError: If a run charged something else than its plan, or nothing, if its
            score is neither an answer nor public, or if it began where another ended.
        LedgerError: If *file* is of another procedure, or if another process went on
            with it meanwhile.
        UnsupportedOperationError: If there are several ranks.

    References:
        Papernot and Steinke, "Hyperparameter Tuning with Renyi Differential Privacy",
        2022, Algorithm 1 and Theorems 2 and 6. https://arxiv.org/abs/2110.03620
    """
    plans = _plans(candidates, plan)
    _check_scores(plans, public_scores)
    certificate = TuningCertificate.of(plans, runs, public_scores=public_scores)
    progress = ProgressFile.begun(
        Path(file),
        about=_about(candidates, certificate),
        draw=lambda: draw_candidates(draw_num_runs(runs), len(candidates)),
    )
    for index in progress.drawn[len(progress.scores) :]:
        with watched(progress.left) as run:
            score, result = train(candidates[index])
        run.check(plans[index], has_public_scores=public_scores is not None)
        progress.add(_checked_score(score), result, run.left())
    progress.check_taker()
    best: Best[C, R] | None = None
    if progress.best is not None:
        best = Best(
            candidate=candidates[progress.drawn[progress.best]],
            score=progress.scores[progress.best],
            result=progress.result(),
        )
    tuned = Tuned(best=best, certificate=certificate)
    progress.remove()
    return tuned


def _plans(
    candidates: Sequence[C], plan: PrivacyPlan | Callable[[C], PrivacyPlan]
) -> list[PrivacyPlan]:
    """Return the plan of each candidate.

    Raises:
        ValueError: If there is no candidate, or if no bound is known for a plan.
        UnsupportedOperationError: If there are several ranks.
    """
    _, num_ranks = rank_and_size()
    if num_ranks > 1:
        raise UnsupportedOperationError(
            f"tune was called on one of {num_ranks} ranks, each of which would draw a"
            " number of runs of its own; tune in one process"
        )
    if not candidates:
        raise ValueError("candidates must have at least one entry, got none")
    plans = [
        plan if isinstance(plan, PrivacyPlan) else plan(candidate)
        for candidate in candidates
    ]
    for one in plans:
        check_tunable(one)
    return plans


def _check_scores(plans: Sequence[PrivacyPlan], public_scores: str | None) -> None:
    """Raise unless scores are answers, or from public data.

    Raises:
        ValueError: If neither is said.
    """
    if public_scores is None and not all(plan.queries for plan in plans):
        raise ValueError(
            "a score needs noise of its own, or public data: plan with"
            " queries=[dp.Query(...)] and return an answer, or say what public data"
            " scores are from, public_scores='...'; a validation score on private data"
            " without noise is covered by no guarantee"
        )
    if public_scores is not None and not public_scores.strip(" ."):
        raise ValueError(
            "public_scores must say what public data scores are from, got"
            f" {public_scores!r}: the certificate prints it"
        )


def _about(candidates: Sequence[object], certificate: TuningCertificate) -> str:
    """Return a hash of what is tuned."""
    return sha256([*map(repr, candidates), certificate.to_json()])


def _checked_score(score: float) -> float:
    """Return a score that can be compared; what is no number is the worst.

    Raises:
        TypeError: If it is of another type.
    """
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise TypeError(
            f"train must return a number as its score, got a {type(score).__name__};"
            " return (answer.value, result)"
        )
    return -math.inf if math.isnan(score) else float(score)
