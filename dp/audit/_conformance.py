"""Is what a run does what its ledger says?

Shapes: ``T`` releases, ``M`` records that might be in the data.
"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from dp import _checks
from dp._progress import progress_bars
from dp._reports import Finding
from dp.audit._allocation import about_allocation
from dp.audit._draws import Draws
from dp.audit._observation import Observation, observe_training
from dp.audit._report import AuditReport
from dp.audit._rounds import about_rounds
from dp.audit._rows import about_rows
from dp.audit._statistics import (
    Floats,
    correlation_p,
    finding,
    mean_p,
    neighbours_p,
    normal_p,
    shape_p,
    variance_p,
)
from dp.audit._subject import Bools, Train, sample_membership
from dp.clipping import QuantileClipping, SparseClipping


__all__ = ("conformance",)

_FEWEST: Final = 1000
# Clipped norms stay below C by rounding margins; this much is no error.
_CLIP_MARGIN: Final = 1e-4


def conformance(
    train: Train, *, num_records: int = 20_000, progress: bool = False
) -> AuditReport:
    """Test a training function by the distribution of what it releases.

    It is run twice, under the same seeds, on records that the auditor knows; the
    second run loads a checkpoint of the first, as after a crash.

    Guarantees:
        * Each finding accuses a right run with probability 1e-9 at most; there are at
          most nineteen.
        * At 20 000 records and 40 steps, a standard deviation that is off by 0.8 %, a
          clipping norm or a sampling probability that are off by 4 %, and noise or
          draws that repeat are found with probability 0.999. So is a shuffled loader,
          also where the plan says that it draws by random allocation. Groups of cyclic
          Poisson sampling that are cut from a permutation are not: replay finds them.

    Args:
        train: What is audited, called as ``train(model, dataset)``.
        num_records: How many records there might be; about half are in the data.
        progress: Whether to show a progress bar.

    Raises:
        PrivacyError: If the training function makes no ``DPOptimizer``.
        ValueError: If its plan has no noise, or *num_records* is below 1000.

    References:
        Tests of scale and independence as in NIST SP 800-22; what separates Poisson
        sampling from shuffling: Chua et al. 2024, https://arxiv.org/abs/2403.17673.
    """
    if _checks.count(num_records=num_records) < _FEWEST:
        raise ValueError(f"num_records must be >= {_FEWEST}, got {num_records!r}")
    included_M = sample_membership(num_records)
    with progress_bars(shown=progress) as bars:
        first, checkpoint = observe_training(
            train, included_M, bar=bars.begin("first run")
        )
        second, _ = observe_training(
            train, included_M, bar=bars.begin("resumed run"), resumed=checkpoint
        )
    is_sparse = isinstance(first.optimizer.mechanism.clipping, SparseClipping)
    findings = [
        *(about_rows(first) if is_sparse else _about_releases(first, second)),
        *_about_sampling(first, second, included_M),
        *_about_ledger(first, second),
    ]
    return AuditReport(name="conformance", findings=tuple(findings))


def _about_releases(first: Observation, second: Observation) -> Iterator[Finding]:
    yield from _about_noise(first, second)
    yield from _about_clipping(first)
    yield from _about_counts(first)


def _about_noise(first: Observation, second: Observation) -> Iterator[Finding]:
    noise_TM, again_TM = _noise(first), _noise(second)
    stddev = math.sqrt(float(np.square(noise_TM).mean()))
    yield finding(
        "noise: scale",
        variance_p(noise_TM),
        f"{stddev:.4f} of the standard deviation that was charged",
    )
    yield finding(
        "noise: mean", mean_p(noise_TM), f"{float(noise_TM.mean()):+.5f} of it"
    )
    fourth = float(np.square(np.square(noise_TM)).mean())
    yield finding(
        "noise: shape", shape_p(noise_TM), f"fourth moment {fourth:.3f}, 3 if normal"
    )
    T = len(noise_TM)
    over_steps = [variance_p(noise_TM.sum(axis=0) / math.sqrt(T))]
    if T > 1:
        over_steps.append(neighbours_p(noise_TM))
    yield finding("noise: independent over steps", *over_steps)
    # Noise of both parameters where no record was drawn.
    a_TM, b_TM = (part / first.noise_multipliers() for part in first.parts())
    not_drawn_TM = first.contributions() == 0
    yield finding(
        "noise: independent over parameters",
        correlation_p(a_TM[not_drawn_TM], b_TM[not_drawn_TM]),
        neighbours_p(noise_TM.T),
    )
    both = min(len(noise_TM), len(again_TM))
    yield finding(
        "noise: independent over restarts",
        correlation_p(noise_TM[:both], again_TM[:both]),
    )


def _noise(observation: Observation) -> Floats:
    """Return [T, M]: standard normals, if the noise is what was charged."""
    return observation.orthogonal_noise() / observation.noise_multipliers()


def _about_clipping(observation: Observation) -> Iterator[Finding]:
    share_TM, along_TM = observation.contributions(), observation.signal()
    drawn_TM = share_TM != 0
    if not drawn_TM.any():
        return
    stddev = np.broadcast_to(observation.noise_multipliers(), along_TM.shape)
    squares = float(np.square(share_TM).sum())
    mean = float((along_TM * share_TM).sum()) / squares  # By least squares.
    error = math.sqrt(float(np.square(stddev * share_TM).sum())) / squares
    beyond = max(0.0, abs(mean - 1) - _CLIP_MARGIN)
    yield finding(
        "clipping: norm of a contribution",
        normal_p(beyond / error),
        f"{mean:.4f} of the clipping norm that was charged",
    )
    rest = along_TM[~drawn_TM] / stddev[~drawn_TM]
    yield finding(
        "clipping: no contribution of records not drawn", mean_p(rest), variance_p(rest)
    )


def _about_counts(observation: Observation) -> Iterator[Finding]:
    """Test the noise on counts of norms within C, which the norms that follow show."""
    rule = observation.optimizer.mechanism.clipping
    if not isinstance(rule, QuantileClipping) or observation.num_releases == 1:
        return
    norms_T = np.array([charge.max_grad_norm for charge in observation.charges])
    # C became C exp(-learning_rate (share - quantile)), and every record is beyond C.
    moves = np.log(norms_T[1:] / norms_T[:-1]) / rule.learning_rate
    size = observation.optimizer.plan.expected_batch_size
    centred = -observation.drawn().sum(axis=1)[:-1] / 2
    noise = (rule.quantile - moves - 1 / 2) * size - centred
    noises = [charge.noise_beside_count for charge in observation.charges[:-1]]
    stddev = np.array([split.count_stddev for split in noises if split is not None])
    scale = math.sqrt(float(np.square(noise / stddev).mean()))
    yield finding(
        "count: noise",
        variance_p(noise / stddev),
        mean_p(noise / stddev),
        f"{scale:.4f} of the standard deviation that was charged",
    )


def _about_sampling(
    first: Observation, second: Observation, included_M: Bools
) -> Iterator[Finding]:
    if first.steps_per_pass is not None:
        yield from about_allocation(first, second, included_M)
        return
    if first.bands is not None:
        yield from about_rounds(first, second, included_M)
        return
    q_T = first.sampling_probabilities()[:, 0]
    if (q_T == 1).any() or (q_T != q_T[0]).any():
        return  # Nothing is claimed of the draws, or not one thing.
    q = float(q_T[0])
    taken, again = first.drawn()[:, included_M], second.drawn()[:, included_M]
    draws = Draws(taken, q)
    yield draws.rate()
    yield draws.sizes()
    yield draws.every_record()
    yield draws.in_a_row("sampling: independent over steps", taken)
    yield draws.in_a_row("sampling: independent over records", taken.T)
    both = min(len(taken), len(again))
    pairs = np.stack((taken[:both].ravel(), again[:both].ravel()))
    yield draws.in_a_row("sampling: independent over restarts", pairs)


def _about_ledger(first: Observation, second: Observation) -> Iterator[Finding]:
    charged = first.optimizer.ledger.steps
    yield Finding(
        claim="ledger: every release is charged",
        holds=charged == first.num_releases,
        detail=f"{first.num_releases} releases, {charged} charges",
    )
    total = second.optimizer.ledger.steps
    allowed = second.optimizer.plan.steps
    yield Finding(
        claim="ledger: a resumed run adds up",
        holds=second.num_releases < total <= allowed,
        detail=f"{total} charges of {allowed} planned, after the release of a run"
        f" before and {second.num_releases} of its own",
    )
