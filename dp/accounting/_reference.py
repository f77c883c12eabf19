"""Privacy losses composed by ``dp_accounting``'s own accountants, and nothing else.

An independent check for readers who do not trust the vectorised losses of
:mod:`dp.accounting._sampled_losses` and :mod:`dp.accounting._group_losses`, none of
which is used here.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast, final

from dp._typing import NeighboringRelation
from dp.accounting._dp_events import group_event, neighbors, to_dp_event
from dp.accounting._release import Release


if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    from dp.accounting._trade_off import DeltasAt

__all__ = ("ReferenceAccountant", "compose")

EpsilonAt = Callable[[float], float]  # Of a delta.


def compose(accountant: "PLDAccountant", event: "DpEvent") -> None:
    """Let an accountant compose an event."""
    accountant.compose(event)


@final
class ReferenceAccountant:
    """Instances of ``PLDAccountant`` by what they composed, once each.

    Args:
        compose: Called with an accountant and what it is to compose, which is one kind
            of release.
    """

    def __init__(
        self, compose: Callable[["PLDAccountant", "DpEvent"], None] = compose
    ) -> None:
        self._compose = compose
        self._known: dict[Hashable, PLDAccountant] = {}

    def epsilon_of_example(
        self,
        releases: Sequence[Release],
        relation: NeighboringRelation,
        interval: float,
    ) -> EpsilonAt:
        """Return the epsilon of one example, by delta."""
        return self._of_example(releases, relation, interval).get_epsilon

    def epsilon_of_group(
        self, releases: Sequence[Release], group_size: int, interval: float
    ) -> EpsilonAt:
        """Return the epsilon of a group that is added or removed, by delta."""
        return self._of_group(releases, group_size, interval).get_epsilon

    def deltas_of_example(
        self,
        releases: Sequence[Release],
        relation: NeighboringRelation,
        interval: float,
    ) -> "DeltasAt":
        """Return the delta of one example, by epsilon."""
        return _deltas_of(self._of_example(releases, relation, interval))

    def deltas_of_group(
        self, releases: Sequence[Release], group_size: int, interval: float
    ) -> "DeltasAt":
        """Return the delta of a group that is added or removed, by epsilon."""
        return _deltas_of(self._of_group(releases, group_size, interval))

    def _of_example(
        self,
        releases: Sequence[Release],
        relation: NeighboringRelation,
        interval: float,
    ) -> "PLDAccountant":
        events = (to_dp_event([release]) for release in releases)
        return self._composed((*releases, relation), events, relation, interval)

    def _of_group(
        self, releases: Sequence[Release], group_size: int, interval: float
    ) -> "PLDAccountant":
        events = (group_event(release, group_size) for release in releases)
        key = (*releases, group_size)
        return self._composed(key, events, "add_or_remove_one", interval)

    def _composed(
        self,
        key: Sequence[Hashable],
        events: Iterable["DpEvent"],
        relation: NeighboringRelation,
        interval: float,
    ) -> "PLDAccountant":
        from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

        # A certificate asks for several deltas of the same releases, which take seconds
        # to compose and a moment to read.
        accountant = self._known.get((*key, interval))
        if accountant is None:
            accountant = PLDAccountant(neighbors(relation), interval)
            # One kind of release at a time, so that a progress bar moves.
            for event in events:
                self._compose(accountant, event)
            self._known[*key, interval] = accountant
        return accountant


def _deltas_of(accountant: "PLDAccountant") -> "DeltasAt":
    """Return an accountant's delta by epsilon; it takes several of them at once."""
    at: Any = accountant.get_delta
    return cast("DeltasAt", at)
