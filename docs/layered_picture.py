"""Draw names in layers, and arrows downwards between them, as SVG.

An arrow over several layers gets a place of its own in each that it passes, and every
place moves to the middle of what it is linked to (Sugiyama et al. 1981).
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple


_DOWN, _HEIGHT, _GAP, _MARGIN = 62, 30, 22, 14
_SWEEPS, _INWARD = 80, 0.8


class Place(NamedTuple):
    """A name in a layer, or where the arrow from it to *toward* passes a layer."""

    layer: int
    name: str
    toward: str = ""

    @property
    def width(self) -> int:
        """How many pixels it takes."""
        return 4 if self.toward else max(70, 8 * len(self.name) + 18)

    @property
    def top(self) -> int:
        """Where it begins, in pixels from the top of the picture."""
        return _MARGIN + self.layer * _DOWN


def draw(
    layers: Sequence[Sequence[str]],
    arrows: Mapping[str, Collection[str]],
    *,
    title: str,
    marked: Collection[str] = (),
) -> str:
    """Return the picture.

    Args:
        layers: The names of each layer, from the top.
        arrows: From each name to names in layers below.
        title: What the picture shows, for readers who cannot see it.
        marked: Names whose boxes are coloured.
    """
    rows, chains = _places(layers, arrows)
    middle = _middles(rows, chains)
    width = max(middle[p] + p.width // 2 for row in rows for p in row) + _MARGIN
    height = (len(rows) - 1) * _DOWN + _HEIGHT + 2 * _MARGIN
    bands = [
        f'<rect x="0" y="{row[0].top - 8}" width="{width}" height="{_HEIGHT + 16}"'
        ' fill="#f4f4f4"/>'
        for row in rows
    ]
    lines = [_arrow(chain, middle) for chain in chains]
    boxes = [
        _box(place, middle[place], "#cfe3f7" if place.name in marked else "#ffffff")
        for row in rows
        for place in row
        if not place.toward
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="13">\n'
        f"<title>{title}</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#555555"/>'
        "</marker></defs>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join([*bands, *lines, *boxes])
        + "\n</svg>\n"
    )


def _places(
    layers: Sequence[Sequence[str]], arrows: Mapping[str, Collection[str]]
) -> tuple[list[list[Place]], list[list[Place]]]:
    """Return the places of every layer, and every arrow as the places it passes."""
    rows = [[Place(i, name) for name in names] for i, names in enumerate(layers)]
    of_name = {place.name: place for row in rows for place in row}
    chains = []
    for start in of_name.values():
        for end in sorted(of_name[name] for name in arrows.get(start.name, ())):
            passed = [
                Place(i, start.name, end.name)
                for i in range(start.layer + 1, end.layer)
            ]
            for place in passed:
                rows[place.layer].append(place)
            chains.append([start, *passed, end])
    return rows, chains


def _middles(
    rows: list[list[Place]], chains: Sequence[Sequence[Place]]
) -> dict[Place, int]:
    """Return the horizontal middle of each place: near its links, clear of others."""
    linked: dict[Place, list[Place]] = defaultdict(list)
    for chain in chains:
        for upper, lower in pairwise(chain):
            linked[upper].append(lower)
            linked[lower].append(upper)
    at = {
        place: 90.0 * (k - (len(row) - 1) / 2)
        for row in rows
        for k, place in enumerate(row)
    }
    for _ in range(_SWEEPS):
        for row in rows:
            for place in row:
                if near := linked[place]:
                    at[place] = _INWARD * sum(at[other] for other in near) / len(near)
            _keep_apart(row, at)
    left = min(at[place] - place.width / 2 for row in rows for place in row)
    return {place: round(at[place] - left) + _MARGIN for row in rows for place in row}


def _keep_apart(row: list[Place], at: dict[Place, float]) -> None:
    """Put a row in order of its places' wishes, and move them apart evenly."""
    row.sort(key=lambda place: (at[place], place))
    wished = sum(at[place] for place in row) / len(row)
    for left, right in pairwise(row):
        least = at[left] + (left.width + right.width) / 2 + _GAP
        at[right] = max(at[right], least)
    shift = wished - sum(at[place] for place in row) / len(row)
    for place in row:
        at[place] += shift


def _arrow(chain: Sequence[Place], middle: Mapping[Place, int]) -> str:
    start, *passed, end = chain
    x, y = middle[start], start.top + _HEIGHT
    path = [f"M{x},{y}"]
    for place in passed:
        below_x, below_y = middle[place], place.top
        path.append(_curve(x, y, below_x, below_y))
        x, y = below_x, below_y + _HEIGHT
        path.append(f"L{x},{y}")
    path.append(_curve(x, y, middle[end], end.top - 1))
    return (
        f'<path d="{" ".join(path)}" fill="none" stroke="#555555"'
        ' marker-end="url(#tip)"/>'
    )


def _curve(x: int, y: int, to_x: int, to_y: int) -> str:
    half = (y + to_y) // 2
    return f"C{x},{half} {to_x},{half} {to_x},{to_y}"


def _box(place: Place, x: int, fill: str) -> str:
    return (
        f'<rect x="{x - place.width // 2}" y="{place.top}" width="{place.width}"'
        f' height="{_HEIGHT}" rx="5" fill="{fill}" stroke="#444444"/>'
        f'<text x="{x}" y="{place.top + 20}" text-anchor="middle">{place.name}</text>'
    )
