"""What a plan leaves to be found: one of its numbers, or the mechanism.

A mechanism is how batches are drawn, and how the noise of steps is correlated. Every
candidate is calibrated to the same epsilon, number of steps and sampling probability, and
so to batches of the same expected size. Nothing is taken for granted of which is best:
the error of each in prefix sums, which a run of SGD is made of, is computed and told. Of
independent noise it is the noise multiplier times a number that is the same for all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final, get_args

from dp import _checks
from dp.accounting import Release, Truncation
from dp.accounting._renyi import best_order
from dp.calibration import (
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
)
from dp.calibration._bands import Bands, best_correlation
from dp.noise import BandedNoise
from dp.sampling import (
    CyclicPoisson,
    PoissonSampling,
    RandomAllocation,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp.schedule import Schedule, runs_of


__all__ = (
    "Bands",
    "Choice",
    "Mechanism",
    "choose",
    "complete",
    "order_for",
    "scheme_of",
    "truncation_of",
)

Mechanism = Literal["poisson", "allocation", "correlated", "best"]

_INDEPENDENT: Final = BandedNoise((1.0,))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A mechanism, and what it was compared with.

    Attributes:
        steps_per_pass: Steps of a pass by random allocation; None for other sampling.
        correlation: How noise is correlated, with cyclic Poisson sampling; None for
            independent noise.
        noise_multiplier: The least noise that keeps the target, where it was computed to
            choose.
        compared: What was compared, one sentence each.
    """

    steps_per_pass: int | None = None
    correlation: BandedNoise | None = None
    noise_multiplier: float | None = None
    compared: tuple[str, ...] = ()


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
        mechanism: ``"poisson"``, ``"allocation"``, ``"correlated"``, or ``"best"`` for
            the one with the least error of prefix sums.
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
    obstacle = _obstacle(
        sampling_probability,
        steps,
        target,
        values={"noise_multiplier": noise_multiplier, "max_grad_norm": max_grad_norm},
    )
    if mechanism == "allocation":
        if obstacle is not None:
            raise ValueError(f"mechanism='allocation' is not possible: {obstacle}")
        return Choice(steps_per_pass=_steps_per_pass(sampling_probability))
    _check_comparable(mechanism, sampling_probability, steps, noise_multiplier)
    if mechanism == "best":
        return _best(about, max_grad_norm, bands, obstacle)
    correlated = _of_bands(about, max_grad_norm, bands)
    if bands != "auto":
        return correlated.choice
    return _least([_poisson(about), correlated], ())


def _check_mechanism(mechanism: str, bands: Bands) -> None:
    if mechanism not in get_args(Mechanism):
        raise ValueError(
            f"mechanism must be one of {', '.join(map(repr, get_args(Mechanism)))}, got"
            f" {mechanism!r}"
        )
    if bands != "auto" and mechanism not in {"correlated", "best"}:
        raise ValueError(
            f"bands={bands!r} is for correlated noise: pass mechanism='correlated' or"
            f" 'best' with it, got {mechanism!r}"
        )


