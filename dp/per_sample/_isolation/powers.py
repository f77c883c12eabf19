"""Powers of two that the operating system draws, and the range they may come from.

Shapes: none are fixed.
"""

import os
from typing import Final

import torch


__all__ = ("powers", "private_generator", "slack")

# Powers of two that no pass leaves a dtype's range with.
_POWERS: Final = {torch.float16: 4, torch.bfloat16: 16, torch.float32: 16}
_MOST_POWERS: Final = 16
_SLACK_BITS: Final = 16  # Of many roundings of the smallest number.


def powers(dtype: torch.dtype) -> int:
    """Return how many powers of two a pass in a dtype may use, from 1 on."""
    return _POWERS.get(dtype, _MOST_POWERS)


def slack(dtype: torch.dtype) -> float:
    """Return by what a sum may be off whose terms were scaled where they underflow."""
    info = torch.finfo(dtype)
    return 2.0**_SLACK_BITS * info.tiny * info.eps


def private_generator(device: torch.device) -> torch.Generator:
    """Return a generator seeded by the OS: the user's own stays where it is."""
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))
    return generator
