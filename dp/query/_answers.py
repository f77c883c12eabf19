"""What queries return: noisy numbers, and how noisy they are.

All of it is public: functions of what was released.
"""

from dataclasses import dataclass
from typing import final

from dp import _checks


__all__ = ("Answer", "Histogram")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A noisy number.

    Attributes:
        name: The query.
        value: The answer.
        stddev: Standard deviation of the noise in it.
    """

    name: str
    value: float
    stddev: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Noisy counts of cells.

    Attributes:
        name: The query.
        edges: The edges of the cells, in rising order: one more than there are cells.
        counts: How many values lie in each cell, with noise; some may be negative.
        stddev: Standard deviation of the noise in every count.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    stddev: float

    def quantile(self, share: float) -> float:
        """Return about the value that a share of all values is below.

        Any number of quantiles may be read off. Within a cell values are taken to be
        uniform, and negative counts for 0.

        >>> h = Histogram(name="h", edges=(0.0, 1.0, 3.0), counts=(50.0, 50.0), stddev=1.0)
        >>> h.quantile(0.75)
        2.0

        Raises:
            ValueError: If *share* is not in (0, 1).
        """
        _checks.open_unit(share=share)
        counts = [max(0.0, count) for count in self.counts]
        left = share * sum(counts)
        cells = zip(self.edges[:-1], self.edges[1:], counts, strict=True)
        for low, high, count in cells:
            if count > 0 and left <= count:
                return low + (high - low) * left / count
            left -= count
        return self.edges[-1]
