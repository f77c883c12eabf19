"""The clipping norms of releases that are counted together though their norm moved.

With a norm that follows a quantile, every step has another one. None of them changes
what a step costs, since noise is relative to it. So a row of the ledger states between
which norms its releases were, and the ledger does not grow with the steps.
"""

from dataclasses import dataclass
from typing import final

from dp import _checks


__all__ = ("NormRange",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NormRange:
    """The least and the largest clipping norm of some releases.

    Attributes:
        least: The least one, in the unit of gradients.
        largest: The largest one.
    """

    least: float
    largest: float

    def around(self, norm: float) -> "NormRange":
        """Return these norms and one more."""
        return NormRange(least=min(self.least, norm), largest=max(self.largest, norm))

    def includes(self, other: "NormRange") -> bool:
        """Whether *other* lies within these norms."""
        return self.around(other.least).around(other.largest) == self

    def check(self, norm: float) -> None:
        """Raise if *norm*, the last one, is not among them.

        Raises:
            TypeError, ValueError: If it is not, or if they are no norms.
        """
        _checks.positive(least=self.least)
        _checks.positive(largest=self.largest)
        if not self.least <= norm <= self.largest:
            raise ValueError(f"its last norm {norm!r} is not within {self}")
