"""The least noise that keeps a risk, in the units of :class:`dp.accounting.Risk`."""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Final, final

from dp._reports import shown
from dp.accounting import Risk
from dp.accounting._risk import NO_RISK


__all__ = ("RiskTarget",)

_NORMAL: Final = NormalDist()
_CERTAIN: Final = 1 - 1e-12  # Beyond, no quantile is a number.
_LEAST: Final = 1e-9  # Logarithms of separations begin here.
_FALSE_POSITIVES: Final = {"tpr_at_1_in_100": 1e-2, "tpr_at_1_in_1000": 1e-3}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RiskTarget:
    """The risk that a run may be at most; every number that is given is kept.

    >>> RiskTarget(advantage=0.2).is_kept_by(NO_RISK)
    True

    Args:
        advantage: The largest advantage of an attacker over guessing, in (0, 1).
        tpr_at_1_in_100: The largest share of units that an attack may find with 1 false
            alarm in 100, in (0.01, 1).
        tpr_at_1_in_1000: The same with 1 false alarm in 1000, in (0.001, 1).
        odds_factor: The largest factor by which anyone's odds may grow, except in 1 run
            of 1000; above 1.

    Raises:
        ValueError: If no number is given, or one that guessing does not keep, or that
            everything keeps.
    """

    advantage: float | None = None
    tpr_at_1_in_100: float | None = None
    tpr_at_1_in_1000: float | None = None
    odds_factor: float | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise ValueError(
                "RiskTarget needs a number to keep: advantage, tpr_at_1_in_100,"
                " tpr_at_1_in_1000 or odds_factor"
            )
        for name, value in self.given.items():
            least = getattr(NO_RISK, name)
            most = math.inf if name == "odds_factor" else 1.0
            if not least < value < most:
                raise ValueError(
                    f"{name} must be strictly between {least:g}, which is guessing, and"
                    f" {most:g}, got {shown(value)}"
                )

    @property
    def given(self) -> dict[str, float]:
        """The numbers that were given, by their names."""
        return {name: x for name, x in asdict(self).items() if x is not None}

    def is_kept_by(self, found: Risk) -> bool:
        """Whether every number of *found* is at most what is given."""
        return all(getattr(found, name) <= most for name, most in self.given.items())

    def excess(self, found: Risk) -> float:
        """Return the logarithm of what *found* is over the target; at most 0 if kept.

        Every number is turned into the separation of two normal distributions that it
        belongs to: by the noise, its logarithm falls nearly in a line.
        """
        excess = max(
            math.log(_separation(name, getattr(found, name)) / _separation(name, most))
            for name, most in self.given.items()
        )
        return min(excess, 0.0) if self.is_kept_by(found) else max(excess, 1e-9)


def _separation(name: str, value: float) -> float:
    """Return how far apart two normal distributions of variance 1 are, about.

    >>> round(_separation("advantage", 0.382925), 6)
    1.0
    """
    if name == "odds_factor":
        return max(_LEAST, math.log(min(value, 1e300)))
    value = min(value, _CERTAIN)
    if name == "advantage":
        return max(_LEAST, 2 * _NORMAL.inv_cdf((1 + value) / 2))
    of_guessing = _NORMAL.inv_cdf(_FALSE_POSITIVES[name])
    return max(_LEAST, _NORMAL.inv_cdf(value) - of_guessing)
