"""A write-ahead record of releases, and the budget that they are charged to."""

from dp.ledger._budget import void
from dp.ledger._charge import Charge
from dp.ledger._claim import remaining, rest_of_plan
from dp.ledger._ledger import Ledger
from dp.ledger._meter import Kind, Meter
from dp.ledger._state import sound_charge


__all__ = (
    "Charge",
    "Kind",
    "Ledger",
    "Meter",
    "remaining",
    "rest_of_plan",
    "sound_charge",
    "void",
)
