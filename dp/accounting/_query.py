"""A query that is planned with a run."""

from dataclasses import dataclass
from typing import final

from dp import _checks
from dp.accounting._release import Release


__all__ = ("Query",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question about the data that a plan pays for; :class:`dp.query.Queries` asks it.

    >>> Query(name="adults", noise_multiplier=20.0)
    Query(name='adults', noise_multiplier=20.0, num_values=1)

    Args:
        name: What it is called, in code and in the certificate.
        noise_multiplier: Standard deviation of the noise, in units of privacy: a count
            is off by so many, and a mean by ``noise_multiplier / num_units`` of half its
            range.
        num_values: How many numbers it releases: the cells of a histogram, otherwise 1.
            They cost no more than one, since a unit is in one cell.

    Raises:
        ValueError: If the name says nothing, or if a number is out of range.
    """

    name: str
    noise_multiplier: float
    num_values: int = 1

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"name must say what is asked, got {self.name!r}")
        _checks.positive(noise_multiplier=self.noise_multiplier)
        _checks.count(num_values=self.num_values)

    @property
    def release(self) -> Release:
        """The release that the answer is, on all units of privacy."""
        return Release(
            sampling_probability=1.0, noise_multiplier=self.noise_multiplier, count=1
        )
