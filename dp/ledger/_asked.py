"""Which planned queries were asked: each once, in all processes of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from dp.accounting import Query
from dp.exceptions import BudgetExhaustedError, LedgerError
from dp.plan import PrivacyPlan


__all__ = ("Asked", "planned_query")


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """The queries that were asked, and by whom.

    Attributes:
        segments: The id of the process that asked, by the name of the query.
    """

    segments: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_state(cls, state_dict: Mapping[str, Any]) -> "Asked":
        """Return what a ledger's state says was asked.

        Raises:
            LedgerError: If it is damaged.
        """
        segments = state_dict.get("queries", {})
        if not isinstance(segments, Mapping) or not all(
            isinstance(text, str) for pair in segments.items() for text in pair
        ):
            raise LedgerError(
                "the ledger does not list the queries that were asked by their names: it"
                " is damaged"
            )
        return cls(dict(segments))

    def once(self, name: str, segment: str) -> "Asked":
        """Return the queries with one more.

        Raises:
            BudgetExhaustedError: If it was asked before.
        """
        if name in self.segments:
            raise BudgetExhaustedError(
                f"query {name!r} was asked already, and was planned once; keep its"
                " answer, or plan as many queries as are asked"
            )
        return Asked({**self.segments, name: segment})

    def includes(self, other: "Asked") -> bool:
        """Whether all that *other* says was asked is known here."""
        return other.segments.items() <= self.segments.items()

    def merged(self, other: "Asked") -> tuple["Asked", list[str]]:
        """Return the queries of both, and those that both asked, each for itself.

        A query that two processes asked was released twice and planned once. One that is
        known from a common checkpoint has one process, and counts once.
        """
        twice = sorted(
            name
            for name in self.segments.keys() & other.segments.keys()
            if self.segments[name] != other.segments[name]
        )
        return Asked({**other.segments, **self.segments}), twice


def planned_query(plan: PrivacyPlan, name: str, num_values: int) -> Query:
    """Return the query of that name.

    Raises:
        ValueError: If *plan* has none, or one of other size.
    """
    planned = {query.name: query for query in plan.queries}
    if name not in planned:
        raise ValueError(
            f"query {name!r} is not planned; planned are {sorted(planned)}: plan with"
            f" plan_for(..., queries=[dp.Query(name={name!r}, noise_multiplier=...)])"
        )
    query = planned[name]
    if query.num_values != num_values:
        raise ValueError(
            f"query {name!r} is planned with num_values={query.num_values}, and the"
            f" answer has {num_values}; plan with num_values={num_values}"
        )
    return query
