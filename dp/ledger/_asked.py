"""Which planned queries were asked: each once, in all processes of a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
        segments: The id of the process that asked each query.
    """

    segments: Mapping[Query, str] = field(default_factory=dict)

    @classmethod
    def of_state(cls, state_dict: Mapping[str, Any], plan: PrivacyPlan) -> "Asked":
        """Return what a ledger's state says was asked.

        Raises:
            LedgerError: If it is damaged, or if *plan* does not pay for it.
        """
        try:
            segments = {
                Query(**row["query"]): str(row["segment"])
                for row in state_dict.get("queries", ())
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"the ledger does not list the queries that were asked: {error}"
            ) from error
        unpaid = [query for query in segments if query not in plan.queries]
        if unpaid:
            raise LedgerError(
                f"the state asked {unpaid}, which the plan of this optimizer does not pay"
                " for; plan with them too (queries=[...]) to go on"
            )
        return cls(segments)

    def rows(self) -> list[dict[str, Any]]:
        """Return them in plain types."""
        return [
            {"query": asdict(query), "segment": segment}
            for query, segment in self.segments.items()
        ]

    def once(self, query: Query, segment: str) -> "Asked":
        """Return the queries with one more.

        Raises:
            BudgetExhaustedError: If it was asked before.
        """
        if query in self.segments:
            raise BudgetExhaustedError(
                f"query {query.name!r} was asked already, and was planned once; keep its"
                " answer, or plan as many queries as are asked"
            )
        return Asked({**self.segments, query: segment})

    def includes(self, other: "Asked") -> bool:
        """Whether all that *other* says was asked is known here."""
        return other.segments.items() <= self.segments.items()

    def merged(self, other: "Asked") -> tuple["Asked", list[str]]:
        """Return the queries of both, and those that both asked, each for itself.

        A query that two processes asked was released twice and planned once. One that is
        known from a common checkpoint has one process, and counts once.
        """
        twice = sorted(
            query.name
            for query in self.segments.keys() & other.segments.keys()
            if self.segments[query] != other.segments[query]
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
