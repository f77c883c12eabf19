"""Looks that one rank wants, and all ranks make.

A forward pass of a sharded model is a collective, so a rank may evaluate losses again
only where all do. A rank whose losses surprise asks the others, in the exchange before
the release; each looks, before its next losses, at the batch that it kept.
"""

from typing import final

from dp.evidence._evaluated import Evaluated, is_at_hand
from dp.evidence._surprise import Surprises, spread_of


__all__ = ("Together",)


@final
class Together:
    """What this rank kept, and what the ranks ask of each other.

    Args:
        surprises: The record of this rank's losses, and the looks that it allows.

    Attributes:
        asks: Whether this rank wants all of them to look.
    """

    def __init__(self, surprises: Surprises) -> None:
        self.asks: bool = False
        self._surprises = surprises
        self._kept: Evaluated | None = None
        self._unread: Evaluated | None = None  # Its losses are on an accelerator.
        self._was_asked = False

    def keep(self, evaluated: Evaluated, step: int) -> None:
        """Keep a batch in case that a rank asks: this rank's own surprise, or the last.

        Losses on an accelerator are read when the next ones come.
        """
        is_late = not is_at_hand(evaluated.losses)
        read, self._unread = (self._unread, evaluated) if is_late else (evaluated, None)
        if read is not None and not self.asks:
            self._kept = read
            self.asks = self._surprises.asks(spread_of(read.losses.cpu()), step)

    def answer(self, *, asked: bool) -> None:
        """Note whether any rank asked."""
        self.asks, self._was_asked = False, asked

    def take(self) -> Evaluated | None:
        """Return what is to be looked at, if a rank asked since the last time."""
        if not self._was_asked:
            return None
        self._was_asked = False
        self._surprises.count_look()
        kept, self._kept = self._kept, None
        return kept
