"""How batches of cyclic Poisson sampling are drawn: a public value that a plan holds."""

from dataclasses import dataclass
from typing import ClassVar, final

from dp import _checks
from dp.sampling._one_charge import OneCharge


__all__ = ("CyclicPoisson",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CyclicPoisson(OneCharge):
    """Each example is eligible in every *bands*-th step, and joins it by a coin.

    Another coin gives each example one of *bands* groups, for a whole run. Steps take
    turns: step ``t`` draws from group ``t mod bands``, each example of it with
    *coin_probability*. So two steps that an example is in are *bands* apart at least,
    which is what :class:`~dp.BandedNoise` of as many bands needs.

    A round of *bands* steps is charged as a whole, before its first step: as one Poisson
    sample at *coin_probability*. A round that is interrupted costs as much, and whatever
    resumes begins another.

    Args:
        sampling_probability: The probability of each example to be in a given step.
        bands: How many groups there are, and steps in a round: a public number.

    Raises:
        ValueError: If a number is out of range, or if ``sampling_probability * bands``
            is above 1.

    References:
        Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", 2023,
        Theorem 4 and algorithm 2: https://arxiv.org/abs/2306.08153.
    """

    _NAMED: ClassVar[str] = "cyclic Poisson sampling (CyclicPoisson)"
    _PART: ClassVar[str] = "round"
    _LENGTH: ClassVar[str] = "bands"

    sampling_probability: float
    bands: int

    def __post_init__(self) -> None:
        _checks.probability(sampling_probability=self.sampling_probability)
        bands = _checks.count(bands=self.bands)
        _checks.cyclic_coin(self.sampling_probability, bands)

    @property
    def coin_probability(self) -> float:
        """The probability of each example to be in a step that it is eligible in."""
        return _checks.cyclic_coin(self.sampling_probability, self.bands)
