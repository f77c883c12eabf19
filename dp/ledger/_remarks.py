"""What a certificate has to say of charges besides their numbers.

Whoever resumes a run, or shares its ledger, saw nothing of how others released. So what
they have to state is kept with their charges, and goes wherever those go.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from dp.exceptions import LedgerError
from dp.ledger._advisories import ADVISORIES


__all__ = ("Remarks", "weakest")

_Generator = Literal["os", "fast", "debug"]
_WEAKER: Final = ("os", "fast", "debug")  # Each than those before it.
_NAME: Final = "remarks"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Remarks:
    """What has to be said of all charges of a ledger together.

    Attributes:
        num_advisories: How many advisories the releases of dp that charged knew, the
            fewest of them.
        declared_public: The tensors that were declared to be no data, one description
            each.
        assumptions: What has to be true of steps, one sentence each.
        rng: The weakest source of noise.
        num_parameters: The most numbers that one release noised.
    """

    num_advisories: int = len(ADVISORIES)
    declared_public: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    rng: _Generator = "os"
    num_parameters: int = 0

    @classmethod
    def of_state(cls, state_dict: Mapping[str, Any]) -> "Remarks":
        """Return the remarks of a ledger's state.

        Raises:
            LedgerError: If they are damaged.
        """
        known = state_dict.get("advisories", 0)  # Version 1 was written before any.
        if not isinstance(known, int) or known < 0:
            raise LedgerError(f"the ledger states {known!r} advisories: it is damaged")
        declared = _strings(
            state_dict.get("declared_public", []),
            "the tensors that were declared public by their descriptions",
        )
        others = state_dict.get(_NAME, {})
        if not isinstance(others, Mapping):
            raise LedgerError(f"the ledger remarks {others!r}: it is damaged")
        rng, most = others.get("rng", "os"), others.get("num_parameters", 0)
        if rng not in _WEAKER or not isinstance(most, int) or most < 0:
            raise LedgerError(
                f"the ledger states noise by {rng!r} on {most!r} numbers: it is damaged"
            )
        return cls(
            num_advisories=known,
            declared_public=declared,
            assumptions=_strings(others.get("assumptions", []), "what is assumed"),
            rng=rng,
            num_parameters=most,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return them in plain types, without what says nothing."""
        state: dict[str, Any] = {"advisories": self.num_advisories}
        if self.declared_public:
            state["declared_public"] = list(self.declared_public)
        others: dict[str, Any] = {
            "assumptions": list(self.assumptions),
            "rng": self.rng,
            "num_parameters": self.num_parameters,
        }
        return state if others == _NONE else {**state, _NAME: others}

    def joined(self, other: "Remarks") -> "Remarks":
        """Return what has to be said of the charges of both."""
        return Remarks(
            num_advisories=min(self.num_advisories, other.num_advisories),
            declared_public=_union(self.declared_public, other.declared_public),
            assumptions=_union(self.assumptions, other.assumptions),
            rng=weakest(self.rng, other.rng),
            num_parameters=max(self.num_parameters, other.num_parameters),
        )


_NONE: Final = {"assumptions": [], "rng": "os", "num_parameters": 0}


def weakest(*sources: _Generator) -> _Generator:
    """Return the source of noise of which the least is known.

    >>> weakest("fast", "os")
    'fast'
    """
    return max(sources, key=_WEAKER.index)


def _strings(rows: object, what: str) -> tuple[str, ...]:
    if not isinstance(rows, list) or not all(isinstance(one, str) for one in rows):
        raise LedgerError(f"the ledger does not list {what}: it is damaged")
    return tuple(rows)


def _union(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*ours, *theirs]))
