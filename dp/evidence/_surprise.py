"""Losses unlike all before: a gate may just have opened.

Shapes: ``B`` losses.
"""

import math
from typing import Final, final

from torch import Tensor


__all__ = ("Surprises", "spread_of")

_RATIO: Final = 2.0  # Of a record to the one before.
_STEPS_A_LOOK: Final = 100
_AT_MOST_AT_FIRST: Final = 3
_SHORT: Final = 512


@final
class Surprises:
    """The record of the largest loss over the others' mean, and the looks it allows."""

    __slots__ = ("_looks", "_record")

    def __init__(self) -> None:
        self._record, self._looks = 0.0, 0

    def breaks_record(self, spread: float) -> bool:
        """Whether it is more than twice the record, which it then is."""
        if spread <= _RATIO * self._record:
            return False
        self._record = spread
        return True

    def admits(self, spread: float, step: int) -> bool:
        """Whether a batch of this spread is to be looked at, beside those that are due.

        Training is no reason for many looks: they are at most one in 100 steps.
        """
        if not self.asks(spread, step):
            return False
        self.count_look()
        return True

    def asks(self, spread: float, step: int) -> bool:
        """Whether :meth:`admits` would; the look is not counted yet."""
        is_left = self._looks < _AT_MOST_AT_FIRST + step // _STEPS_A_LOOK
        return self.breaks_record(spread) and is_left

    def count_look(self) -> None:
        """Count a look, on every rank that takes part in it."""
        self._looks += 1


def spread_of(losses_B: Tensor) -> float:
    """Return the largest loss over the mean of the others; infinite if one is not finite.

    0 of fewer than two losses.
    """
    num_losses = losses_B.numel()
    if num_losses < 2:  # noqa: PLR2004 -- the largest and another
        return 0.0
    if (
        num_losses <= _SHORT and losses_B.dim() == 1
    ):  # A few calls of torch take longer.
        sizes = losses_B.tolist()
        if min(sizes) < 0:
            sizes = list(map(abs, sizes))
        largest, total = max(sizes), sum(sizes)
    else:
        sizes_B = losses_B.detach().abs().double()
        largest, total = float(sizes_B.max()), float(sizes_B.sum())
    if not math.isfinite(total):
        return math.inf
    others = (total - largest) / (num_losses - 1)
    return largest / others if others > 0 else 0.0
