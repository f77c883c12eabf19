"""The tensors that clipped gradients are added up in, and that noise is added to."""

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import final

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample import JointSums, PerSampleGradients


__all__ = ("Sums",)

_Kind = tuple[torch.dtype, torch.device]


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
    """

    __slots__ = ("_buffers", "_parameters", "_views")

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
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
        # At every step, of thousands of small parameters: loops are in C where they can.
        kinds: list[_Kind] = [*map(attrgetter("dtype", "device"), self._parameters)]
        kept = [joint for joint in finished if _may_be_kept(joint, kinds)]
        views = {i: s for joint in kept for i, s in zip(joint.indices, joint.sums)}  # noqa: B905 -- fast
        self._buffers = [joint.memory for joint in kept]
        sizes = [*map(Tensor.numel, self._parameters)]
        together: dict[object, list[int]] = {}
        for index, kind in enumerate(kinds):
            if index not in views:
                is_small = sizes[index] <= _tuning.SMALL_SUM
                together.setdefault(kind if is_small else index, []).append(index)
        for indices in together.values():
            dtype, device = kinds[indices[0]]
            shapes = [self._parameters[index].shape for index in indices]
            if len(indices) == 1:  # No part of it has to be looked up.
                memory = torch.empty(shapes[0], dtype=_wide(dtype), device=device)
                self._buffers.append(memory)
                views[indices[0]] = memory
                continue
            lengths = [sizes[index] for index in indices]
            memory = torch.empty(sum(lengths), dtype=_wide(dtype), device=device)
            self._buffers.append(memory)
            parts = zip(memory.split_with_sizes(lengths), shapes, strict=True)
            whole = [p if len(shape) == 1 else p.view(shape) for p, shape in parts]
            views.update(zip(indices, whole, strict=True))
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
