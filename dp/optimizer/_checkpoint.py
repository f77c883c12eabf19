"""Embed the ledger in an optimizer's state, in a form that every checkpoint keeps.

With it go the plan and what was assigned in its place, so that a run that is resumed
goes on with the noise that it had.

``torch.distributed.checkpoint`` keeps only ``state`` and ``param_groups`` of a state;
of nested data it loads only the keys that it finds in the object to be loaded; and when
it flattens a state, only the keys that it finds in the live groups. So the ledger is
one string, in the first group, and the live group has the key too, as it has
``initial_lr`` when there is a scheduler. What the live group has there is a mark: the
ledger itself is in the :class:`~dp.ledger.Ledger`, and in what ``state_dict`` returns.
"""

import json
from typing import Any, Final

from dp._mechanism.current_values import CurrentValues
from dp.exceptions import LedgerError
from dp.ledger import Ledger


__all__ = ("KEY", "embed_ledger", "extract_ledgers", "reserve_key")

KEY: Final = "dp_ledger"
_MARK: Final = "is in state_dict()"


def reserve_key(param_groups: list[dict[str, Any]]) -> None:
    """Make room for the ledger in the groups of a live optimizer."""
    param_groups[0][KEY] = _MARK


def embed_ledger(
    state_dict: dict[str, Any], ledger: Ledger, values: CurrentValues
) -> dict[str, Any]:
    """Return *state_dict* with the ledger, and the values in effect, in its first group."""
    first, *others = state_dict["param_groups"]
    text = json.dumps({**ledger.state_dict(), "settings": values.state_dict()})
    carrier = {**first, KEY: text}
    return {**state_dict, "param_groups": [carrier, *others]}


def extract_ledgers(
    state_dict: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return *state_dict* with a mark for every ledger, and the ledgers themselves.

    There are several where groups of several optimizers were put into one.

    Raises:
        LedgerError: If a ledger is no longer what :func:`embed_ledger` wrote.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    texts = [group.pop(KEY) for group in groups if KEY in group]
    try:
        ledgers = [json.loads(text) for text in texts if text != _MARK]
    except (TypeError, ValueError) as error:
        raise LedgerError(f"the ledger in the state is damaged: {error}") from error
    reserve_key(groups)
    return {**state_dict, "param_groups": groups}, ledgers
