"""Names shared by the stages: aliases and literals, no behaviour."""

from typing import Literal


__all__ = ("Assignment", "NeighboringRelation", "TabularModel", "Task")

Assignment = Literal["coin", "position"]
NeighboringRelation = Literal["add_or_remove_one", "replace_one", "zero_out"]
TabularModel = Literal["linear", "mlp"]
Task = Literal["classification", "regression"]
