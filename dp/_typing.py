"""Names shared by the stages: aliases and literals, no behaviour."""

from typing import Literal


__all__ = ("NeighboringRelation", "TabularModel", "Task")

NeighboringRelation = Literal["add_or_remove_one", "replace_one", "zero_out"]
TabularModel = Literal["linear", "mlp"]
Task = Literal["classification", "regression"]
