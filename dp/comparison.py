"""What a plan leaves to be found: one of its numbers, or the mechanism.

How several mechanisms compare is in :mod:`dp.calibration._mechanisms`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from dp import _checks
from dp._reports import shown
from dp._typing import NeighboringRelation
from dp.accounting import Query, Release, Truncation
from dp.accounting._renyi import best_order
from dp.calibration import (
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
)
from dp.calibration._bands import Bands
from dp.calibration._mechanisms import Choice, best_choice, correlated_choice
from dp.exceptions import did_you_mean
from dp.sampling import (
    CyclicPoisson,
    DisjointBatches,
    Passes,
    PoissonSampling,
    RandomAllocation,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp.schedule import Schedule, runs_of


__all__ = (
    "Bands",
    "Mechanism",
    "check_queries",
    "choose",
    "complete",
    "order_for",
    "scheme_of",
    "truncation_of",
)

Mechanism = Literal["poisson", "allocation", "disjoint", "correlated", "best"]


def choose(
    mechanism: Mechanism,
    target: Mapping[str, Any],
    *,
    sampling_probability: float | str | None,
    steps: int | None,
    noise_multiplier: float | Schedule | None,
    max_grad_norm: float | Schedule,
    bands: Bands = "auto",
) -> Choice:
    """Return how batches are drawn, and how noise is correlated.

    Args:
        mechanism: ``"poisson"``, ``"allocation"``, ``"disjoint"``, ``"correlated"``, or
            ``"best"`` for that of the others, but for ``"disjoint"``, which leaves the
            least error in prefix sums.
        target: The epsilon and delta that all steps may cost, the relation, and, if
            there are any, a truncation and the order of a Renyi filter.
        sampling_probability: Probability that an example is in a batch.
        steps: How many steps the run takes.
        noise_multiplier: The noise, if it is given.
        max_grad_norm: The clipping norm.
        bands: How many bands correlated noise has; ``"auto"`` compares several, and
            independent noise.

    Raises:
        ValueError: If *mechanism* is unknown, if no bound is proven for the one that is
            asked for, or if it is ``"correlated"`` or ``"best"`` and noise is not what
            is left out.
    """
    _check_mechanism(mechanism, bands)
    if mechanism == "poisson":
        return Choice()
    about = {**target, "sampling_probability": sampling_probability, "steps": steps}
    if mechanism in {"correlated", "best"}:
        _check_comparable(mechanism, sampling_probability, steps, noise_multiplier)
    if mechanism == "correlated":
        return correlated_choice(about, max_grad_norm, bands)
    make = _disjoint if mechanism == "disjoint" else _allocation
    scheme, obstacle = _passes(
        make,
        sampling_probability,
        steps,
        target,
        values={"noise_multiplier": noise_multiplier, "max_grad_norm": max_grad_norm},
    )
    if mechanism == "best":
        return best_choice(about, max_grad_norm, bands, scheme, obstacle)
    if scheme is None:
        raise ValueError(f"mechanism={mechanism!r} is not possible: {obstacle}")
    return Choice(scheme=scheme)


def _check_mechanism(mechanism: str, bands: Bands) -> None:
    if mechanism not in get_args(Mechanism):
        raise ValueError(
            f"mechanism must be one of {', '.join(map(repr, get_args(Mechanism)))}, got"
            f" {shown(mechanism)}{did_you_mean(mechanism, get_args(Mechanism))}"
        )
    if bands != "auto" and mechanism not in {"correlated", "best"}:
        raise ValueError(
            f"bands={shown(bands)} is for correlated noise: pass mechanism='correlated' or"
            f" 'best' with it, got {mechanism!r}"
        )


def _check_comparable(
    mechanism: str,
    sampling_probability: float | str | None,
    steps: int | None,
    noise_multiplier: float | Schedule | None,
) -> None:
    is_given = isinstance(sampling_probability, int | float) and steps is not None
    if not is_given or noise_multiplier is not None:
        raise ValueError(
            f"mechanism={mechanism!r} finds the noise for a sampling_probability and a"
            " number of steps: give these two, and no noise_multiplier; got"
            f" sampling_probability={shown(sampling_probability)}, steps={shown(steps)},"
            f" noise_multiplier={shown(noise_multiplier)}"
        )


def _allocation(steps_per_pass: int, _: NeighboringRelation) -> Passes:
    return RandomAllocation(steps_per_pass=steps_per_pass)


def _disjoint(steps_per_pass: int, relation: NeighboringRelation) -> Passes:
    return DisjointBatches(
        steps_per_pass=steps_per_pass,
        assigned_by="coin" if relation == "add_or_remove_one" else "position",
    )


def _passes(
    make: Callable[[int, NeighboringRelation], Passes],
    sampling_probability: float | str | None,
    steps: int | None,
    target: Mapping[str, Any],
    *,
    values: Mapping[str, float | Schedule | None],
) -> tuple[Passes | None, str]:
    """Return the scheme of passes, or None and why it is not possible."""
    if not isinstance(sampling_probability, int | float):
        return (
            None,
            f"it needs a sampling_probability, got {shown(sampling_probability)}",
        )
    if target["truncation"] is not None:
        return None, "no bound is proven where batches are truncated (max_batch_size)"
    steps_per_pass = _steps_per_pass(sampling_probability)
    if not math.isclose(steps_per_pass * sampling_probability, 1, rel_tol=1e-9):
        return None, (
            "sampling_probability must be one over a whole number of steps a pass, got"
            f" {sampling_probability!r}"
        )
    given = {name: value for name, value in values.items() if value is not None}
    scheme = make(steps_per_pass, target["neighboring_relation"])
    try:
        _checks.relation(
            neighboring_relation=target["neighboring_relation"],
            truncated=False,
            allocated=isinstance(scheme, RandomAllocation),
        )
        scheme.check_plan(
            steps=steps_per_pass if steps is None else steps,
            group_size=target["group_size"],
            renyi_order=target["renyi_order"],
            **given,
        )
    except ValueError as error:
        return None, str(error)
    return scheme, ""


def _steps_per_pass(sampling_probability: float | str | None) -> int:
    probability = _checks.probability(
        sampling_probability=sampling_probability  # type: ignore[arg-type]
    )
    return round(1 / probability)


def complete(
    target: Mapping[str, Any],
    sigma: float | Schedule | None,
    steps: int | None,
    probability: float | Literal["largest"] | None,
    choice: Choice,
) -> tuple[float | Schedule, int, float]:
    """Return noise multiplier, steps and sampling probability, one of which is found.

    Args:
        target: The arguments that every search takes.
        sigma: The noise multiplier, or the shape of its schedule; None to find it.
        steps: The number of steps; None to find it.
        probability: The sampling probability; ``"largest"`` to find it, None for 1.
        choice: How batches are drawn, which fixes the probability for passes; and the
            noise, where it was found already.

    Raises:
        ValueError: If not exactly one is to be found.
    """
    q: float | Literal["largest"] = 1.0 if probability is None else probability
    if choice.noise_multiplier is not None and steps is not None and q != "largest":
        return choice.noise_multiplier, steps, q
    scheme = choice.scheme
    if scheme is not None and not isinstance(scheme, CyclicPoisson):
        disjoint = scheme.assigned_by if isinstance(scheme, DisjointBatches) else None
        passes = {"steps_per_pass": scheme.steps_per_pass, "disjoint": disjoint}
        target = {**target, **passes}
        q = scheme.sampling_probability if disjoint is None else 1.0
    if isinstance(sigma, int | float):
        if q == "largest" and steps is not None:
            largest = calibrate_sampling_probability(
                **target, noise_multiplier=sigma, steps=steps
            )
            return sigma, steps, largest
        if q != "largest" and steps is None:
            most = calibrate_steps(
                **target, noise_multiplier=sigma, sampling_probability=q
            )
            return sigma, most, q
    elif q != "largest" and steps is not None:
        least = calibrate_noise_multiplier(
            **target, sampling_probability=q, steps=steps, shape=sigma
        )
        return least if sigma is None else sigma.scaled(least), steps, q
    raise ValueError(
        "leave out exactly one number, which is then found: noise_multiplier, or steps,"
        f" or pass sampling_probability='largest'; got noise_multiplier={shown(sigma)},"
        f" steps={shown(steps)}, sampling_probability={shown(q)}"
    )


def check_queries(
    queries: Sequence[Query], *, renyi_order: float | str | None
) -> tuple[Query, ...]:
    """Return *queries* if a plan can have them.

    Raises:
        ValueError: If two have one name, or if a Renyi filter would have to cover them.
    """
    names = [query.name for query in queries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"queries must have different names, got twice: {twice}")
    if queries and renyi_order is not None:
        raise ValueError(
            f"queries must be empty with renyi_order={shown(renyi_order)}: a filter is kept for"
            " steps alone; leave renyi_order None"
        )
    return tuple(queries)


def order_for(
    target: Mapping[str, Any], q: float, sigma: float | Schedule, steps: int
) -> float:
    """Return the Renyi order at which Poisson samples cost least."""
    return best_order(
        (
            Release(sampling_probability=q, noise_multiplier=value, count=count)
            for count, value in runs_of(sigma, steps)
        ),
        delta=target["target_delta"],
        relation=target["neighboring_relation"],
    )


def scheme_of(
    probability: float | None, truncation: Truncation | None
) -> PoissonSampling | TruncatedPoissonSampling | Unamplified:
    """Return the scheme of a plan with these numbers, without passes."""
    if probability is None:
        return Unamplified()
    if truncation is None:
        return PoissonSampling(sampling_probability=probability)
    return TruncatedPoissonSampling(
        sampling_probability=probability,
        max_batch_size=truncation.max_batch_size,
        dataset_size=truncation.dataset_size,
    )


def truncation_of(
    sampling_probability: float | str | None,
    max_batch_size: int | None,
    dataset_size: int | None,
) -> Truncation | None:
    """Return how batches are truncated.

    Raises:
        ValueError: If a number is missing for that.
    """
    if max_batch_size is None and dataset_size is None:
        return None
    if max_batch_size is None or dataset_size is None or sampling_probability is None:
        raise ValueError(
            "max_batch_size needs dataset_size, the public number of examples, and a"
            f" sampling_probability, and dataset_size serves nothing else; got"
            f" max_batch_size={shown(max_batch_size)}, dataset_size={shown(dataset_size)},"
            f" sampling_probability={shown(sampling_probability)}"
        )
    return Truncation(max_batch_size=max_batch_size, dataset_size=dataset_size)
