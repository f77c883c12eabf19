"""Columns to features, one row at a time, by numbers that are public or were released.

Shapes: ``N`` rows, ``F`` features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp.tables._parsing import Kind
from dp.tables._values import Floats, Values


__all__ = ("Encoder", "Feature", "ScaledTarget")

_MONTHS, _WEEKDAYS = 12, 7
_FIRST_WEEKDAY = 5  # 2000-01-01 was a Saturday, and Monday is 0.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """How one column becomes features.

    A number becomes ``factor * clip((x - centre) / scale, -bound, bound)``, and 0 where
    there is none. A text becomes a one for its bucket; a missing value, and a date's
    month and weekday, likewise.

    Attributes:
        name: The column.
        kind: What it was declared to hold.
        has_numbers: Whether its numbers are a feature.
        centre: What becomes 0.
        scale: What becomes ``factor`` above the centre.
        bound: At how many scales numbers are clipped.
        factor: What the clipped number is multiplied with.
        has_gaps: Whether a missing value is a feature.
        buckets: The buckets of texts that are features.
        has_calendar: Whether month and weekday are features.
    """

    name: str
    kind: Kind = "auto"
    has_numbers: bool = False
    centre: float = 0.0
    scale: float = 1.0
    bound: float = 3.0
    factor: float = 1.0
    has_gaps: bool = False
    buckets: tuple[int, ...] = ()
    has_calendar: bool = False

    def __call__(self, values: Values) -> Floats:
        """Return the features of a column, of shape (N, F)."""
        parts = list(self._parts(values))
        return np.concatenate(parts, axis=1) if parts else np.empty((len(values), 0))

    def _parts(self, values: Values) -> Iterator[Floats]:
        if self.has_numbers:
            with np.errstate(over="ignore"):  # Infinite is clipped, too.
                scaled_N = (values.numbers - self.centre) / self.scale
            clipped_N = np.nan_to_num(np.clip(scaled_N, -self.bound, self.bound))
            yield self.factor * clipped_N[:, None]
        if self.has_gaps:
            yield _as_floats(values.gaps[:, None])
        if self.buckets:
            yield _as_floats(values.buckets[:, None] == np.array(self.buckets))
        if self.has_calendar:
            yield _calendar(values.numbers)


def _as_floats(mask: NDArray[np.bool_]) -> Floats:
    return mask.astype(np.float64)


def _calendar(days_N: Floats) -> Floats:
    """Return ones for the month and the weekday of days since the year 2000."""
    # Dates that Python can read lie within 4 million days of it.
    whole_N = np.floor(np.nan_to_num(np.clip(days_N, -4e6, 4e6))).astype(np.int64)
    dates_N = np.datetime64("2000-01-01", "D") + whole_N
    months_N = dates_N.astype("datetime64[M]").astype(np.int64) % _MONTHS
    weekdays_N = (whole_N + _FIRST_WEEKDAY) % _WEEKDAYS
    ones = np.concatenate(
        [
            months_N[:, None] == np.arange(_MONTHS),
            weekdays_N[:, None] == np.arange(_WEEKDAYS),
        ],
        axis=1,
    )
    return _as_floats(ones & ~np.isnan(days_N)[:, None])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledTarget:
    """How the target of a regression is scaled."""

    centre: float
    scale: float
    bound: float = 3.0

    @classmethod
    def of_range(cls, low: float, high: float) -> "ScaledTarget":
        """Return the scaling of a target whose range is public."""
        return cls(centre=(low + high) / 2, scale=(high - low) / 6)

    def __call__(self, numbers_N: Tensor) -> Tensor:
        """Return scaled numbers; NaN where there is none."""
        scaled_N = (numbers_N - self.centre) / self.scale
        return scaled_N.clamp(-self.bound, self.bound).to(torch.float32)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """How the columns of a table become features.

    It is made of public numbers and of what was released with noise, so that showing
    it costs nothing more.
    """

    features: tuple[Feature, ...]

    def __call__(self, columns: Mapping[str, Values]) -> Tensor:
        """Return the features of some rows, by their columns, of shape (N, F)."""
        parts = [feature(columns[feature.name]) for feature in self.features]
        return torch.from_numpy(np.concatenate(parts, axis=1)).to(torch.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain types, as ``torch.load`` reads by default."""
        return {"features": [asdict(feature) for feature in self.features]}

    @classmethod
    def from_dict(cls, encoder: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Encoder":
        """Return the encoder that :meth:`to_dict` wrote.

        Raises:
            KeyError, TypeError: If it is none.
        """
        return cls(
            features=tuple(
                Feature(**{**feature, "buckets": tuple(feature["buckets"])})
                for feature in encoder["features"]
            )
        )
