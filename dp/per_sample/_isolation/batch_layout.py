"""Which rows of a tensor inside the model belong to which example.

Found once for a graph's shape, by sending NaN back from the losses of some examples:
in each tensor, exactly the rows of those examples may turn NaN. If others do, the
model mixes examples, and there is no such thing as an example's gradient.

Shapes: ``B`` examples, ``T`` positions of an example, ``R = B * T`` rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


__all__ = ("Layout", "candidates", "fitting", "reached")


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

    def examples_first(self, tensor: Tensor, num_samples: int) -> Tensor:
        """Return the tensor with the examples' axis moved, or split off, to the front."""
        if num_samples == 1:
            return tensor[None]  # All of it is the one example's.
        moved = tensor.movedim(self.axis, 0)
        if moved.shape[0] == num_samples:
            return moved
        shape = moved.shape[1:]
        if self.time_major:
            return moved.reshape(-1, num_samples, *shape).transpose(0, 1)
        return moved.reshape(num_samples, -1, *shape)

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


def candidates(shape: Sequence[int], num_samples: int) -> Iterator[Layout]:
    """Give every way in which examples may lie in a tensor of a shape."""
    axes = range(-len(shape), 0)
    yield from (Layout(axis) for axis in axes if shape[axis] == num_samples)
    for axis in axes:
        if shape[axis] > num_samples and shape[axis] % num_samples == 0:
            yield Layout(axis)
            yield Layout(axis, time_major=True)


def reached(layouts: Sequence[Layout], mask: Tensor, num_samples: int) -> Tensor:
    """Return [L, B]: by each of L layouts, whether anything of an example is marked."""
    rows = [
        layout.examples_first(mask, num_samples).reshape(num_samples, -1).any(1)
        for layout in layouts
    ]
    return torch.stack(rows) if rows else mask.new_zeros(0, num_samples)


def fitting(
    layouts: Sequence[Layout], probes: Sequence[tuple[Tensor, Tensor]]
) -> list[Layout]:
    """Return every layout by which NaN stayed with its examples.

    None means that examples are mixed. More than one means that the probes do not
    tell them apart, as where no gradient flows.

    Args:
        layouts: Those that may fit.
        probes: Pairs of which examples are reached, by layout, and which may be.
    """
    strays_L = [
        (reached_LB & ~seeded_B).any(1).tolist() for reached_LB, seeded_B in probes
    ]
    return [
        layout
        for layout, *strays in zip(layouts, *strays_L, strict=True)
        if not any(strays)
    ]
