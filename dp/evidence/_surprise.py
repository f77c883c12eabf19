"""Losses unlike all before: a gate may just have opened.

Shapes: ``B`` losses.
"""

import math
from typing import Final, final

import numpy as np
from torch import Tensor


__all__ = ("Surprises", "spread_of")

_RATIO: Final = 2.0  # Of a record to the one before.
_STEPS_A_LOOK: Final = 100
_AT_MOST_AT_FIRST: Final = 3
_NUMPYS_LEAST: Final = 4  # Bytes of a number: it has no bfloat16.


@final
class Surprises:
    """The record of the largest loss over the others' mean, and the looks it allows."""

    __slots__ = ("_looks", "_record")

    def __init__(self) -> None:
        self._record, self._looks = 0.0, 0

    def admits(self, spread: float, step: int) -> bool:
        """Whether a batch of this spread is to be looked at, beside those that are due.

        Training is no reason for many looks: they are at most one in 100 steps.
        """
        if spread <= _RATIO * self._record:
            return False
        self._record = spread
        if self._looks >= _AT_MOST_AT_FIRST + step // _STEPS_A_LOOK:
            return False
        self._looks += 1
        return True


def spread_of(losses_B: Tensor) -> float:
    """Return the largest loss over the mean of the others; infinite if one is not finite.

    0 of fewer than two losses.
    """
    num_losses = losses_B.numel()
    if num_losses < 2:  # noqa: PLR2004 -- the largest and another
        return 0.0
    wide = losses_B.detach().flatten()
    if wide.dtype.itemsize < _NUMPYS_LEAST:
        wide = wide.float()
    values = np.abs(wide.numpy())
    largest, total = float(values.max()), float(values.sum())
    if not math.isfinite(total):
        return math.inf
    others = (total - largest) / (num_losses - 1)
    return largest / others if others > 0 else 0.0
