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
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dp._mechanism.mechanism import Mechanism
from dp.evidence import Evidence
from dp.exceptions import LedgerError


__all__ = (
    "KEY",
    "embed_ledger",
    "evidence_in",
    "extract_ledgers",
    "reserve_key",
    "take_ledgers",
)

KEY: Final = "dp_ledger"
_MARK: Final = "is in state_dict()"


def reserve_key(param_groups: list[dict[str, Any]]) -> None:
    """Make room for the ledger in the groups of a live optimizer."""
    param_groups[0][KEY] = _MARK


def embed_ledger(state_dict: dict[str, Any], mechanism: Mechanism) -> dict[str, Any]:
    """Return *state_dict* with the ledger and what belongs to it in its first group.

    These are the values in effect, and the evidence about the losses. The state of an
    optimizer around another, such as the Lookahead of pytorch-optimizer, may have no
    groups: then the ledger stands beside whatever it has.
    """
    records = mechanism.watch.records
    text = json.dumps(
        {
            **mechanism.ledger.state_dict(),
            "settings": mechanism.values.state_dict(),
            "evidence": {key: record.to_dict() for key, record in records.items()},
        }
    )
    if "param_groups" not in state_dict:
        return {**state_dict, KEY: text}
    first, *others = state_dict["param_groups"]
    return {**state_dict, "param_groups": [{**first, KEY: text}, *others]}


def extract_ledgers(
    state_dict: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return *state_dict* with a mark for every ledger, and the ledgers themselves.

    There are several where groups of several optimizers were put into one.

    Raises:
        LedgerError: If a ledger is no longer what :func:`embed_ledger` wrote.
    """
    state_dict = dict(state_dict)
    groups = [dict(group) for group in state_dict.get("param_groups", ())]
    texts = [part.pop(KEY) for part in (state_dict, *groups) if KEY in part]
    try:
        ledgers = [json.loads(text) for text in texts if text != _MARK]
    except (TypeError, ValueError) as error:
        raise LedgerError(f"the ledger in the state is damaged: {error}") from error
    if groups:
        reserve_key(groups)
        state_dict["param_groups"] = groups
    return state_dict, ledgers


def evidence_in(ledgers: Sequence[Mapping[str, Any]]) -> list[dict[str, Evidence]]:
    """Return the evidence beside each ledger of a state, by segment.

    States of earlier versions of this package have none.

    Raises:
        LedgerError: If it is damaged.
    """
    return [
        {
            key: Evidence.from_dict(row)
            for key, row in ledger.get("evidence", {}).items()
        }
        for ledger in ledgers
    ]


def take_ledgers(state_dict: dict[str, Any], mechanism: Mechanism) -> dict[str, Any]:
    """Add what a state says was spent to *mechanism*, and return the rest of it.

    Raises:
        LedgerError: If there is no ledger in it, or a damaged one; nothing has changed
            then.
    """
    state_dict, ledgers = extract_ledgers(state_dict)
    if not ledgers:
        raise LedgerError(
            "the state has no ledger, so what was spent to reach it is unknown;"
            " save state_dict() of the DPOptimizer, or call"
            " load_state_dict_without_ledger if no private data was used for it"
        )
    values = mechanism.values
    overrides = values.overrides_from(
        [x["settings"] for x in ledgers if "settings" in x]
    )
    evidence = evidence_in(ledgers)
    mechanism.step.drop()
    mechanism.beside.forget()
    for ledger in ledgers:
        mechanism.ledger.load_state_dict(ledger)
    for records in evidence:
        mechanism.watch.load(records)
    if overrides is not None:
        values.restore(*overrides)
    return state_dict
