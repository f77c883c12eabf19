"""A write-ahead record of releases, and the budget that they are charged to."""

from dp.ledger._charge import Charge
from dp.ledger._claim import remaining
from dp.ledger._ledger import Ledger, void


__all__ = ("Charge", "Ledger", "remaining", "void")
