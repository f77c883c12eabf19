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
from dp.per_sample._parts.part import GradPart
from dp.per_sample._parts.ragged import by_unit
from dp.per_sample._parts.reparametrized import SlicedGrads, check_slices
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
    by_row = _by_row(context)
    if by_row is None or not _fits(rule, by_row[0]):
        return None
    return rule


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
        grad if grad is not None and grad.numel() and _is_owned(context, i) else None
        for i, grad in enumerate(grads)
    ]
    if all(grad is None for grad in grads):
        return {}  # As of an expert that no token was routed to.
    by_row = None if rule is None else _by_row(context)
    if rule is None or by_row is None:
        return by_node(context, grads)
    rows, owner_R = by_row
    parts = rule.apply(rows, grads)
    return {
        position: _grouped(part, position, context, owner_R)
        for position, part in parts.items()
    }


def _grouped(
    part: GradPart, position: int, context: RuleContext, owner_R: Tensor
) -> GradPart:
    if isinstance(part, SlicedGrads):
        check_slices(context.operands[position])
    return by_unit(part, owner_R, context.num_samples)


def _is_owned(context: RuleContext, output: int) -> bool:
    """Whether anything of an output is a unit's."""
    owners = context.owners.get(output)
    return owners is not None and (owners.rows is not None or owners.is_regular)


def _by_row(context: RuleContext) -> tuple[RuleContext, Tensor] | None:
    """Return the use with every row as an example, and the unit of each row.

    The unit is negative for a row that is nobody's. None if the outputs that matter
    do not have the same rows.
    """
    owner_R: Tensor | None = None
    layouts: dict[int, Layout | SpreadLayout] = {}
    for output, owners in context.owners.items():
        if not _is_owned(context, output):
            continue
        shape = output_shape(context.use.node, output)
        owner = _owner_tensor(context, owners, len(shape))
        if owner_R is not None and not torch.equal(owner_R, owner.flatten()):
            return None
        owner_R = owner.flatten()
        axes = [axis - len(shape) for axis, n in enumerate(owner.shape) if n > 1]
        # A single owner has all of the tensor, so any axis will do.
        layouts[output] = _layout(axes) if axes else Layout(-1)
    if owner_R is None:
        return None
    rows = replace(context, layouts=layouts, num_samples=len(owner_R), owners={})
    return rows, owner_R


def _layout(axes: list[int]) -> Layout | SpreadLayout:
    return Layout(axes[0]) if len(axes) == 1 else SpreadLayout(tuple(axes))


def _owner_tensor(context: RuleContext, owners: Owners, rank: int) -> Tensor:
    device = context.use.parameters[0].device
    return owners.as_rows(rank, context.num_samples, device)
