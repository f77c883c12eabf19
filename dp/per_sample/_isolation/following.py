"""Follow owners from the losses to the uses of parameters, without a backward pass.

The losses' owners are known: loss u is unit u's, or a user has said so. Every node of
the graph says how the owners of its inputs follow from those of its outputs. Where
gradients of several units meet, the element is mixed, and a use with a mixed element
is refused. An example, ``(x @ w - (x @ w).mean(0)).sum(1)`` for three examples::

    SumBackward1   [3]     owners 0, 1, 2
    SubBackward0   [3, 2]  0, 1, 2 along the first axis; the second input was spread
                           over the examples, so gradients of all of them meet there
    MeanBackward1  [2]     everybody's
    MmBackward0    [3, 2]  0, 1, 2 by one consumer and everybody's by the other: mixed

What no rule knows is asked itself, by its own backward.

Shapes: ``U`` units.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Node, edge_shape, name_of, output_shape
from dp.per_sample._graph.uses import Edge
from dp.per_sample._isolation.own_backward import owners_of_inputs
from dp.per_sample._isolation.owner_moves import joined
from dp.per_sample._isolation.owners import EVERYBODYS, MIXED, NOBODY, NOBODYS, Owners
from dp.per_sample._isolation.rule_table import (
    FollowingRule,
    Kind,
    rule_for_owners,
)
from dp.per_sample._isolation.static_rules import Answers, OutputRule, Shapes


__all__ = ("Followed", "Moved", "follow", "meeting_of")

_Given = Sequence[Owners | None]


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """What a node answered that may answer otherwise in a batch of the same shapes.

    Attributes:
        given: The owners of its outputs.
        shapes: Of the inputs that are asked for.
        answers: The owners of its inputs in this batch.
    """

    given: _Given
    shapes: Shapes
    answers: Sequence[Owners]

    def is_as_before(self, node: Node, num_units: int) -> bool:
        """Whether the same node of another graph answers the same."""
        answers, _ = _answers(node, self.given, self.shapes, num_units)
        return all(
            shape is None or one.is_same(other)
            for shape, one, other in zip(
                self.shapes, answers, self.answers, strict=True
            )
        )


@final
@dataclass(frozen=True, slots=True)
class Followed:
    """The owners at the nodes of a graph.

    Attributes:
        num_units: How many units there are.
        owners: By node and output. What is missing no gradient reaches.
        moved: The nodes that move rows by what they keep, or by a way of their own.
    """

    num_units: int
    owners: dict[Edge, Owners]
    moved: list[tuple[Node, Moved]] = field(default_factory=list)

    def at(self, node: Node, output: int) -> Owners:
        """Return the owners of one output of a node."""
        return self.owners.get((node, output), NOBODYS)


def follow(
    root: Edge,
    nodes: Sequence[Node],
    units: Owners,
    num_units: int,
    *,
    assumed: Container[Node] = (),
    by_integers: bool = True,
) -> Followed:
    """Follow the owners of the losses down a graph.

    Args:
        root: The node and the output of the losses.
        nodes: Those to follow owners to, inputs before outputs.
        units: The owners of the losses.
        num_units: How many units there are, two at least.
        assumed: Nodes that are taken for shared by all units. Of these it is told
            whether a gradient of one unit alone arrives, whatever else does.
        by_integers: Whether regular owners are followed as such, which counts what a
            slice of another axis leaves out as its neighbours'.
    """
    followed = Followed(num_units, {root: units})
    owners, wanted = followed.owners, {*nodes}
    # Outputs before inputs: when it is a node's turn, all of its consumers have said
    # whose its outputs are.
    for node in reversed(nodes):
        edges = node.next_functions
        shapes = [edge_shape(c, i) if c in wanted else None for c, i in edges]
        if not any(shape is not None for shape in shapes):
            continue
        given = [
            owners.get((node, i))
            for i in range(len(node._input_metadata))  # noqa: SLF001 -- see _graph.nodes
        ]
        # Example: h[:, :2] is used in order, and the rows of h[:, 2:] are exchanged. In
        # integers the first use says of all of h that row 0 is unit 0's, and the second
        # denies it. Written out, each speaks of its own columns.
        if not by_integers:
            given = _written_out(node, given, num_units)
        answers, is_static = _answers(node, given, shapes, num_units)
        if not is_static:
            # What it keeps may move rows otherwise in the next batch: it is asked again.
            followed.moved.append((node, Moved(given, shapes, answers)))
        for edge, shape, of_input in zip(edges, shapes, answers, strict=True):
            if shape is not None:
                answer = _on_device(of_input, edge)
                # Gradients of several consumers are added, so owners are joined, not
                # replaced.
                is_assumed = edge[0] in assumed
                owners[edge] = (
                    _one_at(owners, edge, answer, num_units)
                    if is_assumed
                    else _joined_at(owners, edge, answer, len(shape), num_units)
                )
    return followed


def meeting_of(followed: Followed, nodes: Sequence[Node]) -> str:
    """Return the name of the operation at which units meet first, from the losses."""
    # Where outputs are each one unit's and an input is mixed, units meet. In the
    # example of this module that is SubBackward0: its output has an owner for each row,
    # and its second input, which was spread over the rows, is everybody's.
    mixed = {edge for edge, owners in followed.owners.items() if owners.has_mixed()}
    outputs_mixed = {node for node, _ in mixed}
    return next(
        name_of(node)
        for node in reversed(nodes)
        if node not in outputs_mixed and not mixed.isdisjoint(node.next_functions)
    )


def _on_device(owners: Owners, edge: Edge) -> Owners:
    """Return owners where the tensor is; a copy may lie between two devices."""
    if owners.rows is None:
        return owners
    return owners._replace(rows=owners.rows.to(_device_of(edge)))


def _device_of(edge: Edge) -> torch.device:
    device: torch.device = edge[0]._input_metadata[edge[1]].device  # noqa: SLF001 -- see _graph.nodes
    return device


def _joined_at(
    owners: Mapping[Edge, Owners],
    edge: Edge,
    answer: Owners,
    rank: int,
    num_units: int,
) -> Owners:
    before = owners.get(edge)
    if before is None:
        return answer
    device = _device_of(edge)
    return joined(before, answer, rank=rank, num_units=num_units, device=device)


def _one_at(
    owners: Mapping[Edge, Owners], edge: Edge, answer: Owners, num_units: int
) -> Owners:
    """Return the units of which one alone sends a gradient, before those that meet.

    Example: one consumer says units 0, 1 and the other says mixed, nobody. What was
    taken for shared is reached by units 0 and 1 alone, so it is not shared: 0, 1.
    """
    before = owners.get(edge)
    if before is None or before.axis == NOBODY or answer.is_same(before):
        return answer
    rank = len(output_shape(*edge))
    device = _device_of(edge)
    left, right = (o.as_rows(rank, num_units, device) for o in (before, answer))
    one = torch.where(left >= 0, left, right)
    return Owners.irregular(torch.where(one == NOBODY, left, one))


def _answers(
    node: Node, given: _Given, shapes: Shapes, num_units: int
) -> tuple[list[Owners], bool]:
    """Return the owners of a node's inputs, and whether they hold for all batches."""
    reached = [o for o in given if o is not None and o.axis != NOBODY]
    if not reached:
        return [NOBODYS] * len(shapes), True
    # What is mixed as a whole stays so, whatever the operation does with it.
    if any(o.axis == MIXED for o in reached):
        return [EVERYBODYS] * len(shapes), True
    rule = rule_for_owners(node)
    regular = _by_integers(rule, node, given, shapes, num_units)
    if regular is not None:
        return regular, rule.is_static(shapes, of_regular=True)
    return _written_answers(rule, node, given, shapes, num_units)


