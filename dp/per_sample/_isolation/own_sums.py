"""Torch's own sum of clipped gradients, for a witness of what is released.

Shapes: ``U`` units, ``G`` groups of parameters.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from dp.per_sample._isolation.powers import slack
from dp.per_sample._isolation.rounding import Tolerance, coarsest, sure_of
from dp.per_sample._passes import Passes


__all__ = ("OwnSums", "own_sums")

_SCALE: Final = 3.0  # Which no dtype multiplies with without rounding.
_OWN_DIFFERENCES: Final = 8.0  # Of torch's own sums, for two scales.


class OwnSums(NamedTuple):
    """What torch's own backward pass adds up.

    Attributes:
        sums: The sum of each parameter.
        slack: By how much an element of each may be off by rounding; infinity where 16
            bits leave torch no better knowledge.
    """

    sums: list[Tensor]
    slack: list[float]


def own_sums(passes: Passes, factor_U: Tensor, norms_GU: Tensor) -> OwnSums | None:
    """Return the sums of gradients that are multiplied by factors; None if unknown.

    They are unknown where one unit's gradient is not finite, whose factor of zero does
    not make it vanish. The graph is freed.

    Args:
        passes: Of the batch; all but these are done.
        factor_U: What the gradient of each unit is multiplied with.
        norms_GU: How long it is in each group of parameters.
    """
    # Torch is asked twice, since it says by that how well it agrees with itself: 3 times
    # the factors have 3 times the sum, by other roundings.
    sums = [total.double() for total in passes.ordinary(factor_U)]
    thrice = passes.ordinary(_SCALE * factor_U, keep_graph=False)
    if not all(bool(total.isfinite().all()) for total in (*sums, *thrice)):
        return None
    most_G = _tolerance(passes, norms_GU.dtype).of_sums(
        _lengths(passes, factor_U, norms_GU),
        max(parameter.numel() for parameter in passes.parameters),
    )
    sure = sure_of(passes.known.graph, passes.parameters)
    is_narrow = _eps(passes) > torch.finfo(torch.float32).eps
    off = [
        float((total - other.double() / _SCALE).abs().max()) if total.numel() else 0.0
        for total, other in zip(sums, thrice, strict=True)
    ]
    return OwnSums(
        [total / passes.loss_scale for total in sums],
        [
            float(most_G[group]) + _OWN_DIFFERENCES * most / passes.loss_scale
            if is_sure or not is_narrow
            else torch.inf
            for group, most, is_sure in zip(passes.groups, off, sure, strict=True)
        ],
    )


def _lengths(passes: Passes, factor_U: Tensor, norms_GU: Tensor) -> Tensor:
    """Return [G, U] how long each unit's term may be, also if its norm vanished."""
    num_elements = sum(parameter.numel() for parameter in passes.parameters)
    lost = (num_elements * torch.finfo(norms_GU.dtype).tiny) ** 0.5
    lengths_GU = (norms_GU.double() + lost) * factor_U
    return torch.where(factor_U == 0, 0.0, lengths_GU).cpu()


def _tolerance(passes: Passes, dtype: torch.dtype) -> Tolerance:
    eps, narrowest = torch.finfo(dtype).eps, passes.known.plan.narrowest
    result_eps = coarsest(_eps(passes), passes.losses.device)
    return Tolerance(max(result_eps, eps), eps, slack(narrowest) / passes.loss_scale)


def _eps(passes: Passes) -> float:
    """Return the coarsest rounding of the graph and of the parameters."""
    own = [torch.finfo(parameter.dtype).eps for parameter in passes.parameters]
    return max(passes.known.plan.coarsest, *own)
