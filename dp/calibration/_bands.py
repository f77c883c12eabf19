"""How many bands correlated noise has, so that prefix sums have the least error.

More bands let more of the noise cancel, and need more of it: an example is then in fewer
steps, but with a larger probability each. Which number is best depends on epsilon and on
the number of epochs, so several are tried.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from dp import _checks
from dp.calibration._calibrate import (
    calibrate_noise_multiplier,
    rough_noise_multiplier,
)
from dp.noise import BandedNoise


__all__ = ("Bands", "Correlated", "best_correlation")

Bands = int | Literal["auto"]

# Each band more takes memory for two more copies of the parameters.
_MOST_BANDS: Final = 16
_OF_SEARCH: Final = (
    "target_epsilon",
    "target_delta",
    "neighboring_relation",
    "group_size",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Correlated:
    """Correlated noise that keeps a target, and what it amounts to.

    Attributes:
        noise: How it is correlated; of one band it is independent.
        noise_multiplier: How much of it there has to be.
        error: Of prefix sums, in clipping norms; see :meth:`BandedNoise.prefix_error`.
    """

    noise: BandedNoise
    noise_multiplier: float
    error: float

    def __str__(self) -> str:
        return (
            f"Correlated noise of {self.noise.bands} bands, which needs"
            f" noise_multiplier={self.noise_multiplier:g} and memory for"
            f" {2 * (self.noise.bands - 1)} copies of the parameters, and leaves an"
            f" error of {self.error:.4g} in prefix sums."
        )


def best_correlation(
    target: Mapping[str, Any],
    *,
    sampling_probability: float,
    steps: int,
    bands: Bands = "auto",
) -> Correlated:
    """Return the correlated noise with the least error that keeps a target.

    Numbers of bands are compared at a rough noise multiplier, and the best one's is then
    found exactly.

    Args:
        target: The arguments that every search takes: the epsilon and delta that all
            steps may cost, and the relation.
        sampling_probability: Probability that an example is in a batch.
        steps: How many steps the run takes.
        bands: How many bands; ``"auto"`` tries the divisors of *steps* from 2 to 16 for
            which *sampling_probability* is at most one over it.

    Raises:
        ValueError: If a number is out of range, or if there is none to try.
    """
    numbers = (
        _possible(sampling_probability, steps)
        if bands == "auto"
        else [_checks.count(bands=bands)]
    )
    tried = [BandedNoise.optimal(number, steps=steps) for number in numbers]
    has_risk = target.get("target_risk") is not None  # Of which no bound is rough.
    rough = {name: target[name] for name in _OF_SEARCH}

    def numbers_of(noise: BandedNoise) -> dict[str, Any]:
        coin = _checks.cyclic_coin(sampling_probability, noise.bands)
        return {"sampling_probability": coin, "steps": steps // noise.bands}

    def rough_error(noise: BandedNoise) -> float:
        sigma = (
            calibrate_noise_multiplier(**target, **numbers_of(noise))
            if has_risk
            else rough_noise_multiplier(**rough, **numbers_of(noise))
        )
        return sigma * noise.prefix_error(steps)

    best = min(tried, key=rough_error) if len(tried) > 1 else tried[0]
    sigma = calibrate_noise_multiplier(**target, **numbers_of(best))
    return Correlated(
        noise=best, noise_multiplier=sigma, error=sigma * best.prefix_error(steps)
    )


def _possible(sampling_probability: float, steps: int) -> list[int]:
    """Return the numbers of bands to try.

    Raises:
        ValueError: If there are none.
    """
    numbers = [
        b
        for b in range(2, _MOST_BANDS + 1)
        if steps % b == 0 and sampling_probability * b <= 1
    ]
    if not numbers:
        raise ValueError(
            f"steps={steps} have no divisor from 2 to {_MOST_BANDS} that is at most one"
            f" over sampling_probability={sampling_probability!r}; plan for a rounder"
            " number of steps, or for smaller batches"
        )
    return numbers