def _best(
    about: Mapping[str, Any],
    max_grad_norm: float | Schedule,
    bands: Bands,
    obstacle: str | None,
) -> Choice:
    """Return the mechanism with the least error, and why others were not compared.

    Args:
        about: The target, and the numbers that are given.
        max_grad_norm: The clipping norm.
        bands: How many bands correlated noise has; 1 leaves it out.
        obstacle: What random allocation is not possible for; None if it is.
    """
    candidates, refused = [_poisson(about)], []
    if obstacle is None:
        candidates.append(_allocation(about))
    else:
        refused.append(f"Random allocation was not: {obstacle}.")
    try:
        if bands != 1:
            candidates.append(_of_bands(about, max_grad_norm, bands))
    except ValueError as error:
        refused.append(f"Correlated noise was not: {error}.")
    return _least(candidates, refused)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A mechanism that keeps the target, its error in prefix sums, and its name."""

    choice: Choice
    error: float
    told: str


def _least(candidates: Sequence[_Candidate], refused: Sequence[str]) -> Choice:
    """Return the mechanism with the least error, the first of several."""
    best = min(candidates, key=lambda candidate: candidate.error)
    told = (*(candidate.told for candidate in candidates), *refused)
    return replace(best.choice, compared=told)


def _poisson(about: Mapping[str, Any]) -> _Candidate:
    return _independent("Poisson sampling", about)


def _allocation(about: Mapping[str, Any]) -> _Candidate:
    steps_per_pass = _steps_per_pass(about["sampling_probability"])
    return _independent("Random allocation", about, steps_per_pass)


def _independent(
    name: str, about: Mapping[str, Any], steps_per_pass: int | None = None
) -> _Candidate:
    sigma = calibrate_noise_multiplier(**about, steps_per_pass=steps_per_pass)
    error = sigma * _INDEPENDENT.prefix_error(about["steps"])
    told = (
        f"{name}, which needs noise_multiplier={sigma:g} and leaves an error of"
        f" {error:.4g} in prefix sums."
    )
    choice = Choice(steps_per_pass=steps_per_pass, noise_multiplier=sigma)
    return _Candidate(choice=choice, error=error, told=told)


def _of_bands(
    about: Mapping[str, Any], max_grad_norm: float | Schedule, bands: Bands
) -> _Candidate:
    """Return the correlated noise with the least error that keeps the target.

    Raises:
        ValueError: If no bound is proven for it.
    """
    if about["truncation"] is not None:
        raise ValueError(
            "no bound is proven where batches are truncated (max_batch_size) and noise"
            " is correlated"
        )
    q, steps = about["sampling_probability"], about["steps"]
    CyclicPoisson(
        sampling_probability=q, bands=1 if bands == "auto" else bands
    ).check_plan(
        steps=steps,
        group_size=about["group_size"],
        renyi_order=about["renyi_order"],
        max_grad_norm=max_grad_norm,
    )
    target = {
        name: value
        for name, value in about.items()
        if name not in {"sampling_probability", "steps"}
    }
    found = best_correlation(target, sampling_probability=q, steps=steps, bands=bands)
    choice = Choice(correlation=found.noise, noise_multiplier=found.noise_multiplier)
    return _Candidate(choice=choice, error=found.error, told=str(found))


def _check_comparable(
    mechanism: Mechanism,
    sampling_probability: float | str | None,
    steps: int | None,
    noise_multiplier: float | Schedule | None,
) -> None:
    is_given = isinstance(sampling_probability, int | float) and steps is not None
    if not is_given or noise_multiplier is not None:
        raise ValueError(
            f"mechanism={mechanism!r} finds the noise for a sampling_probability and a"
            " number of steps: give these two, and no noise_multiplier; got"
            f" sampling_probability={sampling_probability!r}, steps={steps!r},"
            f" noise_multiplier={noise_multiplier!r}"
        )


def _obstacle(
    sampling_probability: float | str | None,
    steps: int | None,
    target: Mapping[str, Any],
    *,
    values: Mapping[str, float | Schedule | None],
) -> str | None:
    """Return what random allocation is not possible for; None if it is."""
    if not isinstance(sampling_probability, int | float):
        return f"it needs a sampling_probability, got {sampling_probability!r}"
    if target["truncation"] is not None:
        return "no bound is proven where batches are truncated (max_batch_size)"
    steps_per_pass = _steps_per_pass(sampling_probability)
    if not math.isclose(steps_per_pass * sampling_probability, 1, rel_tol=1e-9):
        return (
            "sampling_probability must be one over a whole number of steps a pass, got"
            f" {sampling_probability!r}"
        )
    given = {name: value for name, value in values.items() if value is not None}
    try:
        _checks.relation(
            neighboring_relation=target["neighboring_relation"],
            truncated=False,
            allocated=True,
        )
        scheme = RandomAllocation(steps_per_pass=steps_per_pass)
        scheme.check_plan(
            steps=steps_per_pass if steps is None else steps,
            group_size=target["group_size"],
            renyi_order=target["renyi_order"],
            **given,
        )
    except ValueError as error:
        return str(error)
    return None


def _steps_per_pass(sampling_probability: float | str | None) -> int:
    probability = _checks.probability(
        sampling_probability=sampling_probability  # type: ignore[arg-type]
    )
    return round(1 / probability)


def complete(
    target: Mapping[str, Any],
    sigma: float | Schedule | None,
    steps: int | None,
    q: float | Literal["largest"],
    found: float | None = None,
) -> tuple[float | Schedule, int, float]:
    """Return noise multiplier, steps and sampling probability, one of which is found.

    Args:
        target: The arguments that every search takes.
        sigma: The noise multiplier, or the shape of its schedule; None to find it.
        steps: The number of steps; None to find it.
        q: The sampling probability; ``"largest"`` to find it.
        found: The noise multiplier, where it was found already.

    Raises:
        ValueError: If not exactly one is to be found.
    """
    if found is not None and steps is not None and q != "largest":
        return found, steps, q
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
    probability: float | None, truncation: Truncation | None, choice: Choice
) -> (
    CyclicPoisson
    | PoissonSampling
    | RandomAllocation
    | TruncatedPoissonSampling
    | Unamplified
):
    """Return the scheme of a plan with these numbers."""
    if probability is None:
        return Unamplified()
    if choice.steps_per_pass is not None:
        return RandomAllocation(steps_per_pass=choice.steps_per_pass)
    if choice.correlation is not None:
        return CyclicPoisson(
            sampling_probability=probability, bands=choice.correlation.bands
        )
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
