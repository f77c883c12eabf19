"""What a private optimizer owes: its ledger, from the first charge to what it states.

:class:`AccountedStep` makes the mechanism of a run with the ledger that pays for it,
states what it cost, and lets no state in or out without it. A witness of releases sees
that they are charged; it cannot see what was charged before a state was saved.
"""

from collections.abc import Mapping
from typing import Any

from dp._mechanism.mechanism import Mechanism
from dp.accounting import Guarantee
from dp.clipping import Clipping
from dp.exceptions import LedgerError
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.optimizer import _checkpoint as carried
from dp.optimizer._private_step import PrivateStep
from dp.per_sample import Declared
from dp.plan import PrivacyPlan
from dp.sampling import TicketedLoader


__all__ = ("AccountedStep",)


class AccountedStep(PrivateStep):
    """Base class of the private optimizer: what was spent, and where that is kept."""

    def _begin(
        self,
        plan: PrivacyPlan,
        continue_from: object,
        public: Mapping[str, Declared],
        *,
        loader: TicketedLoader | None,
        clipping: Clipping,
        noise: GaussianNoise,
    ) -> None:
        """Make the mechanism of a run that goes on from what was charged before.

        Raises:
            TypeError: If *continue_from* is neither an optimizer nor a ledger.
            LedgerError: If what it charged protects another unit.
        """
        ledger = _ledger_for(plan, continue_from)
        ledger.declare_public(public)
        self.mechanism: Mechanism = Mechanism(
            plan=plan,
            clipping=clipping,
            noise=noise,
            ledger=ledger,
            loader=loader,
            public=tuple(public.values()),
        )

    def _compose_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return carried.embed_ledger(state_dict, self.mechanism)

    def _take_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return carried.take_ledgers(state_dict, self.mechanism)

    def load_state_dict_without_ledger(self, state_dict: dict[str, Any]) -> None:
        """Load a state that no private data went into; the ledger stays as it is.

        The caller vouches for it: a certificate cannot see what this state cost.

        Raises:
            LedgerError: If the state has a ledger after all.
        """
        state_dict, ledgers = carried.extract_ledgers(state_dict)
        if ledgers:
            raise LedgerError(
                "the state has a ledger, so private data was used for it; call"
                " load_state_dict, which adds what was spent"
            )
        self.load_state_dict(carried.embed_ledger(state_dict, self.mechanism))

    def spent(self) -> Guarantee:
        """Return what every release so far composes to, at the plan's delta.

        A guarantee only if the number of steps was fixed beforehand: see
        :meth:`guarantee` for what holds whenever the run ends.
        """
        return self.ledger.spent()

    def guarantee(self) -> Guarantee:
        """Return the (epsilon, delta) that holds of the run, whenever it ends.

        That of the whole plan, even after a part of its steps: what was released may
        have decided that the run ends there.
        """
        return self.ledger.guarantee()


def _ledger_for(plan: PrivacyPlan, continue_from: object) -> Ledger:
    """Return a ledger for *plan* that has the charges of an optimizer or a ledger.

    Raises:
        TypeError: If it is neither.
        LedgerError: If it protects another unit.
    """
    if continue_from is None:
        return Ledger(plan)
    earlier = getattr(continue_from, "ledger", continue_from)
    if not isinstance(earlier, Ledger):
        raise TypeError(
            "continue_from must be a DPOptimizer or its ledger, got a"
            f" {type(continue_from).__name__}"
        )
    if earlier.plan == plan:
        return earlier
    ledger = Ledger(plan)
    ledger.load_state_dict(earlier.state_dict())
    return ledger