def _written_answers(
    rule: FollowingRule, node: Node, given: _Given, shapes: Shapes, num_units: int
) -> tuple[list[Owners], bool]:
    """Return the answers for owners that are written out, one number for every row."""
    rows = [
        None if o is None or o.axis == NOBODY else o.rows
        for o in _written_out(node, given, num_units)
    ]
    answers, is_static = _by_rows(rule, node, rows, shapes), rule.is_static(shapes)
    if answers is None:
        # No rule, or none for this form of the operation: its own backward tells,
        # which may depend on what it keeps, unless the rule says that it does not.
        answers = owners_of_inputs(node, rows, shapes, num_units)
        is_static = rule.kind is Kind.STATIC and rule.is_asked
    return [_checked(o, s) for o, s in zip(answers, shapes, strict=True)], is_static


def _written_out(node: Node, given: _Given, num_units: int) -> list[Owners | None]:
    """Return the owners of a node's outputs one by one."""
    return [
        owners
        if owners is None or owners.axis in (NOBODY, MIXED)
        else Owners.irregular(
            owners.as_rows(
                len(output_shape(node, i)),
                num_units,
                node._input_metadata[i].device,  # noqa: SLF001 -- see _graph.nodes
            )
        )
        for i, owners in enumerate(given)
    ]


