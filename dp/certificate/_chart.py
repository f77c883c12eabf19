"""Line and bar charts as plain numbers, for a template to draw as SVG.

Scales, ticks and places are computed here, in units of the drawing; colours and fonts
are the page's, so that a chart follows a dark screen and a printer alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, final


__all__ = ("Bar", "Chart", "Line", "Mark", "ticks")

WIDTH: Final = 420
HEIGHT: Final = 250
_LEFT: Final = 46
_RIGHT: Final = 14
_TOP: Final = 22
_BOTTOM: Final = 40
_NUM_TICKS: Final = 5
_ROOM: Final = 1.08  # Above the highest value.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points that are connected, and what they are.

    Attributes:
        points: Pairs of x and y.
        label: What the legend calls it.
        style: ``"main"``, ``"other"`` or ``"rival"``: the class of the template.
    """

    points: Sequence[tuple[float, float]]
    label: str
    style: str = "main"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar, from 0 up to a value."""

    label: str
    value: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A line across the chart at a value that matters, such as a target."""

    value: float
    label: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of lines or of bars, whose x axis begins at 0.

    Attributes:
        title: What it shows.
        x_label: What is across.
        y_label: What is up.
        lines: The lines, if it is one of lines.
        bars: The bars, if it is one of bars.
        targets: Values of y that are marked, in ascending order.
        end: A value of x that is marked.
        lowest: Where the y axis begins; None lets the data decide.
        highest: Where it may end at most; None lets the data decide.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    targets: Sequence[Mark] = ()
    end: Mark | None = None
    lowest: float | None = 0.0
    highest: float | None = None
    width: int = field(default=WIDTH, init=False)
    height: int = field(default=HEIGHT, init=False)

    @property
    def left(self) -> int:
        """Where the plot begins."""
        return _LEFT

    @property
    def right(self) -> int:
        """Where it ends."""
        return WIDTH - _RIGHT

    @property
    def top(self) -> int:
        """Where its upper edge is."""
        return _TOP

    @property
    def bottom(self) -> int:
        """Where its lower edge is; y grows downwards."""
        return HEIGHT - _BOTTOM

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Places and words of the ticks across."""
        if self.bars:
            return [(self._middle(i), bar.label) for i, bar in enumerate(self.bars)]
        low, high = self._across()
        return [(self.x(tick), _plain(tick)) for tick in ticks(low, high)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Places and words of the ticks up."""
        return [(self.y(tick), _plain(tick)) for tick in ticks(*self._up())]

    @property
    def paths(self) -> list[tuple[Line, str]]:
        """Each line, and its points as SVG has them."""
        return [
            (line, " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line.points))
            for line in self.lines
        ]

    @property
    def boxes(self) -> list[tuple[Bar, float, float, float]]:
        """Each bar, with its left edge, its upper edge and its width."""
        width = 0.5 * (self.right - self.left) / max(1, len(self.bars))
        return [
            (bar, self._middle(i) - width / 2, self.y(bar.value), width)
            for i, bar in enumerate(self.bars)
        ]

    def x(self, value: float) -> float:
        """Return where a value is across."""
        low, high = self._across()
        return _LEFT + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return where a value is up."""
        low, high = self._up()
        share = (value - low) / (high - low)
        return self.bottom - share * (self.bottom - self.top)

    def _middle(self, index: int) -> float:
        return _LEFT + (index + 0.5) / len(self.bars) * (self.right - self.left)

    def _across(self) -> tuple[float, float]:
        last = max((x for line in self.lines for x, _ in line.points), default=0.0)
        return 0.0, last or 1.0

    def _up(self) -> tuple[float, float]:
        ys = [y for line in self.lines for _, y in line.points if math.isfinite(y)]
        ys += [bar.value for bar in self.bars]
        ys += [mark.value for mark in self.targets]
        ys = ys or [0.0, 1.0]
        top = max(ys)
        low = min(ys) if self.lowest is None else self.lowest
        if self.lowest is None:
            low -= (_ROOM - 1) * (top - low)
        high = low + (top - low) * _ROOM
        if self.highest is not None:
            high = min(high, self.highest)
        return low, high if high > low else low + 1


def ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers between two.

    >>> ticks(0, 3.2)
    [0.0, 1.0, 2.0, 3.0]
    >>> ticks(0.42, 0.97)
    [0.6, 0.8]
    """
    rough = (high - low) / _NUM_TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def _plain(number: float) -> str:
    """Return a number as people write it: no powers of ten where there need be none.

    >>> _plain(20000.0), _plain(0.5), _plain(3.0)
    ('20,000', '0.5', '3')
    """
    return f"{number:,.10g}"
