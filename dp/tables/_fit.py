"""Find the features of a table by at most two private statistics of its columns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, final

from dp.tables._encoder import Encoder, Feature, ScaledTarget
from dp.tables._histogram import ColumnSummary, histogram, summarize
from dp.tables._moments import moments, refined
from dp.tables._parsing import Kind
from dp.tables._recipe import Shares
from dp.tables._release import Statistics
from dp.tables._values import Floats, Values, bucket_of


__all__ = ("Declared", "Fitted", "fit_encoder")

# What a declared range is stretched to. Data rarely fill a range evenly: their spread is
# about a third of it, and features learn best with a spread near one.
_HALF_A_RANGE: Final = 3.0
# Where the target is misplaced, no feature helps: its counts get half the noise.
_WEIGHT_OF_TARGET: Final = 2
_OF_A_SIGN: Final = 1 / 6  # A clipped number of 3 becomes 1/2.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the user declares of a column, as public.

    Attributes:
        kind: What it holds.
        range: Its smallest and largest number.
        levels: Its categories.
    """

    kind: Kind = "auto"
    range: tuple[float, float] | None = None
    levels: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing of the column has to be found."""
        return self.range is not None or bool(self.levels)

    @property
    def num_features(self) -> int:
        """How many features the column becomes, as far as that is public."""
        return max(1, len(self.levels)) + (19 if self.kind == "date" else 0)

    def feature(self, name: str) -> Feature:
        """Return the feature of a column that is declared completely."""
        feature = Feature(name=name, kind=self.kind, has_calendar=self.kind == "date")
        if self.range is None:
            buckets = tuple(sorted({bucket_of(level) for level in self.levels}))
            return replace(feature, buckets=buckets)
        low, high = self.range
        return replace(
            feature,
            has_numbers=True,
            centre=(low + high) / 2,
            scale=(high - low) / 2,
            bound=1.0,
            factor=_HALF_A_RANGE,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What statistics say of a table; made of released and of public numbers.

    Attributes:
        encoder: How columns become features.
        target: How the target of a regression is scaled.
        unseen: Columns in which nothing stood out from the noise.
        coarse: Columns of numbers of one magnitude, whose spread was not measured.
    """

    encoder: Encoder
    target: ScaledTarget | None = None
    unseen: tuple[str, ...] = ()
    coarse: tuple[str, ...] = ()


def fit_encoder(
    columns: Mapping[str, Values],
    declared: Mapping[str, Declared],
    target: Values | None,
    *,
    shares: Shares,
    statistics: Statistics,
) -> Fitted:
    """Return how columns become features, and how the target of a regression is scaled.

    Args:
        columns: The columns, by name: one row a unit of privacy.
        declared: What is public of each column.
        target: The target of a regression, if its scale has to be found.
        shares: How much noise statistics get.
        statistics: What releases them.
    """
    measured = [name for name in columns if not declared[name].is_complete]
    values = [columns[name] for name in measured] + ([target] if target else [])
    weights = [1] * len(measured) + ([_WEIGHT_OF_TARGET] if target else [])
    summaries = _summaries(values, weights, shares, statistics) if values else []
    of_column = dict(zip(measured, summaries, strict=False))
    encoder = Encoder(
        features=tuple(
            _feature(name, of_column[name], declared[name])
            if name in of_column
            else declared[name].feature(name)
            for name in columns
        )
    )
    last = summaries[-1] if target else None
    return Fitted(
        encoder=encoder,
        target=last and ScaledTarget(centre=last.centre, scale=last.scale),
        unseen=tuple(name for name, s in of_column.items() if not s.was_found),
        coarse=tuple(name for name, s in of_column.items() if s.is_coarse),
    )


def _summaries(
    values: list[Values],
    weights: list[int],
    shares: Shares,
    statistics: Statistics,
) -> list[ColumnSummary]:
    """Release the histogram, and the moments where rows allow; return what they say."""
    statistic = histogram(values, weights)
    noise_multiplier = shares.histogram
    noisy_DK = statistics.release(statistic, noise_multiplier=noise_multiplier).numpy()
    stddev = noise_multiplier * statistic.sensitivity
    summaries = [
        summarize(noisy_K / weight, stddev / weight)
        for noisy_K, weight in zip(noisy_DK, weights, strict=True)
    ]
    if shares.moments is None:
        return summaries
    num_rows = len(values[0])
    numbers = [column.numbers for column in values]
    statistic = moments(
        numbers, [s.centre for s in summaries], [s.scale for s in summaries]
    )
    noisy_D2 = statistics.release(statistic, noise_multiplier=shares.moments).numpy()
    stddev = shares.moments * statistic.sensitivity
    return [
        _refined(summary, noisy_2, stddev, num_rows)
        for summary, noisy_2 in zip(summaries, noisy_D2, strict=True)
    ]


def _refined(
    summary: ColumnSummary,
    noisy_2: Floats,
    stddev: float,
    num_rows: int,
) -> ColumnSummary:
    centre, scale, is_measured = refined(
        noisy_2,
        stddev=stddev,
        num_rows=num_rows,
        centre=summary.centre,
        scale=summary.scale,
    )
    is_coarse = summary.is_coarse and not is_measured
    return replace(summary, centre=centre, scale=scale, is_coarse=is_coarse)


def _feature(name: str, summary: ColumnSummary, declared: Declared) -> Feature:
    return Feature(
        name=name,
        kind=declared.kind,
        has_numbers=summary.has_numbers and declared.kind != "text",
        centre=summary.centre,
        scale=summary.scale,
        factor=_OF_A_SIGN if summary.is_mostly_zero else 1.0,
        has_gaps=summary.has_gaps,
        buckets=summary.buckets,
        has_calendar=declared.kind == "date",
    )
