"""What a rule is given, and what it answers.

Shapes: ``B`` examples, ``T`` positions of an example, ``D`` the last axis.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Example, output_shape, saved
from dp.per_sample._graph.uses import Operand, Use
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.owners import Owners
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import SMALL, GradPart, MaterializedGrads
from dp.per_sample._parts.reparametrized import SlicedGrads


__all__ = ("Grads", "MemoryBudget", "Parts", "Rule", "RuleContext", "reduce_broadcast")

Grads = Sequence[Tensor | None]  # One for each output of a node.
Parts = dict[int, GradPart]  # By input position.

_FREE_BYTES: Final = 1 << 16  # Of a use, too few to count.
# Multiplications in the time that it takes to write and read a number three times.
_FLOPS_PER_ELEMENT: Final = 60


@final
class MemoryBudget:
    """How much more memory gradients may be kept in, while activations are freed.

    Args:
        allowance: Bytes at the start of the backward pass.
    """

    def __init__(self, allowance: float) -> None:
        self._left = allowance

    def release(self, num_bytes: float) -> None:
        """Take note of what the backward pass has freed."""
        self._left += num_bytes

    def take(self, num_bytes: float) -> bool:
        """Return whether there is room, and take it."""
        if num_bytes > self._left:
            return False
        self._left -= num_bytes
        return True


@final
@dataclass(slots=True)
class RuleContext:
    """One use of parameters, and where the examples are.

    Attributes:
        use: The use.
        layouts: Where the examples are in each output of the node that matters.
        num_samples: How many there are.
        budget: For gradients that are kept because it is faster.
        held: What the node kept, where it was read before.
        owners: Which unit each element of these outputs belongs to, where units lie
            along no axis, so that there is no layout.
    """

    use: Use
    layouts: Mapping[int, Layout]
    num_samples: int
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(0))
    held: Mapping[str, Any] = field(default_factory=dict)
    owners: Mapping[int, Owners] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Return where the examples are in the first output."""
        return self.layouts[0]

    @property
    def operands(self) -> Mapping[int, Operand]:
        """Return what the use takes of parameters, by input position."""
        return self.use.operands

    def saved(self, name: str) -> Any:
        """Return what the node kept under *name*."""
        return self.held[name] if name in self.held else saved(self.use.node, name)

    @property
    def axis(self) -> int:
        """Return the axis of the output that the examples are on, from the front."""
        if self.num_samples == 1:
            return 0
        return len(output_shape(self.use.node, 0)) + self.layout.axis

    @property
    def examples_lead(self) -> bool:
        """Whether the examples are on the first axis, each in one piece."""
        return self.axis == 0 and not self.layout.time_major

    def rows(self, tensor: Tensor) -> Tensor:
        """Return [B, T, D] of a tensor that lies as the first output does."""
        if tensor.dim() == 2 and not self.layout.time_major:  # noqa: PLR2004 -- rows
            return tensor.reshape(self.num_samples, -1, tensor.shape[-1])
        moved = self.layout.examples_first(tensor, self.num_samples)
        return moved.reshape(self.num_samples, -1, tensor.shape[-1])

    def product(self, left: Tensor, right: Tensor) -> GradPart:
        """Return the gradients ``left.mT @ right``, kept if that is best."""
        T, I = left.shape[-2:]  # noqa: E741 -- a shape suffix
        O = right.shape[-1]  # noqa: E741 -- a shape suffix
        if T == 1 and left.dim() == 3:  # noqa: PLR2004 -- [B, T, I]
            return FactoredGrads(left, right)
        matrix = I * O
        pays = matrix <= SMALL or matrix * _FLOPS_PER_ELEMENT < T * T * (I + O)
        num_bytes = left.numel() // (T * I or 1) * matrix * max(4, left.itemsize)
        if pays and (num_bytes <= _FREE_BYTES or self.budget.take(num_bytes)):
            return MaterializedGrads(left.mT @ right)
        self.budget.take(left.numel() * left.itemsize + right.numel() * right.itemsize)
        return FactoredGrads(left, right)


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """How one operation's parameter gradients are found.

    Attributes:
        parts: Returns the parts by input position, of a site and the gradient of its output.
        reads: What of the node it reads: the names are torch's own.
        example: Makes such a node on the host; None if only accelerators have it.
        operations: What a user calls it.
        how: "keep", "gram", "redo": how its gradients are held.
        applies: Whether it can serve a site; if not, the fallback does.
        stacks: What of *reads* has a row for every example, if several uses may be
            served as one that has more examples. Its parts are then kept or outer.
        matrix: The input that is the matrix of a product.
        takes_all: Whether *parts* takes the gradients of all outputs, of which some
            may be None, instead of that of the first.
        waits: Whether the node must not be in the middle of its own backward.
    """

    parts: Callable[[RuleContext, Any], Parts]
    reads: tuple[str, ...]
    example: Example | None
    operations: str
    how: str = "keep"
    applies: Callable[[RuleContext], bool] = lambda _site: True
    stacks: tuple[str, ...] = ()
    matrix: int | None = None
    takes_all: bool = False
    waits: bool = False

    def found(self, site: RuleContext, grads: Grads) -> Parts:
        """Return the parts of a site, of the gradients of its outputs."""
        if self.takes_all:
            return self.parts(site, grads)
        return {} if grads[0] is None else self.parts(site, grads[0])


def reduce_broadcast(site: RuleContext, position: int, grad: Tensor) -> GradPart:
    """Sum gradients over the axes that an operand was spread over, by example.

    Args:
        site: Where.
        position: Of the operand.
        grad: The gradient of the operand, spread over the output's shape.
    """
    shape = tuple(site.operands[position].shape)
    B = site.num_samples
    if shape == grad.shape[1:] and len(grad) == B and site.examples_lead:
        return MaterializedGrads(grad)
    if B == 1:
        return MaterializedGrads(grad.sum_to_size(shape)[None])
    axis = len(shape) + site.layout.axis
    if axis >= 0 and shape[axis] == grad.shape[site.layout.axis]:
        return _sliced(grad.sum_to_size(shape), axis, site)
    sizes = [1] * (grad.dim() - len(shape)) + list(shape)
    sizes.pop(site.layout.axis)  # 1: the operand does not extend along it.
    grads = site.layout.examples_first(grad, B)
    num_shared = grads.dim() - 1 - len(sizes)  # 1 if positions shared the axis.
    summed = [1 + i for i in range(num_shared)] + [
        1 + num_shared + i
        for i, size in enumerate(sizes)
        if size == 1 and grads.shape[1 + num_shared + i] > 1
    ]
    if summed:
        grads = grads.sum(summed)
    return MaterializedGrads(grads.reshape(B, *shape))


def _sliced(grad: Tensor, axis: int, site: RuleContext) -> GradPart:
    """Return the gradients of an operand that the examples have parts of."""
    B = site.num_samples
    if not site.layout.time_major:
        apart = grad.unflatten(axis, (B, -1))
        return SlicedGrads(MaterializedGrads(apart.movedim(axis, 0)), grad.shape, axis)
    owners = site.layout.owners(grad.shape, B, grad.device)
    index = torch.arange(B, device=grad.device).view(-1, *[1] * grad.dim())
    return MaterializedGrads(torch.where(owners == index, grad, 0))
