"""Serve a use of parameters, whether its units lie along an axis or not.

The rules are written for examples along one axis. Where each row has an owner of its
own instead (packed or ragged sequences, routed tokens, users of several losses), a rule
is run with every *row* as an example, which is exact whatever the owners are, and its
parts are grouped by owner afterwards (:mod:`dp.per_sample._parts.ragged`).

Six rows of three units, ``owner = [2, 0, 2, 1, 0, 2]``: the rule of a linear layer
returns 6 outer products, held as factors; those of unit 2 are rows 0, 2 and 5.

Shapes: ``R`` rows, ``U`` units.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import output_shape
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.owners import Owners
from dp.per_sample._parts.ragged import by_unit
from dp.per_sample._parts.row_groups import RowGroups
from dp.per_sample._rules.context import (
    Grads,
    Parts,
    Rule,
    RuleContext,
    SpreadLayout,
)
from dp.per_sample._rules.fallback import by_node
from dp.per_sample._rules.table import rule_of


__all__ = ("fitting_rule", "parts_of_use")


def fitting_rule(context: RuleContext) -> Rule | None:
    """Return the rule that serves a use, or None if only the fallback does."""
    rule = rule_of(context.use)
    if rule is None:
        return None
    if not context.owners:
        return rule if rule.applies(context) else None
    # As of a use whose every row is padding in this batch.
    if not any(_groups(context, output) for output in context.owners):
        return rule  # Which has nothing to do.
    by_row = _by_row(context)
    return rule if by_row is not None and _fits(rule, by_row[0]) else None


def _fits(rule: Rule, context: RuleContext) -> bool:
    if any(isinstance(place, SpreadLayout) for place in context.layouts.values()):
        return rule.spreads(context)
    return rule.applies(context)


def parts_of_use(rule: Rule | None, context: RuleContext, grads: Grads) -> Parts:
    """Return the parts of a use's operands, by input position.

    Args:
        rule: The rule, as :func:`fitting_rule` found it.
        context: The use.
        grads: The gradients of its outputs; None where none flows.
    """
    if not context.owners:
        return by_node(context, grads) if rule is None else rule.apply(context, grads)
    grads = [
        grad if grad is not None and _groups(context, output) else None
        for output, grad in enumerate(grads)
    ]
    if all(grad is None for grad in grads):
        return {}  # As of an expert that no token was routed to.
    by_row = None if rule is None else _by_row(context)
    if rule is None or by_row is None:
        return by_node(context, grads)
    # Example: tokens [4, 512, D] in documents of any length: 2048 rows, each served as
    # an example of one position, and then grouped by the documents they are of.
    rows, groups = by_row
    parts = rule.apply(rows, grads)
    return {position: by_unit(part, groups) for position, part in parts.items()}


def _by_row(context: RuleContext) -> tuple[RuleContext, RowGroups] | None:
    """Return the use with every row as an example, and the units of the rows.

    None if the outputs that matter do not have the same rows.
    """
    # Asked for when a rule is chosen, and again when it is served.
    if context.by_row is None:
        context.by_row = _found_by_row(context)
    return context.by_row


def _found_by_row(context: RuleContext) -> tuple[RuleContext, RowGroups] | None:
    first: RowGroups | None = None
    layouts: dict[int, Layout | SpreadLayout] = {}
    for output, owners in context.owners.items():
        groups = _groups(context, output)
        if groups is None:
            continue
        # Row k of one output must be the same unit's as row k of the other, or no one
        # grouping is right for the sum of both.
        if first is not None and not torch.equal(first.unit_R, groups.unit_R):
            return None
        first = groups
        rank = len(output_shape(context.use.node, output))
        layouts[output] = _layout(owners, context, rank)
    assert first is not None  # noqa: S101 -- by the callers something is a unit's
    rows = replace(context, layouts=layouts, num_samples=len(first.unit_R), owners={})
    return rows, first


def _groups(context: RuleContext, output: int) -> RowGroups | None:
    """Return the rows of an output by unit; None if all of it is nobody's."""
    owners = context.owners.get(output)
    if owners is None or (owners.rows is None and not owners.is_regular):
        return None
    # The plan holds the tensor as long as groups are kept, so its id is no other's.
    key = (id(owners.rows), *owners[1:3])
    groups = context.groups.get(key)
    if groups is None:
        rank = len(output_shape(context.use.node, output))
        unit_R = _unit_tensor(owners, context, rank).flatten()
        groups = _known(unit_R, context) or RowGroups(unit_R, context.num_samples)
        context.groups[key] = groups
    return groups if len(groups.owner_r) else None


def _known(unit_R: Tensor, context: RuleContext) -> RowGroups | None:
    """Return the groups of a use with the same rows: sorting them takes longer."""
    for groups in context.groups.values():
        # len() would be a call of Python's, of each pair of a long recurrence's steps.
        if groups.unit_R.shape == unit_R.shape and torch.equal(groups.unit_R, unit_R):
            return groups
    return None


def _layout(owners: Owners, context: RuleContext, rank: int) -> Layout | SpreadLayout:
    """Return how rows lie in an output of *rank* axes."""
    lengths = _unit_tensor(owners, context, rank).shape
    # Owners [4, 512, 1] lie along the axes -3 and -2, [2048, 1] along -2 alone.
    axes = [axis - rank for axis, length in enumerate(lengths) if length > 1]
    if not axes:
        return Layout(-1)  # All of it is one row, so any axis will do.
    return Layout(axes[0]) if len(axes) == 1 else SpreadLayout(tuple(axes))


def _unit_tensor(owners: Owners, context: RuleContext, rank: int) -> Tensor:
    device = context.use.parameters[0].device
    return owners.as_rows(rank, context.num_samples, device)
