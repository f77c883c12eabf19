"""The tensors that clipped gradients are added up in, and that noise is added to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp import _tuning


__all__ = ("scale_sums", "zero_sums")


def zero_sums(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return zeros of the shape of each parameter, in float32 at least.

    Those of small parameters lie behind one another, where noise finds one vector.
    """
    sums: dict[int, Tensor] = {}
    small: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, parameter in enumerate(parameters):
        kind = _wide(parameter.dtype), parameter.device
        if parameter.numel() <= _tuning.SMALL_SUM:
            small.setdefault(kind, []).append(index)
        else:
            dtype, device = kind
            sums[index] = torch.zeros(parameter.shape, dtype=dtype, device=device)
    for (dtype, device), indices in small.items():
        sizes = [parameters[index].numel() for index in indices]
        buffer = torch.zeros(sum(sizes), dtype=dtype, device=device)
        parts = torch.split_with_sizes(buffer, sizes)
        for index, part in zip(indices, parts, strict=True):
            sums[index] = part.view(parameters[index].shape)
    return [sums[index] for index in range(len(parameters))]


def scale_sums(sums: Sequence[Tensor], factor: float) -> None:
    """Multiply every sum with a factor in place."""
    whole = [tensor for tensor in sums if type(tensor) is Tensor]
    if whole:  # One call for thousands.
        torch.ops.aten._foreach_mul_.Scalar(whole, factor)
    for tensor in sums:
        if type(tensor) is not Tensor:  # A shard.
            tensor.mul_(factor)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of sums and noise: never below float32."""
    return torch.promote_types(dtype, torch.float32)
