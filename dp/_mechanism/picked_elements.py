"""Elements of tensors that are picked at random, and where they lie in memory.

Shapes: ``K`` elements that were picked of a tensor.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor


__all__ = ("are_apart", "picked_of", "values_of")

_PICKED: Final = 2048  # Of all tensors together.
_FEWEST: Final = 4


def picked_of(counts: Sequence[int]) -> list[Tensor]:
    """Return [K] indices for tensors of so many elements each."""
    most = max(_FEWEST, _PICKED // max(len(counts), 1))
    draws = np.random.default_rng()  # Seeded by the operating system.
    return [
        torch.from_numpy(np.unique(draws.integers(n, size=min(n, most))))
        for n in counts
    ]


def values_of(tensors: Sequence[Tensor], index: Sequence[Tensor]) -> list[Tensor]:
    """Return elements of tensors, in float64."""
    return [
        tensor.detach().take(picked).double()
        for tensor, picked in zip(tensors, index, strict=True)
    ]


def are_apart(
    sums: Sequence[Tensor], index: Sequence[Tensor], noised: Sequence[Tensor]
) -> bool:
    """Whether all elements lie in what gets noise, and no two in one place."""
    places = np.concatenate(
        [_addresses(total, picked) for total, picked in zip(sums, index, strict=True)]
        or [np.empty(0, np.int64)]
    )
    ranges = sorted((one.data_ptr(), one.data_ptr() + one.nbytes) for one in noised)
    starts, ends = np.array(ranges or [(0, 0)]).T
    of = np.maximum(np.searchsorted(starts, places, side="right") - 1, 0)
    is_inside = (starts[of] <= places) & (places < ends[of])
    return bool(is_inside.all()) and len(np.unique(places)) == len(places)


def _addresses(tensor: Tensor, picked: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    axes = np.unravel_index(picked.numpy(), tensor.shape or (1,))
    offsets = sum(
        axis * step for axis, step in zip(axes, tensor.stride() or (1,), strict=True)
    )
    return np.asarray(tensor.data_ptr() + tensor.itemsize * offsets, np.int64)
