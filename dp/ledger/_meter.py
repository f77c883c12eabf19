"""Count releases where their noise is added, and compare a ledger with the count.

A ledger decides what to charge, counts equal charges together, merges states and adds up
what they cost. None of that is needed to say which charges there must be: for every
release that got noise, one of no more noise and no smaller probability. So each is counted
here as well, with the numbers that the noise stage and the loader used, and each charge of
a state that is loaded; a ledger that holds less than that is damaged.

Example: 40 releases had sigma 1 and 60 had sigma 2. A ledger of 99 charges has lost one, and
one of 30 at sigma 1 and 70 at sigma 2 was charged too little for ten. 100 at sigma 1 cover
all.

Not counted: passes and rounds, which are charged whole, queries and statistics, and what
the witness of releases does not see (:mod:`dp._mechanism.witness`).
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from copy import copy
from itertools import accumulate
from typing import Any, Final, NamedTuple, Self, final

from dp.accounting import Truncation
from dp.exceptions import LedgerError
from dp.ledger._charge import Charge


__all__ = ("Kind", "Meter")

_ROUNDING: Final = 1e-12  # Of a standard deviation that is divided by its norm.

Segments = Mapping[str, tuple[Charge, ...]]


class Kind(NamedTuple):
    """The numbers of a release that decide what it costs."""

    noise_multiplier: float
    sampling_probability: float
    truncation: Truncation | None

    @classmethod
    def of(cls, charge: Charge) -> Self:
        """Return what a charge is accounted as, be that more noise than was used."""
        composed = charge.to_release()
        sigma, q = composed.noise_multiplier, composed.sampling_probability
        return cls(sigma, q, composed.truncation)


@final
class Meter:
    """What each process released by its own count, and what loaded states charged.

    Args:
        unit_of_privacy: Whose data the charges protect.
    """

    def __init__(self, unit_of_privacy: str) -> None:
        self._unit = unit_of_privacy
        self._released: dict[str, Counter[Kind]] = {}
        self._loaded: dict[str, Counter[Kind]] = {}
        self._has_failed = False

    def count(self, segment: str, kind: Kind) -> None:
        """Count one release of the process that charges under *segment*."""
        self._released.setdefault(segment, Counter())[kind] += 1

    def check_unit(self, state_dict: Mapping[str, Any]) -> None:
        """Raise if a state's charges protect another unit: they bound nothing for this.

        Raises:
            LedgerError: Then.
        """
        # States of earlier versions of this package do not say their unit.
        if state_dict.get("unit_of_privacy", self._unit) != self._unit:
            raise LedgerError(
                f"the state protects {state_dict['unit_of_privacy']!r}, and the plan of"
                f" this optimizer {self._unit!r}; what was charged for one bounds nothing"
                " for the other. Build the optimizer with the old plan to go on"
            )

    def load(self, segments: Segments, state_dict: Mapping[str, Any]) -> None:
        """Count what a state charged: of several of one segment, the most of each kind.

        Raises:
            LedgerError: If the state protects another unit; nothing is counted.
        """
        self.check_unit(state_dict)
        for key, segment in segments.items():
            charged = _counts(segment)
            self._loaded[key] = self._loaded.get(key, charged) | charged
        self._has_failed |= state_dict.get("failure") is not None

    def misses(self, segments: Segments, *, failure: str | None) -> bool:
        """Whether charges lack one that was counted, or a failure that was loaded."""
        return (self._has_failed and failure is None) or any(
            not _cover(_counts(segments.get(key, ())), counted)
            for counts in (self._released, self._loaded)
            for key, counted in counts.items()
        )

    def __copy__(self) -> "Meter":
        fork = Meter(self._unit)
        # Of lists, since another thread may count meanwhile.
        fork._released = {key: copy(c) for key, c in [*self._released.items()]}
        fork._loaded = {key: copy(c) for key, c in [*self._loaded.items()]}
        fork._has_failed = self._has_failed
        return fork


def _counts(segment: tuple[Charge, ...]) -> Counter[Kind]:
    counts = Counter[Kind]()
    for charge in segment:
        counts[Kind.of(charge)] += charge.count
    return counts


def _cover(charged: Counter[Kind], counted: Counter[Kind]) -> bool:
    """Whether of no more noise than any, as many were charged as were counted.

    For each probability and truncation that was counted, of all charges that are of no
    smaller one and of the same.
    """
    for q, cut in {(kind.sampling_probability, kind.truncation) for kind in counted}:
        sigmas, needed = _up_to(counted, q, cut)
        of_charges, had = _up_to(charged, q, cut)
        for sigma, number in zip(sigmas, needed, strict=True):
            place = bisect_right(of_charges, sigma * (1 + _ROUNDING))
            if (had[place - 1] if place else 0) < number:
                return False
    return True


def _up_to(
    counts: Counter[Kind], q: float, cut: Truncation | None
) -> tuple[list[float], list[int]]:
    """Return noise multipliers in their order, and how many have at most each."""
    sizes = sorted(
        (kind.noise_multiplier, number)
        for kind, number in counts.items()
        if kind.sampling_probability >= q and kind.truncation == cut
    )
    return [sigma for sigma, _ in sizes], [*accumulate(n for _, n in sizes)]
