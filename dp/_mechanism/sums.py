"""The tensors that clipped gradients are added up in, and that noise is added to."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample import JointSums, PerSampleGradients


__all__ = ("Sums",)


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
        kept = [one for one in finished if self._may_be_kept(one)]
        views = {i: s for one in kept for i, s in zip(one.indices, one.sums)}  # noqa: B905 -- fast
        rest = [i for i in range(len(self._parameters)) if i not in views]
        buffers, others = _allocated([self._parameters[i] for i in rest])
        views.update(zip(rest, others, strict=True))
        self._buffers = [*(one.memory for one in kept), *buffers]
        return [views[index] for index in range(len(self._parameters))]

    def _may_be_kept(self, joint: JointSums) -> bool:
        """Whether sums are of small parameters, wide enough, and where these are."""
        dtype, device = joint.memory.dtype, joint.memory.device
        parameters = [self._parameters[index] for index in joint.indices]
        return (
            {p.device for p in parameters} == {device}
            and {_wide(d) for d in {p.dtype for p in parameters}} == {dtype}
            and max(map(Tensor.numel, parameters)) <= _tuning.SMALL_SUM
        )


def _allocated(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return memory for all sums, and a view of it for each parameter."""
    buffers: list[Tensor] = []
    views: dict[int, Tensor] = {}
    small: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, parameter in enumerate(parameters):
        if parameter.numel() <= _tuning.SMALL_SUM:
            kind = parameter.dtype, parameter.device
            small.setdefault(kind, []).append(index)
        else:
            views[index] = _empty(parameter.shape, parameter)
            buffers.append(views[index])
    for indices in small.values():
        sizes = [parameters[index].numel() for index in indices]
        buffer = _empty([sum(sizes)], parameters[indices[0]])
        buffers.append(buffer)
        parts = torch.split_with_sizes(buffer, sizes)
        for index, part in zip(indices, parts, strict=True):
            shape = parameters[index].shape
            views[index] = part if len(shape) == 1 else part.view(shape)
    return buffers, [views[index] for index in range(len(parameters))]


def _empty(shape: Sequence[int], parameter: Tensor) -> Tensor:
    return torch.empty(shape, dtype=_wide(parameter.dtype), device=parameter.device)


def _wide(dtype: torch.dtype) -> torch.dtype:
    # The precision of sums and noise is never below float32.
    return torch.promote_types(dtype, torch.float32)
