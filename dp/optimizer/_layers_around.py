"""What layers around a private optimizer write in their own step is a part of its update.

Lookahead and its like average released weights after the private step, and hooks of a
step clamp them. Nothing of a batch is in that, so it is not told as what a forward pass
writes is (:mod:`dp.optimizer._beside`).
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from dp.optimizer._guard import owners_around


__all__ = ("accept_writes_around", "hook_layers_around")


@cache
def accept_writes_around(accept: Callable[[Any], None]) -> None:
    """Call *accept* with a private optimizer when a step of a layer around it ends.

    Or when its own step does, if that has hooks. The hook is process-wide.
    """
    register_optimizer_step_post_hook(partial(_end_of_step, accept))


def _end_of_step(
    accept: Callable[[Any], None], optimizer: Optimizer, _args: Any, _kwargs: Any
) -> None:
    for owner in owners_around(optimizer):
        if owner is not optimizer or owner._optimizer_step_post_hooks:  # noqa: SLF001 -- torch's; they ran before
            accept(owner)


def hook_layers_around(optimizer: Optimizer) -> None:
    """Let torch's hooks see the steps of the layers that step *optimizer* now.

    torch hooks the class of an optimizer when it makes one. timm's Lookahead leaves
    ``Optimizer.__init__`` out, so no hook would tell when its step ends.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "step":
            layer = frame.f_locals.get("self")
            if (
                isinstance(layer, Optimizer)
                and layer is not optimizer
                and hasattr(layer, "_optimizer_step_post_hooks")
            ):
                layer._patch_step_function()  # noqa: SLF001 -- does nothing a second time
        frame = frame.f_back
