"""What a plan leaves to be found: one of its numbers, or how batches are drawn.

Of two ways of drawing batches, every candidate is calibrated to the same epsilon, number of steps and sampling
probability, and so to batches of the same expected size. Nothing is taken for granted
of which is better: both numbers are computed, and both are told.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from dp import _checks
from dp._typing import NeighboringRelation
from dp.accounting import Release, Truncation
from dp.accounting._renyi import best_order
from dp.calibration import (
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
)
from dp.sampling import (
    DisjointBatches,
    Passes,
    PoissonSampling,
    RandomAllocation,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp.schedule import Schedule, runs_of


__all__ = (
    "Mechanism",
    "choose",
    "complete",
    "order_for",
    "scheme_of",
    "truncation_of",
)

Mechanism = Literal["poisson", "allocation", "disjoint", "best"]


def choose(
    mechanism: Mechanism,
    target: Mapping[str, Any],
    *,
    sampling_probability: float | str | None,
    steps: int | None,
    noise_multiplier: float | Schedule | None,
    max_grad_norm: float | Schedule,
) -> tuple[Passes | None, tuple[str, ...]]:
    """Return the scheme of passes, or None for one without.

    Args:
        mechanism: ``"poisson"``, ``"allocation"``, ``"disjoint"``, or ``"best"`` for
            that of the first two that needs less noise.
        target: The epsilon and delta that all steps may cost, the relation, and, if
            there are any, a truncation and the order of a Renyi filter.
        sampling_probability: Probability that an example is in a batch.
        steps: How many steps the run takes.
        noise_multiplier: The noise, if it is given.
        max_grad_norm: The clipping norm.

    Returns:
        With the scheme, what was compared, one sentence each.

    Raises:
        ValueError: If *mechanism* is unknown, if it is a scheme of passes and no bound is
            proven for that, or if it is ``"best"`` and noise is not what is left out.
    """
    if mechanism not in get_args(Mechanism):
        raise ValueError(
            f"mechanism must be one of {', '.join(map(repr, get_args(Mechanism)))}, got"
            f" {mechanism!r}"
        )
    if mechanism == "poisson":
        return None, ()
    if mechanism == "best":
        _check_comparable(sampling_probability, steps, noise_multiplier)
    make = _disjoint if mechanism == "disjoint" else _allocation
    scheme, obstacle = _passes(
        make,
        sampling_probability,
        steps,
        target,
        values={"noise_multiplier": noise_multiplier, "max_grad_norm": max_grad_norm},
    )
    if mechanism != "best":
        if scheme is None:
            raise ValueError(f"mechanism={mechanism!r} is not possible: {obstacle}")
        return scheme, ()
    if scheme is None:
        return None, (f"Poisson sampling; random allocation was not: {obstacle}.",)
    about = {**target, "sampling_probability": sampling_probability, "steps": steps}
    return _with_less_noise(about, scheme)


def _with_less_noise(
    about: Mapping[str, Any], scheme: Passes
) -> tuple[Passes | None, tuple[str, ...]]:
    poisson = calibrate_noise_multiplier(**about)
    allocation = calibrate_noise_multiplier(
        **about, steps_per_pass=scheme.steps_per_pass
    )
    compared = (
        f"Poisson sampling, which needs noise_multiplier={poisson:g}.",
        f"Random allocation, which needs noise_multiplier={allocation:g}.",
    )
    return (scheme if allocation < poisson else None), compared


def _check_comparable(
    sampling_probability: float | str | None,
    steps: int | None,
    noise_multiplier: float | Schedule | None,
) -> None:
    is_given = isinstance(sampling_probability, int | float) and steps is not None
    if not is_given or noise_multiplier is not None:
        raise ValueError(
            "mechanism='best' takes the least noise for a sampling_probability and a"
            " number of steps: give these two, and no noise_multiplier; got"
            f" sampling_probability={sampling_probability!r}, steps={steps!r},"
            f" noise_multiplier={noise_multiplier!r}"
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
        return None, f"it needs a sampling_probability, got {sampling_probability!r}"
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
    scheme: Passes | None,
) -> tuple[float | Schedule, int, float]:
    """Return noise multiplier, steps and sampling probability, one of which is found.

    Args:
        target: The arguments that every search takes.
        sigma: The noise multiplier, or the shape of its schedule; None to find it.
        steps: The number of steps; None to find it.
        probability: The sampling probability; ``"largest"`` to find it, None for 1.
        scheme: The scheme of passes, which fixes the probability; None for one without.

    Raises:
        ValueError: If not exactly one is to be found.
    """
    q: float | Literal["largest"] = 1.0 if probability is None else probability
    if scheme is not None:
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
        f" or pass sampling_probability='largest'; got noise_multiplier={sigma!r},"
        f" steps={steps!r}, sampling_probability={q!r}"
    )


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
            f" max_batch_size={max_batch_size!r}, dataset_size={dataset_size!r},"
            f" sampling_probability={sampling_probability!r}"
        )
    return Truncation(max_batch_size=max_batch_size, dataset_size=dataset_size)
