"""The table of operations whose parameter gradients a rule computes.

A rule reads what an autograd node saved for its own backward, and the gradient of its
output, and returns the parts of its operands. An operation without a rule
is not an error: see :mod:`dp.per_sample._rules.fallback`.
"""

from collections.abc import Mapping
from typing import Final

from dp.exceptions import UnsupportedOperationError
from dp.per_sample._graph.nodes import check
from dp.per_sample._graph.uses import Use
from dp.per_sample._graph.views import VIEWS
from dp.per_sample._rules.attention import ATTENTION_RULES
from dp.per_sample._rules.context import Rule
from dp.per_sample._rules.custom import custom_rule
from dp.per_sample._rules.image import IMAGE_RULES
from dp.per_sample._rules.index import INDEX_RULES
from dp.per_sample._rules.matrix import MATRIX_RULES
from dp.per_sample._rules.pointwise import POINTWISE_RULES
from dp.per_sample._rules.recurrent import RECURRENT_RULES
from dp.per_sample._rules.sequence import SEQUENCE_RULES


__all__ = ("RULES", "check_torch", "rule_of")

RULES: Final[Mapping[str, Rule]] = {
    **MATRIX_RULES,
    **IMAGE_RULES,
    **SEQUENCE_RULES,
    **POINTWISE_RULES,
    **RECURRENT_RULES,
    **INDEX_RULES,
    **ATTENTION_RULES,
}


def rule_of(use: Use) -> Rule | None:
    """Return the rule for a use, if there is one: a user's own before the table's."""
    return custom_rule(use.node) or RULES.get(use.operation)


def check_torch() -> None:
    """Check that the running torch has the nodes and saved values that the tables name.

    Raises:
        UnsupportedOperationError: If one is missing, naming it.
    """
    rules = ((name, rule.example, rule.reads) for name, rule in RULES.items())
    views = ((name, example, reads) for name, (example, reads, _) in VIEWS.items())
    missing = [name for entry in (*rules, *views) if (name := check(*entry))]
    if missing:
        import torch  # noqa: PLC0415 -- for the message alone

        raise UnsupportedOperationError(
            f"torch {torch.__version__} has no {', '.join(missing)}, which per-example"
            " gradients are read from; use a version that dp was tested with"
        )
