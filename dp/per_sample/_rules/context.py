"""The input and result types of gradient rules.

Shapes: ``B`` examples, ``T`` positions of an example, ``D`` the last axis.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample._graph.nodes import Example, output_shape, saved, size
from dp.per_sample._graph.uses import Operand, Use
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.owners import Owners
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import GradPart, MaterializedGrads
from dp.per_sample._parts.reparametrized import SlicedGrads
from dp.per_sample._parts.row_groups import RowGroups


__all__ = (
    "Grads",
    "MemoryBudget",
    "Parts",
    "Rule",
    "RuleContext",
    "SpreadLayout",
    "is_shared",
    "reduce_broadcast",
    "sliced_by_example",
)

Grads = Sequence[Tensor | None]  # One for each output of a node.
Parts = dict[int, GradPart]  # By input position.


@final
class MemoryBudget:
    """Memory that gradients may be held in, as activations are freed around them.

    Autograd frees a node's activations once its backward has run. Gradients that are
    held in their place do not raise the peak, so a use may hold what was freed before
    it; only *allowance* comes on top.

    Args:
        allowance: Bytes available at the start of the backward pass.
    """

    def __init__(self, allowance: float) -> None:
        self._left = allowance

    def credit(self, num_bytes: float) -> None:
        """Add bytes that the backward pass has freed."""
        self._left += num_bytes

    def try_reserve(self, num_bytes: float) -> bool:
        """Reserve bytes if that many are left, and return whether they were."""
        if num_bytes > self._left:
            return False
        self._left -= num_bytes
        return True

    def hold(self, num_bytes: float) -> None:
        """Count bytes that have to be held, whether or not there is room."""
        self._left -= num_bytes


@final
@dataclass(frozen=True, slots=True)
class SpreadLayout:
    """How examples of one row each lie along several axes of a tensor.

    Documents that are packed into a batch of [4, 512] tokens have 2048 rows.

    Attributes:
        axes: The axes, ascending, counted from the last: -3, -2.
    """

    axes: Sequence[int]
    time_major: ClassVar[bool] = False

    @property
    def axis(self) -> int:
        """The last of the axes."""
        return self.axes[-1]

    def examples_first(self, tensor: Tensor, num_samples: int) -> Tensor:
        """Return the tensor with the axes in front, as one."""
        moved = tensor.movedim([*self.axes], [*range(len(self.axes))])
        return moved.reshape(num_samples, *moved.shape[len(self.axes) :])


@final
@dataclass(slots=True)
class RuleContext:
    """One use of parameters, with the place of the examples in its outputs.

    Attributes:
        use: The use.
        layouts: By output that matters for the losses, how the examples lie in it.
        num_samples: The number of examples, or of units.
        budget: Memory for gradients that are held because it is faster.
        held: Saved values that were read before, by name; the node's own otherwise.
        owners: By output, the unit that owns each element, where units lie along no
            axis. There are no layouts then.
        groups: The rows of uses by unit, which all uses of a graph may share.
        by_row: The use with every row as an example, and the units of the rows, once
            they were asked for.
        input_grad: A tensor to which the rule adds the gradient of the node's first
            input, whose own backward does not run then; None if it does.
    """

    use: Use
    layouts: Mapping[int, "Layout | SpreadLayout"]
    num_samples: int
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(0))
    held: Mapping[str, Any] = field(default_factory=dict)
    owners: Mapping[int, Owners] = field(default_factory=dict)
    groups: dict[Hashable, RowGroups] = field(default_factory=dict)
    by_row: "tuple[RuleContext, RowGroups] | None" = None
    input_grad: Tensor | None = None

    @property
    def layout(self) -> "Layout | SpreadLayout":
        """How the examples lie in the first output."""
        return self.layouts[0]

    @property
    def operands(self) -> Mapping[int, Operand]:
        """What the use takes of parameters, by input position."""
        return self.use.operands

    def saved(self, name: str) -> Any:
        """Return the value that the node saved under *name*."""
        return self.held[name] if name in self.held else saved(self.use.node, name)

    def owner_tensor(self, output: int, grad: Tensor) -> Tensor:
        """Return a tensor that broadcasts to an output and holds each element's unit.

        Args:
            output: Which output.
            grad: Its gradient.
        """
        if not self.owners:
            layout = self.layouts[output]
            assert isinstance(layout, Layout)  # noqa: S101 -- see Rule.spreads
            return layout.owners(grad.shape, self.num_samples, grad.device)
        owners = self.owners[output]
        rows: Tensor = owners.as_rows(grad.dim(), self.num_samples, grad.device)
        return rows

    def owner_of_entries(self) -> Tensor:
        """Return the owners of the first output, before it has a gradient."""
        shape = output_shape(self.use.node, 0)
        return self.owner_tensor(0, torch.empty((), device="cpu").expand(shape))

    @property
    def axis(self) -> int:
        """The axis of the output that the examples are on, counted from the front."""
        if self.num_samples == 1:
            return 0
        return len(output_shape(self.use.node, 0)) + self.layout.axis

    @property
    def examples_lead(self) -> bool:
        """Whether the examples are on the first axis, each in one piece."""
        return self.axis == 0 and not self.layout.time_major

    def rows(self, tensor: Tensor) -> Tensor:
        """Return [B, T, D] of a tensor in which examples lie as in the first output.

        A linear layer over 2 examples of 3 positions has outputs [6, D] if they were
        flattened before. Their first axis is split into [2, 3, D].
        """
        # Lengths are never left to torch as -1, which it cannot find where D is 0.
        B = self.num_samples
        if tensor.dim() == 2 and not self.layout.time_major:  # noqa: PLR2004 -- rows
            return tensor.reshape(B, tensor.shape[0] // B, tensor.shape[1])
        moved = self.layout.examples_first(tensor, B)
        return moved.reshape(B, size(moved.shape[1:-1]), tensor.shape[-1])

    def product(self, left: Tensor, right: Tensor) -> GradPart:
        """Return the gradients ``left.mT @ right``: held, or as their two factors.

        Holding them costs I * O numbers an example, and pays where that is little, or
        where T by T Gram matrices take longer (the "mix" of ghost clipping and
        instantiation by layer of Bu et al., https://arxiv.org/abs/2205.10683).
        """
        T, I = left.shape[-2:]  # noqa: E741 -- a shape suffix
        O = right.shape[-1]  # noqa: E741 -- a shape suffix
        if T == 1 and left.dim() == 3:  # noqa: PLR2004 -- [B, T, I]
            # The norm of an outer product is the product of two norms: no other way pays.
            self._hold(left, right)
            return FactoredGrads(left, right)
        # Example: Linear(768, 768). With T = 16 positions the Gram matrices take 0.4
        # million multiplications an example, less than reading and writing 590 000
        # gradients, so factors are kept. With T = 512 they take 403 million, and
        # holding pays if there is room.
        matrix = I * O
        gram_time = T * T * (I + O)
        pays = (
            matrix <= _tuning.SMALL_PARAMETER
            or matrix * _tuning.FLOPS_PER_ELEMENT < gram_time
        )
        # One matrix for each example, or for each of its N products.
        num_bytes = left.numel() // (T * I or 1) * matrix * max(4, left.itemsize)
        if pays and (
            num_bytes <= _tuning.UNCOUNTED_BYTES or self.budget.try_reserve(num_bytes)
        ):
            return MaterializedGrads(left.mT @ right)
        self._hold(left, right)
        return FactoredGrads(left, right)

    def _hold(self, left: Tensor, right: Tensor) -> None:
        # Factors keep activations alive that would be freed. There is no alternative,
        # so they are held whether or not there is room.
        self.budget.hold(left.numel() * left.itemsize + right.numel() * right.itemsize)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How the parameter gradients of one operation are found.

    Attributes:
        parts: Returns the parts by input position, given the context and the gradient
            of the first output.
        reads: The names of the node's saved values that it reads; torch's own names.
        example: Makes such a node on the host, so that *reads* can be checked against
            the running torch; None if only accelerators have it.
        applies: Whether it can serve a context; if not, the fallback does.
        stacks: The saved values that have a row for every example, if several uses may
            be served as one use of more examples. Their parts must then be
            materialized or factored.
        matrix: The input position of a matrix product's matrix.
        spreads: Whether it can serve a context in which examples are single rows along
            several axes, as of sequences packed into the rows of a batch.
        takes_all: Whether *parts* is given the gradients of all outputs, some of which
            may be None, instead of the gradient of the first.
        takes_over: Whether *parts* adds to the context's ``input_grad`` if there is one.
        waits: Whether *parts* must not run inside the node's own backward.
    """

    parts: Callable[[RuleContext, Any], Parts]
    reads: tuple[str, ...]
    example: Example | None
    applies: Callable[[RuleContext], bool] = lambda _context: True
    stacks: tuple[str, ...] = ()
    matrix: int | None = None
    spreads: Callable[[RuleContext], bool] = lambda _context: False
    takes_all: bool = False
    takes_over: bool = False
    waits: bool = False

    def apply(self, context: RuleContext, grads: Grads) -> Parts:
        """Return the parts of a use, given the gradients of its outputs."""
        if self.takes_all:
            return self.parts(context, grads)
        return {} if grads[0] is None else self.parts(context, grads[0])


def reduce_broadcast(context: RuleContext, position: int, grad: Tensor) -> GradPart:
    """Sum a gradient over the axes that an operand was broadcast over, by example.

    A bias of [D] that was added to [B, T, D] has the gradients ``grad.sum(1)``, of
    shape [B, D].

    Args:
        context: The use.
        position: The operand's input position.
        grad: The gradient of the operand as it was broadcast to the output's shape.
    """
    # Examples of a bias [D]: a gradient [B, T, D] has the examples first, and is summed
    # over T; one of [B * T, D] is split into [B, T, D] first; in one of [T, B, D] the
    # examples are moved to the front.
    shape = tuple(context.operands[position].shape)
    B, layout = context.num_samples, context.layout
    if shape == grad.shape[1:] and len(grad) == B and context.examples_lead:
        return MaterializedGrads(grad)  # As it is: nothing was broadcast but the batch.
    if B == 1:
        return MaterializedGrads(grad.sum_to_size(shape)[None])
    if extends_along_examples(context, position):
        # As of a table [B, D] that is added to [B, D]: row b is example b's alone.
        axis = len(shape) + layout.axis
        return sliced_by_example(grad.sum_to_size(shape), axis, context)
    sizes = [1] * (grad.dim() - len(shape)) + list(shape)
    # Of length 1: the operand does not extend along the examples.
    sizes = [n for k, n in enumerate(sizes) if k - grad.dim() not in _axes(layout)]
    grads = layout.examples_first(grad, B)
    summed = _broadcast_axes(grads.shape[1:], sizes)
    return MaterializedGrads(
        (grads.sum(summed) if summed else grads).reshape(B, *shape)
    )


def extends_along_examples(context: RuleContext, position: int) -> bool:
    """Whether an operand is not broadcast over an axis that the examples are on."""
    shape, output = context.operands[position].shape, context.use.shape
    return any(
        len(shape) + axis >= 0 and shape[axis] == output[axis]
        for axis in _axes(context.layout)
    )


def is_shared(context: RuleContext) -> bool:
    """Whether every operand is broadcast over the examples."""
    return not any(extends_along_examples(context, i) for i in context.operands)


def _axes(layout: Layout | SpreadLayout) -> Sequence[int]:
    return layout.axes if isinstance(layout, SpreadLayout) else [layout.axis]


def _broadcast_axes(lengths: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return the axes of [B, *lengths] that *sizes* was broadcast over.

    There is one length more where examples and positions share an axis: the positions
    come first then, and no parameter extends along them.
    """
    num_shared = len(lengths) - len(sizes)
    broadcast = [
        1 + num_shared + i
        for i, wanted in enumerate(sizes)
        if wanted == 1 and lengths[num_shared + i] != 1
    ]
    return [*range(1, 1 + num_shared), *broadcast]


def sliced_by_example(grad: Tensor, axis: int, context: RuleContext) -> GradPart:
    """Return the gradients of an operand of which each example has a slice.

    Args:
        grad: The gradient of the whole operand.
        axis: Its axis, counted from the front, along which the slices lie.
        context: The use.
    """
    B = context.num_samples
    if B == 1:
        return MaterializedGrads(grad[None])
    if not context.layout.time_major:
        # [2, 6, D] with 3 examples on axis 1 becomes [2, 3, 2, D], and then [3, 2, 2,
        # D].
        apart = grad.unflatten(axis, (B, grad.shape[axis] // B))
        return SlicedGrads(MaterializedGrads(apart.movedim(axis, 0)), grad.shape, axis)
    # An example's entries are not consecutive here, so its gradient is written out
    # whole.
    owners = context.owner_tensor(0, grad)
    index = torch.arange(B, device=grad.device).view(-1, *[1] * grad.dim())
    return MaterializedGrads(torch.where(owners == index, grad, 0))
