"""The draws that a loader makes while it is iterated over, whatever their law is."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, final

from dp._keystream import RepeatedKeys
from dp.sampling._ticket import Draw, PassStep
from dp.sampling._units import UnitIndex


__all__ = ("Law", "RandomDraws")

Law = Callable[[int], tuple[Sequence[int], PassStep | None]]
"""Given a number of units, returns those of the next draw, by position, and its pass."""


@final
class RandomDraws(Iterator[list[int]]):
    """The rows of every draw that holds one; ``made`` has all draws, also empty ones.

    It knows the loader's dataset and not the loader: torch's iterator keeps it, and
    workers of an iterator in a reference cycle are stopped late.

    Args:
        dataset: What rows are drawn from.
        units: The unit of each row; None if every row is a unit.
        share: This rank's number, and how many ranks there are. Each rank draws from
            every n-th unit, so that the rows of a unit stay together.
        law: Which units are in the next draw.
        num_draws: How many draws there are.
        keys: Keys of a debugging seed; None for those of the operating system.
    """

    def __init__(
        self,
        dataset: Any,
        units: UnitIndex | None,
        share: tuple[int, int],
        law: Law,
        *,
        num_draws: int,
        keys: RepeatedKeys | None,
    ) -> None:
        self.made: deque[Draw] = deque()
        self._dataset = dataset
        self._units = units
        self._first, self._step = share
        self._law = law
        self._num_left = num_draws
        self._keys = keys

    def __next__(self) -> list[int]:
        while self._num_left:
            self._num_left -= 1
            with nullcontext() if self._keys is None else self._keys.used():
                self.made.append(draw := self._draw())
            if draw.rows:
                return list(draw.rows)
        raise StopIteration

    def _draw(self) -> Draw:
        index = self._units
        num_units = len(self._dataset) if index is None else index.num_units
        share = range(self._first, num_units, self._step)
        positions, in_pass = self._law(len(share))
        units = [share[i] for i in positions]
        rows, owners = (units, None) if index is None else index.select(units)
        return Draw(rows, owners, in_pass, self._step)
