"""Mechanisms that keep a target, compared by what they leave of the noise.

A mechanism is how batches are drawn, and how the noise of steps is correlated. Every
candidate is calibrated to the same target, number of steps and sampling probability, and
so to batches of the same expected size. Nothing is taken for granted of which is best:
the error of each in prefix sums, which a run of SGD is made of, is computed and told. Of
independent noise it is the noise multiplier times a number that is the same for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

from dp.calibration._bands import Bands, best_correlation
from dp.calibration._calibrate import calibrate_noise_multiplier
from dp.noise import BandedNoise
from dp.sampling import CyclicPoisson, Passes
from dp.schedule import Schedule


__all__ = ("Choice", "best_choice", "correlated_choice")

_INDEPENDENT: Final = BandedNoise((1.0,))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A mechanism, and what it was compared with.

    Attributes:
        scheme: How batches are drawn; None for Poisson samples, or as they come.
        correlation: How noise is correlated; None for independent noise.
        noise_multiplier: The least noise that keeps the target, where it was computed to
            choose.
        compared: What was compared, one sentence each.
    """

    scheme: Passes | CyclicPoisson | None = None
    correlation: BandedNoise | None = None
    noise_multiplier: float | None = None
    compared: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A mechanism that keeps the target, its error in prefix sums, and its name."""

    choice: Choice
    error: float
    told: str


def best_choice(
    about: Mapping[str, Any],
    max_grad_norm: float | Schedule,
    bands: Bands,
    allocation: Passes | None,
    obstacle: str,
) -> Choice:
    """Return the mechanism with the least error, and why others were not compared.

    Args:
        about: The target, and the sampling probability and steps that are given.
        max_grad_norm: The clipping norm.
        bands: How many bands correlated noise has; 1 leaves it out.
        allocation: Random allocation, if it is possible.
        obstacle: What it is not possible for, otherwise.
    """
    candidates, refused = [_independent("Poisson sampling", about)], []
    if allocation is not None:
        candidates.append(_independent("Random allocation", about, allocation))
    else:
        refused.append(f"Random allocation was not: {obstacle}.")
    try:
        if bands != 1:
            candidates.append(_correlated(about, max_grad_norm, bands))
    except ValueError as error:
        refused.append(f"Correlated noise was not: {error}.")
    return _least(candidates, refused)


def correlated_choice(
    about: Mapping[str, Any], max_grad_norm: float | Schedule, bands: Bands
) -> Choice:
    """Return correlated noise, of the number of bands that is given.

    Where the number is to be found, independent noise is taken if it has less error.

    Raises:
        ValueError: If no bound is proven for it.
    """
    correlated = _correlated(about, max_grad_norm, bands)
    if bands != "auto":
        return correlated.choice
    return _least([_independent("Poisson sampling", about), correlated], ())


def _least(candidates: Sequence[_Candidate], refused: Sequence[str]) -> Choice:
    """Return the mechanism with the least error, the first of several."""
    best = min(candidates, key=lambda candidate: candidate.error)
    told = (*(candidate.told for candidate in candidates), *refused)
    return replace(best.choice, compared=told)


def _independent(
    name: str, about: Mapping[str, Any], scheme: Passes | None = None
) -> _Candidate:
    steps_per_pass = None if scheme is None else scheme.steps_per_pass
    sigma = calibrate_noise_multiplier(**about, steps_per_pass=steps_per_pass)
    error = sigma * _INDEPENDENT.prefix_error(about["steps"])
    told = (
        f"{name}, which needs noise_multiplier={sigma:g} and leaves an error of"
        f" {error:.4g} in prefix sums."
    )
    choice = Choice(scheme=scheme, noise_multiplier=sigma)
    return _Candidate(choice=choice, error=error, told=told)


def _correlated(
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
    choice = Choice(
        scheme=CyclicPoisson(sampling_probability=q, bands=found.noise.bands),
        correlation=found.noise,
        noise_multiplier=found.noise_multiplier,
    )
    return _Candidate(choice=choice, error=found.error, told=str(found))
