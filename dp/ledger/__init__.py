"""What was released, written down before it is released."""

from dp.ledger._charge import Charge
from dp.ledger._ledger import Ledger, void


__all__ = ("Charge", "Ledger", "void")
