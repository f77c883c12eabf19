"""Find the number of a plan that is left out.

Nothing of this need be believed: whatever is found, the plan computes what it costs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dp._typing import NeighboringRelation
from dp.accounting import Query, Truncation
from dp.accounting._renyi import check_filter
from dp.calibration import RiskTarget
from dp.calibration._epochs import numbers_of_epochs
from dp.calibration._search import RenyiOrder
from dp.comparison import (
    Bands,
    Mechanism,
    check_queries,
    choose,
    complete,
    order_for,
    scheme_of,
    truncation_of,
)
from dp.exceptions import tells_near_names
from dp.plan._plan import PrivacyPlan
from dp.sampling._units import ONE_EXAMPLE
from dp.schedule import Schedule


__all__ = ("plan_for",)


@tells_near_names
def plan_for(
    *,
    target_epsilon: float | None = None,
    target_delta: float,
    max_grad_norm: float | Schedule,
    expected_batch_size: float | None = None,
    steps: int | None = None,
    sampling_probability: float | Literal["largest"] | None = None,
    noise_multiplier: float | Schedule | None = None,
    max_batch_size: int | None = None,
    dataset_size: int | None = None,
    batch_size: int | None = None,
    epochs: float | None = None,
    neighboring_relation: NeighboringRelation = "add_or_remove_one",
    unit_of_privacy: str = ONE_EXAMPLE,
    group_size: int = 1,
    renyi_order: RenyiOrder = None,
    mechanism: Mechanism = "poisson",
    target_risk: RiskTarget | None = None,
    bands: Bands = "auto",
    queries: Sequence[Query] = (),
) -> PrivacyPlan:
    """Return the plan that makes the most of a target epsilon, or of a target risk.

    One number is left out and found: ``noise_multiplier`` (the least noise), ``steps``
    (the most), or ``sampling_probability="largest"``.

    Args:
        target_epsilon: The epsilon that all steps may cost at most; None with
            *target_risk*.
        target_delta: The delta it is for; well below one over the number of examples.
        max_grad_norm: L2 norm to which each example's gradient is clipped.
        expected_batch_size: What noisy sums are divided by; None with *batch_size*.
        steps: How many steps the run takes; None finds how many it may take.
        sampling_probability: Probability that an example is in a batch. None plans
            for one's own loader, which claims no amplification.
        noise_multiplier: Standard deviation of the noise over the clipping norm; None
            finds the least. A schedule, where *steps* is given too, is a shape: it is
            multiplied by the least factor.
        max_batch_size: The most examples of a batch; see
            :class:`~dp.sampling.TruncatedPoissonSampling`. None for no such limit.
        dataset_size: The number of examples, or one near it, which is public then; with
            *max_batch_size* or *batch_size* only.
        batch_size: How many examples a batch has on average, from which the expected
            batch size and the sampling probability follow.
        epochs: How often an example is drawn on average, with *batch_size*, from which
            the steps follow.
        neighboring_relation: What two neighbouring datasets are.
        unit_of_privacy: Whose data one example holds, in words.
        group_size: How many units the target protects at once, such as the most
            examples that a person has.
        renyi_order: See :class:`PrivacyPlan`. ``"best"`` fixes the order at which the
            plan costs least, as most runs under a filter want it.
        mechanism: How batches are drawn at *sampling_probability*: ``"poisson"``;
            ``"allocation"``, by :class:`~dp.sampling.RandomAllocation` in passes of
            ``1 / sampling_probability`` steps; ``"correlated"``, with
            :class:`~dp.BandedNoise` and :class:`~dp.sampling.CyclicPoisson` sampling; ``"best"``,
            whichever of the three leaves the least error in prefix sums at the target,
            for which noise is left out; or ``"disjoint"``,
            by :class:`~dp.sampling.DisjointBatches` in passes of as many steps: by
            position, in batches of equal size, where the relation permits that. What
            was compared is in the plan, and so in its certificates.
        target_risk: What an attacker may find out at most, in place of an epsilon, such
            as ``RiskTarget(advantage=0.1)``. The plan's steps alone bound the run then.
        bands: How many bands correlated noise has. ``"auto"`` takes the number with the
            least error in prefix sums, or independent noise where that has less. Each
            band beyond the first takes memory for two copies of the parameters; 1 keeps
            ``"best"`` from comparing it.
        queries: What is asked about the same data, which the target pays for, too.

    Raises:
        ValueError: If a number is out of range, if not exactly one is left out, if
            nothing keeps the target, or if passes or correlated noise are asked for
            where no bound is proven for them.

    Guarantees:
        * ``plan_for(...).guarantee().epsilon <= target_epsilon``, or
          ``target_risk.is_kept_by(plan_for(...).risk())``.
    """
    queries = check_queries(queries, renyi_order=renyi_order)
    sampling_probability, steps, expected_batch_size = numbers_of_epochs(
        epochs=epochs,
        batch_size=batch_size,
        dataset_size=dataset_size,
        sampling_probability=sampling_probability,
        steps=steps,
        expected_batch_size=expected_batch_size,
    )
    if batch_size is not None and max_batch_size is None:
        dataset_size = None  # No batch is truncated, so nothing else depends on it.
    truncation = truncation_of(sampling_probability, max_batch_size, dataset_size)
    claims: dict[str, Any] = {
        "target_epsilon": target_epsilon,
        "target_delta": target_delta,
        "neighboring_relation": neighboring_relation,
        "group_size": group_size,
    }
    found = _find(
        _target(claims, target_risk, truncation, renyi_order, queries),
        mechanism,
        sampling_probability=sampling_probability,
        steps=steps,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        bands=bands,
    )
    return PrivacyPlan(
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        unit_of_privacy=unit_of_privacy,
        queries=queries,
        **claims,
        **found,
    )


def _target(
    claims: Mapping[str, Any],
    risk: RiskTarget | None,
    truncation: Truncation | None,
    renyi_order: RenyiOrder,
    queries: Sequence[Query],
) -> dict[str, Any]:
    """Return what the numbers that are found have to keep."""
    if renyi_order is not None:
        check_filter(
            2.0 if renyi_order == "best" else renyi_order,
            claims["neighboring_relation"],
            truncated=truncation is not None,
            group_size=claims["group_size"],
        )
    target = {
        **claims,
        "target_risk": risk,
        "truncation": truncation,
        "renyi_order": renyi_order,
    }
    if queries:
        target["other_releases"] = tuple(query.release for query in queries)
    return target


def _find(
    target: Mapping[str, Any],
    mechanism: Mechanism,
    *,
    sampling_probability: float | Literal["largest"] | None,
    steps: int | None,
    noise_multiplier: float | Schedule | None,
    max_grad_norm: float | Schedule,
    bands: Bands,
) -> dict[str, Any]:
    """Return how batches are drawn and noise is made, and the number that is left out."""
    choice = choose(
        mechanism,
        target,
        sampling_probability=sampling_probability,
        steps=steps,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        bands=bands,
    )
    sigma, steps, q = complete(
        target, noise_multiplier, steps, sampling_probability, choice
    )
    order, truncation = target["renyi_order"], target["truncation"]
    drawn = None if sampling_probability is None else q
    return {
        "sampling": choice.scheme or scheme_of(drawn, truncation),
        "noise_multiplier": sigma,
        "steps": steps,
        "renyi_order": order_for(target, q, sigma, steps) if order == "best" else order,
        "correlation": choice.correlation,
        "compared": choice.compared,
    }
