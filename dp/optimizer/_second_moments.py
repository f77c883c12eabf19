"""The second moments that torch's adaptive optimizers keep, as scales of coordinates.

They are made of what was released, and so as public as the parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from dp.clipping import Clipping, ScaledClipping
from dp.exceptions import UnsupportedOperationError


__all__ = ("Scaling", "check_scalable", "scaling_of")

Scaling = Callable[[Sequence[Tensor]], Sequence[Tensor]]

_ADAMS: Final = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
)
# By the type that keeps them. Subclasses may mean something else by a name.
_NAMES: Final[dict[type[Optimizer], str]] = {
    **dict.fromkeys(_ADAMS, "exp_avg_sq"),
    torch.optim.RMSprop: "square_avg",
    torch.optim.Adagrad: "sum",
}


def check_scalable(clipping: Clipping, optimizer: Optimizer) -> None:
    """Raise if *clipping* scales by second moments, and *optimizer* keeps none.

    Raises:
        UnsupportedOperationError: With what it is.
    """
    if isinstance(clipping, ScaledClipping) and type(optimizer) not in _NAMES:
        known = ", ".join(sorted(kind.__name__ for kind in _NAMES))
        raise UnsupportedOperationError(
            "clipping=ScaledClipping scales gradients by the second moments of the"
            f" wrapped optimizer, and {type(optimizer).__name__} keeps none that are"
            f" known; use one of torch.optim's {known}, or FlatClipping"
        )


def scaling_of(clipping: Clipping, optimizer: Optimizer) -> Scaling | None:
    """Return what finds the scale of each parameter; None with other rules."""
    if type(clipping) is not ScaledClipping:  # Faster, of an abstract class.
        return None
    name = _NAMES[type(optimizer)]
    decays = {
        id(p): group["betas"][1]
        for group in optimizer.param_groups
        if "betas" in group
        for p in group["params"]
    }

    def scales(parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        return tuple(
            clipping.scale(
                _second_moment(p, optimizer.state.get(p, {}), name, decays.get(id(p)))
            )
            for p in parameters
        )

    return scales


def _second_moment(
    parameter: Tensor, state: dict[str, Any], name: str, decay: float | None
) -> Tensor:
    """Return the estimate v of a parameter, without Adam's bias towards zero."""
    if hasattr(parameter, "placements") or parameter.is_complex():
        kind = "complex" if parameter.is_complex() else "sharded"
        raise UnsupportedOperationError(
            f"a parameter of shape {tuple(parameter.shape)} is {kind}, and"
            " clipping=ScaledClipping needs whole, real second moments; use FlatClipping,"
            " or replicate the parameters (DistributedDataParallel)"
        )
    moment: Tensor | None = state.get(name)
    if moment is None:
        return torch.zeros_like(parameter)
    # After 3 steps at 0.999, v is 0.3 % of the mean square: three terms of 0.1 % each.
    return moment if decay is None else moment / (1 - decay ** float(state["step"]))
