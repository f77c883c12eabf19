"""What a look may find."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, final, get_args


__all__ = ("Seen", "Verdict", "worst")

Verdict = Literal[
    "alone",
    "too few",
    "unclear",
    "carried",
    "mixed",
    "sized",
    "steered",
    "sized gradients",
]
"""What a look saw.

``"alone"``: no loss changed with other examples. ``"mixed"``: one did. ``"carried"``:
one changed with the examples of an earlier evaluation. ``"sized"``: all did with how
many there are. ``"steered"`` and ``"sized gradients"``: losses stayed, and gradients did
not. ``"unclear"``: the function does not repeat itself, draws random numbers by what its
data are, or failed. ``"too few"``: there was one example, and nobody to exchange.
"""

_SEVERITY: Final = get_args(Verdict)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst of what several exchanges showed."""
    return max(verdicts, key=_SEVERITY.index)


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found.

    Attributes:
        verdict: What becomes of losses and gradients with other examples.
        has_other_sizes: Whether losses were compared with those of smaller batches.
        written: Buffers that were seen to hold data of the batch.
    """

    verdict: Verdict
    has_other_sizes: bool = False
    written: list[str] = field(default_factory=list)
