"""Regular owners as rules of gradients read them: an axis of examples.

Shapes: ``B`` examples, ``T`` positions of an example, ``R = B * T`` rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dp.per_sample._isolation.owners import Owners


__all__ = ("Layout",)


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """How the examples lie in a tensor.

    Attributes:
        axis: The axis of the examples, or that they share with positions, counted
            from the last: -1, -2, ...
        time_major: Whether a shared axis runs over the examples of a position first.
    """

    axis: int
    time_major: bool = False

    @classmethod
    def of(cls, owners: Owners, rank: int) -> "Layout | None":
        """Return owners of a tensor as a layout; None if they are none."""
        if not owners.is_regular or (owners.outer > 1 and owners.inner > 1):
            return None
        return cls(owners.axis - rank, time_major=owners.outer > 1)

    def examples_first(self, tensor: Tensor, num_samples: int) -> Tensor:
        """Return the tensor with the examples' axis moved, or split off, to the front."""
        if num_samples == 1:
            return tensor[None]  # All of it is the one example's.
        moved = tensor.movedim(self.axis, 0)
        if moved.shape[0] == num_samples:
            return moved
        shared, shape = moved.shape[0] // num_samples, moved.shape[1:]
        if self.time_major:
            return moved.reshape(shared, num_samples, *shape).transpose(0, 1)
        return moved.reshape(num_samples, shared, *shape)

    def owners(
        self, shape: Sequence[int], num_samples: int, device: torch.device
    ) -> Tensor:
        """Return a tensor, to be spread over *shape*, that says whose an element is."""
        index = torch.arange(num_samples, device=device)
        if num_samples == 1:
            return index
        shared = shape[self.axis] // num_samples
        along = (
            index.repeat(shared) if self.time_major else index.repeat_interleave(shared)
        )
        return along.view(-1, *[1] * (-1 - self.axis))
