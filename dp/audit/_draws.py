"""Are coins independent, and do they win as often as was charged?

Shapes: ``T`` draws, ``M`` records, ``L`` coins in a row, ``N`` rows.
"""

import math
from dataclasses import dataclass
from typing import final

from dp._reports import Finding
from dp.audit._statistics import binomial_p, finding, joint_p, spread_p
from dp.audit._subject import Bools


__all__ = ("Draws",)


@final
@dataclass(frozen=True, slots=True)
class Draws:
    """Which records were in each batch, [T, M], and the claimed probability."""

    taken: Bools
    q: float

    def rate(self) -> Finding:
        """The number of inclusions is binomial."""
        total = int(self.taken.sum())
        return finding(
            "sampling: rate",
            binomial_p(total, self.taken.size, self.q),
            f"{total / self.taken.size:.5f}, {self.q:g} was charged",
        )

    def sizes(self) -> Finding:
        """Sizes of batches vary as binomials do; those of other schemes may not."""
        num_records = self.taken.shape[1]
        sizes = self.taken.sum(axis=1)
        deviations = sizes - num_records * self.q
        scale = math.sqrt(num_records * self.q * (1 - self.q))
        return finding(
            "sampling: sizes of batches",
            spread_p(sizes, num_records, self.q),
            f"standard deviation {float(deviations.std()):.1f}, {scale:.1f} if Poisson",
        )

    def every_record(self) -> Finding:
        """The most and the least frequent record are not too much so."""
        num_steps, num_records = self.taken.shape
        counts = self.taken.sum(axis=0)
        least, most = int(counts.min()), int(counts.max())
        p = min(binomial_p(count, num_steps, self.q) for count in (least, most))
        return finding(
            "sampling: every record alike",
            min(1.0, p * num_records),
            f"drawn {least} to {most} times in {num_steps} steps",
        )

    def in_a_row(self, claim: str, coins_LN: Bools) -> Finding:
        """A coin wins together with the next one as often as independent ones.

        Args:
            claim: What is tested.
            coins_LN: Coins in rows, of which each column is one.
        """
        length, count = coins_LN.shape
        together = int((coins_LN[:-1] & coins_LN[1:]).sum())
        share = together / max(1, (length - 1) * count)
        p = joint_p(together, probability=self.q, length=length, count=count)
        return finding(claim, p, f"{share:.5f}, {self.q**2:g} if so")
