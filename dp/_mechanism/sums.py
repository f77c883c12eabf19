"""The tensors that clipped gradients are added up in, and that noise is added to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, Self, final

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample import JointSums, PerSampleGradients


__all__ = ("Layouts", "Sums")

_Kind = tuple[torch.dtype, torch.device]
_FACTS: Final = attrgetter("dtype", "device", "shape")


@final
@dataclass(frozen=True, slots=True)
class _Block:
    """Memory for the sums of one large parameter, or of several small ones."""

    indices: Sequence[int]
    shapes: Sequence[torch.Size]
    dtype: torch.dtype
    device: torch.device

    def made(self) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the memory, with anything in it, and its part for each parameter."""
        if len(self.shapes) == 1:
            memory = torch.empty(self.shapes[0], dtype=self.dtype, device=self.device)
            return memory, [memory]
        sizes = [shape.numel() for shape in self.shapes]
        memory = torch.empty(sum(sizes), dtype=self.dtype, device=self.device)
        parts = zip(memory.split_with_sizes(sizes), self.shapes, strict=True)
        return memory, [p if len(shape) == 1 else p.view(shape) for p, shape in parts]


@final
@dataclass(frozen=True, slots=True)
class _Layout:
    """Where sums of some parameters lie.

    Attributes:
        kept: Which of the finished sums stay where they are.
        blocks: Memory for all others.
    """

    kept: Sequence[int]
    blocks: Sequence[_Block]

    @classmethod
    def of(cls, parameters: Sequence[Tensor], finished: Sequence[JointSums]) -> Self:
        """Lay out the sums of *parameters*, of which some are *finished*."""
        kinds = [(p.dtype, p.device) for p in parameters]
        kept = [n for n, joint in enumerate(finished) if _may_be_kept(joint, kinds)]
        has_memory = {index for n in kept for index in finished[n].indices}
        together: dict[object, list[int]] = {}
        for index, parameter in enumerate(parameters):
            if index not in has_memory:
                is_small = parameter.numel() <= _tuning.SMALL_SUM
                kind = kinds[index] if is_small else index
                together.setdefault(kind, []).append(index)
        blocks = [
            _Block(
                indices,
                [parameters[index].shape for index in indices],
                _wide(kinds[indices[0]][0]),
                kinds[indices[0]][1],
            )
            for indices in together.values()
        ]
        return cls(kept, blocks)


@final
class Layouts:
    """Lays out sums; as for the batch before, if their parameters are like theirs."""

    def __init__(self) -> None:
        self._last: tuple[object, _Layout] | None = None

    def of(
        self, parameters: Sequence[Tensor], finished: Sequence[JointSums]
    ) -> _Layout:
        """Return where the sums of *parameters*, of which some are *finished*, lie."""
        # All that a layout follows from: parameters may be moved, or be others by now.
        about: list[Any] = [*map(_FACTS, parameters)]
        about += [(tuple(j.indices), j.memory.dtype, j.memory.device) for j in finished]
        if self._last is None or self._last[0] != about:
            self._last = about, _Layout.of(parameters, finished)
        return self._last[1]


@final
class Sums:
    """Sums of clipped gradients over one batch, in float32 at least.

    Sums of small parameters lie behind one another in few buffers, so that whatever
    treats every element alike, such as noise, finds a few long vectors where a model may
    have thousands of short ones. What the first gradients find together becomes such a
    buffer as it is.

    Memory is not filled with zeros first, which the gradients that arrive would
    overwrite: one pass over the parameters less. There is none until they arrive.

    Args:
        parameters: What the sums are of.
        layouts: What remembers how sums of other batches were laid out.
    """

    __slots__ = ("_buffers", "_layouts", "_parameters", "_views")

    def __init__(
        self, parameters: Sequence[Tensor], layouts: Layouts | None = None
    ) -> None:
        self._parameters = parameters
        self._layouts = layouts or Layouts()
        self._buffers: list[Tensor] = []
        self._views: Sequence[Tensor] | None = None

    def add(
        self, gradients: PerSampleGradients, factors_GB: Tensor, groups: Sequence[int]
    ) -> None:
        """Add each example's gradient times its factor.

        Args:
            gradients: Of the parameters.
            factors_GB: The factors, by group and example.
            groups: The group of each parameter.
        """
        if self._views is None:
            self._views = gradients.weighted_sums(factors_GB, groups, self._allocated)
        else:
            gradients.add_weighted_sum(factors_GB, groups, self._views)

    def of_parameters(self) -> list[Tensor]:
        """Return the sum of each parameter: zeros if nothing was added.

        They share the memory of :attr:`buffers`.
        """
        if self._views is None:  # The draw was empty, or brought no example.
            self._views = self._allocated(())
            for buffer in self._buffers:
                buffer.zero_()
        return list(self._views)

    @property
    def buffers(self) -> list[Tensor]:
        """All the memory of the sums, each element once, as few tensors."""
        self.of_parameters()
        return self._buffers

    def _allocated(self, finished: Sequence[JointSums]) -> Sequence[Tensor]:
        """Return finished sums of small parameters, and memory for all others."""
        layout = self._layouts.of(self._parameters, finished)
        kept = [finished[number] for number in layout.kept]
        views = {i: s for joint in kept for i, s in zip(joint.indices, joint.sums)}  # noqa: B905 -- fast
        self._buffers = [joint.memory for joint in kept]
        for block in layout.blocks:
            memory, parts = block.made()
            self._buffers.append(memory)
            views.update(zip(block.indices, parts, strict=True))
        return [views[index] for index in range(len(self._parameters))]


def _may_be_kept(joint: JointSums, kinds: Sequence[_Kind]) -> bool:
    """Whether sums are wide enough, and where their parameters are."""
    found = {kinds[index] for index in joint.indices}
    wanted = joint.memory.dtype, joint.memory.device
    return {(_wide(dtype), device) for dtype, device in found} == {wanted}


@lru_cache
def _wide(dtype: torch.dtype) -> torch.dtype:
    # The precision of sums and noise is never below float32.
    return torch.promote_types(dtype, torch.float32)