def _by_integers(
    rule: FollowingRule, node: Node, given: _Given, shapes: Shapes, num_units: int
) -> list[Owners] | None:
    """Return the answers for regular owners, if the rule has them in integers.

    Example: 4 units along axis 0 of [4, 3], of which the sum over axis 1 was taken, are
    units along axis 0 of the result: three integers in, three out, and no tensor.
    """
    if rule.integers is None:
        return None
    by_output = []
    for output, owners in enumerate(given):
        if owners is None or owners.axis == NOBODY:
            continue
        # A rule speaks of the first output, unless it is told which one it is asked
        # about.
        if not owners.is_regular or (output and rule.of_output is None):
            return None
        answers = rule.integers(node, owners, shapes)
        if answers is None or not _all_fit(answers, shapes, num_units):
            return None
        by_output.append([NOBODYS if o is None else o for o in answers])
    # Outputs that say other things of an input have to be joined row by row.
    is_one = all(answers == by_output[0] for answers in by_output)
    return by_output[0] if is_one else None


def _all_fit(answers: Sequence[Owners | None], shapes: Shapes, num_units: int) -> bool:
    """Whether there are owners for every input that is asked for, of its shape."""
    return all(
        shape is None or (owners is not None and _fits(owners, shape, num_units))
        for owners, shape in zip(answers, shapes, strict=True)
    )


def _fits(owners: Owners, shape: Sequence[int], num_units: int) -> bool:
    """Whether regular owners are those of a tensor of some shape."""
    if owners.axis < 0:
        return True
    length = owners.outer * num_units * owners.inner
    # 4 units, twice each, fill an axis of 8. An answer that fills none is a rule's
    # error, and the question goes to the rows.
    return owners.axis < len(shape) and shape[owners.axis] == length


def _by_rows(
    rule: FollowingRule, node: Node, rows: Sequence[Tensor | None], shapes: Shapes
) -> Answers | None:
    """Return the answers for owners that are written out, if there is a rule."""
    if rule.of_output is not None:
        return _of_outputs(rule.of_output, node, rows, shapes)
    # For another output than the first, a rule of the first has no answer.
    if rule.rows is None or rows[0] is None or any(o is not None for o in rows[1:]):
        return None
    return rule.rows(node, rows[0], shapes)


def _of_outputs(
    of_output: OutputRule, node: Node, rows: Sequence[Tensor | None], shapes: Shapes
) -> Answers:
    """Return what several outputs say of the inputs together."""
    answers = [
        of_output(node, one, shapes, output)
        for output, one in enumerate(rows)
        if one is not None
    ]
    return [_all_of(column) for column in zip(*answers, strict=True)]


def _all_of(answers: Sequence[Tensor | None]) -> Tensor | None:
    """Return the owners of an input, of what each output says; None if it is not asked."""
    known = [one for one in answers if one is not None]
    if not known:
        return None
    owners = Owners.irregular(known[0])
    for one in known[1:]:
        # No number of units is needed: what is written out names them itself.
        other = Owners.irregular(one)
        owners = joined(owners, other, rank=one.dim(), num_units=0, device=one.device)
    return owners.rows


def _checked(rows: Tensor | None, shape: Sequence[int] | None) -> Owners:
    """Return owners of an input. A rule without an answer, or a wrong one, is no leave."""
    if shape is None:
        return NOBODYS
    if rows is None or rows.dim() != len(shape):
        return EVERYBODYS
    # Owners of 3 rows cannot be those of 4. Everybody's is what is refused.
    if any(n not in (1, length) for n, length in zip(rows.shape, shape, strict=True)):
        return EVERYBODYS
    if rows.numel() == 1:
        # One number for all elements: the short forms need no tensor from here on.
        whole = {NOBODY: NOBODYS, MIXED: EVERYBODYS}
        return whole.get(int(rows), Owners.irregular(rows))
    return Owners.irregular(rows)
