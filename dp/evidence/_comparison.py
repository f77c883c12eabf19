"""Compare losses up to rounding.

Shapes: ``B`` losses.
"""

import math
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor


__all__ = ("differ_throughout", "nearly_same", "same_losses")

# Of the losses' type. Kernels are chosen by the number of rows that reach them (experts,
# lengths), and with autograd off; over 57 honest functions losses then differed by 1.7.
_ROUNDINGS: Final = 8.0
_ROUNDINGS_OF_16_BITS: Final = 2.0  # A statistic moves them by few.
_ERRORS: Final = 16.0  # Of what rounding is known to do; 11 in 6000 looks.
_NEARLY: Final = 2.0**-10
_ACROSS_SIZES: Final = 0.1


def same_losses(
    before_B: Float[Tensor, " B"],
    after_B: Float[Tensor, " B"],
    compared_B: Bool[Tensor, " B"] | None = None,
    error_B: Float[Tensor, " B"] | None = None,
) -> bool:
    """Whether two evaluations gave the same losses, up to rounding.

    Finite against non-finite is a difference; NaN against NaN is none.

    Args:
        before_B: The losses.
        after_B: The others.
        compared_B: Which of them to compare; None for all.
        error_B: By how much rounding is known to move each; None if that is not known.
    """
    if before_B.shape != after_B.shape:
        return False
    narrow = before_B.dtype.itemsize < torch.float32.itemsize
    roundings = _ROUNDINGS_OF_16_BITS if narrow else _ROUNDINGS
    tolerance = roundings * torch.finfo(before_B.dtype).eps
    if error_B is not None:
        error_B = _ERRORS * error_B.double()
    return _within(before_B, after_B, compared_B, tolerance, error_B)


def nearly_same(before_B: Tensor, after_B: Tensor, compared_B: Tensor) -> bool:
    """Whether losses differ by so little that it may be rounding, where terms cancel."""
    return _within(before_B, after_B, compared_B, _NEARLY)


def differ_throughout(before_B: Tensor, after_B: Tensor) -> bool:
    """Whether every loss is another one, by a tenth at least.

    Another size of batch makes other kernels sum, in 16 bits too, which changes single
    losses by much where they are small. What divides by a size or a count changes all.
    """
    apart_B = (before_B - after_B).abs()
    allowed_B = _ACROSS_SIZES * torch.maximum(before_B.abs(), after_B.abs())
    is_same_B = (apart_B <= allowed_B) | (before_B.isnan() & after_B.isnan())
    return not bool((is_same_B | (before_B == after_B)).any())


def _within(
    before_B: Tensor,
    after_B: Tensor,
    compared_B: Tensor | None,
    tolerance: float,
    error_B: Tensor | None = None,
) -> bool:
    before, after, error = before_B, after_B, error_B
    if compared_B is not None:
        before, after = before[compared_B], after[compared_B]
        error = None if error is None else error[compared_B]
    if torch.equal(before, after):  # As nearly always.
        return True
    before, after = before.double(), after.double()
    if not torch.equal(before.isfinite(), after.isfinite()):
        return False
    is_finite = before.isfinite()
    if not bool(is_finite.any()):
        return True
    # The median of all matters: losses near 0 carry the error of larger logits.
    size_B = before_B.double().abs()
    typical = float(size_B[size_B.isfinite()].median())
    allowed = tolerance * before[is_finite].abs().clamp(min=max(typical, _TINY))
    if error is not None:
        allowed = torch.maximum(allowed, error[is_finite])
    return bool(((before - after)[is_finite].abs() <= allowed).all())


_TINY: Final = math.ldexp(1.0, -126)
