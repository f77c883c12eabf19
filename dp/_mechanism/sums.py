"""The tensors that clipped gradients are added up in, and that noise is added to."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from dp import _tuning
from dp.per_sample import PerSampleGradients


__all__ = ("Sums",)


@final
class Sums:
    """Sums of clipped gradients over one batch, in float32 at least.

    Sums of small parameters lie behind one another in one buffer, so that whatever
    treats every element alike, such as noise, finds a few long vectors where a model may
    have thousands of short ones.

    Memory is not filled with zeros first, which the gradients that arrive would
    overwrite: one pass over the parameters less. Until some arrive, what it holds is
    arbitrary and not read.

    Args:
        parameters: What the sums are of.

    Attributes:
        buffers: All the memory, once, as few tensors.
    """

    __slots__ = ("_is_written", "_views", "buffers")

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.buffers: list[Tensor]
        self.buffers, self._views = _allocated(parameters)
        self._is_written = False

    def add(
        self, gradients: PerSampleGradients, factors_GB: Tensor, groups: Sequence[int]
    ) -> None:
        """Add each example's gradient times its factor.

        Args:
            gradients: Of the parameters.
            factors_GB: The factors, by group and example.
            groups: The group of each parameter.
        """
        # With a beta of 0 what was in memory is overwritten, and with 1 it is added to.
        gradients.add_weighted_sum(
            factors_GB, groups, self._views, beta=int(self._is_written)
        )
        self._is_written = True

    def of_parameters(self) -> list[Tensor]:
        """Return the sum of each parameter: zeros if nothing was added.

        They share the memory of :attr:`buffers`.
        """
        if not self._is_written:  # The draw was empty, or brought no example.
            for buffer in self.buffers:
                buffer.zero_()
            self._is_written = True
        return list(self._views)


def _allocated(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return memory for all sums, and a view of it for each parameter."""
    # Example: a weight of a million elements and biases of 64 and 10 have two buffers:
    # the weight's own, and one of 74 elements with a view of [64] and one of [10].
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
    # The precision of sums and noise is never below float32.
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.empty(shape, dtype=wide, device=parameter.device)
