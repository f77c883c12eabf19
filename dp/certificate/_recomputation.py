"""Compose what was charged once more, from the charges alone.

The epsilon of a certificate comes a long way: a charge becomes a release, equal ones are
counted together, too many of them are taken for larger ones, and the losses of this
package are composed. Here nothing of that is used. Each charge becomes an event of
``dp_accounting`` by its own numbers, whose accountants compose all of them, and what is
stated must not be below what they find.

Sampling in passes and rounds, groups of units, and noise under a Renyi filter have
theorems of their own, which ``dp_accounting`` does not know. Such runs are left to
:mod:`dp.accounting`.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from dp._typing import NeighboringRelation
from dp.accounting import Release
from dp.accounting._quiet import without_advice
from dp.certificate._numbers import Numbers
from dp.certificate._run import CertifiedRun
from dp.exceptions import PrivacyError
from dp.ledger import Charge, Meter


if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
    from dp_accounting.privacy_accountant import PrivacyAccountant

__all__ = ("check_metered", "check_recomputed", "is_recomputed")

TOLERANCE: Final = 1e-6
"""Relative difference up to which two epsilons count as equal but for rounding."""
LARGEST: Final = 400.0
"""Epsilons beyond this promise nothing, and are composed of what costs more."""
_ANY_WIDTH: Final = 1e-4  # Of buckets, where none were needed.

# Sampling probability, noise multiplier, and sizes of a truncated batch and its dataset.
_Kind = tuple[float, float, tuple[int, int] | None]


def is_recomputed(runs: Sequence[CertifiedRun], group_size: int) -> bool:
    """Whether ``dp_accounting`` knows all that the runs claim."""
    return group_size == 1 and not any(
        run.plan.renyi_order is not None
        or any(charge.steps_per_pass or charge.bands for charge in run.charges)
        or any(release.steps_per_charge > 1 for release in run.remaining)
        for run in runs
    )


def check_metered(run: CertifiedRun, meter: Meter) -> None:
    """Raise if a run lacks charges of releases that *meter* counted.

    Raises:
        PrivacyError: If epsilon would be stated of fewer.
    """
    if not run.has_failed and meter.misses(run.segments, failure=run.failure):
        raise PrivacyError(
            f"the ledger has {run.steps} charges, and they do not cover the releases"
            " that were counted where noise was added: nothing is certified. Please"
            " report it"
        )


def check_recomputed(
    runs: Sequence[CertifiedRun],
    numbers: Numbers,
    *,
    delta: float,
    relation: NeighboringRelation,
) -> None:
    """Compose the charges of *runs*, and what remained of their plans, once more.

    One kind of charge takes about a second; what was composed once is remembered.

    Args:
        runs: Runs of which :func:`is_recomputed`.
        numbers: What is to be stated of them.
        delta: The delta of the statement.
        relation: What neighbouring datasets are.

    Raises:
        PrivacyError: If the epsilon to be stated is more than a millionth below.
    """
    if any(run.has_failed for run in runs) or numbers.epsilon > LARGEST:
        return  # Nothing is promised.
    counts: Counter[_Kind] = Counter()
    for run in runs:
        for charge in run.charges:
            counts[_kind_of(charge)] += charge.count
        for release in (*run.remaining, *run.plan.query_releases):
            counts[_kind(release)] += release.count
    interval = numbers.intervals.get("epsilon")
    least = _composed(tuple(sorted(counts.items())), delta, relation, interval)
    # NaN is no agreement.
    if not numbers.epsilon >= least * (1 - TOLERANCE):
        raise PrivacyError(
            f"epsilon is {numbers.epsilon!r} by the accounting of this package, but"
            f" {least!r} by dp_accounting's, composed of {dict(counts)!r} at delta"
            f" {delta!r} and {relation!r}: nothing is certified. Please report it, with"
            " the version of dp-accounting"
        )


def _kind(release: Release | Charge) -> _Kind:
    cut = release.truncation
    sizes = None if cut is None else (cut.max_batch_size, cut.dataset_size)
    return release.sampling_probability, release.noise_multiplier, sizes


def _kind_of(charge: Charge) -> _Kind:
    """Return what a charge costs: what was planned, where more noise was added."""
    used_q, used_sigma, sizes = _kind(charge)
    q = max(used_q, charge.planned_sampling_probability or used_q)
    sigma = min(used_sigma, charge.planned_noise_multiplier or used_sigma)
    return q, sigma, sizes


@lru_cache(maxsize=256)
def _composed(
    counts: tuple[tuple[_Kind, int], ...],
    delta: float,
    relation: NeighboringRelation,
    interval: float | None,
) -> float:
    """Return the least epsilon that ``dp_accounting`` finds of some releases."""
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
    from dp_accounting.privacy_accountant import NeighboringRelation as Neighbors
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    if not counts:
        return 0.0
    if any(sigma == 0 for (_, sigma, _), _ in counts):
        return float("inf")
    neighbors = {
        "add_or_remove_one": Neighbors.ADD_OR_REMOVE_ONE,
        "replace_one": Neighbors.REPLACE_ONE,
        "zero_out": Neighbors.REPLACE_SPECIAL,
    }[relation]
    accountants: list[PrivacyAccountant] = [
        PLDAccountant(neighbors, interval or _ANY_WIDTH)
    ]
    # Divergences are smaller where noise is very large. The library has none of a
    # truncated batch, and none that holds where an example is replaced.
    if relation != "replace_one" and not any(cut for (_, _, cut), _ in counts):
        accountants.append(RdpAccountant(neighboring_relation=neighbors))
    with without_advice():
        for accountant in accountants:
            for kind, count in counts:
                accountant.compose(_event(*kind), count)
        return min(float(a.get_epsilon(delta)) for a in accountants)


def _event(q: float, sigma: float, cut: tuple[int, int] | None) -> "DpEvent":
    from dp_accounting import dp_event

    if cut is not None:
        return dp_event.TruncatedSubsampledGaussianDpEvent(
            dataset_size=cut[1],
            sampling_probability=q,
            truncated_batch_size=cut[0],
            noise_multiplier=sigma,
        )
    gaussian = dp_event.GaussianDpEvent(sigma)
    return gaussian if q == 1 else dp_event.PoissonSampledDpEvent(q, gaussian)
