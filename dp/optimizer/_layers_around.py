"""What layers around a private optimizer write in their own step is a part of its update.

Lookahead and its like average released weights after the private step, and hooks of a
step clamp them. Nothing of a batch is in that, so it is not told as what a forward pass
writes is (:mod:`dp.optimizer._beside`).
"""

import inspect
from functools import cache
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from dp.optimizer._guard import owners_around
from dp.optimizer._registry import parameters_of
from dp.optimizer._step_hooks import disable_dynamo


__all__ = ("accept_writes_around", "hook_layers_around")


@cache
def accept_writes_around() -> None:
    """Take what a layer around a private optimizer writes in its step for an update.

    And what hooks of the optimizer's own step write. The hook is process-wide.
    """
    register_optimizer_step_post_hook(_end_of_step)


def _end_of_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for owner in owners_around(optimizer):
        if owner is not optimizer or owner._optimizer_step_post_hooks:  # noqa: SLF001 -- torch's; they ran before
            private: Any = owner  # Registered as such; its class imports this file.
            trainable = [p for p in parameters_of(owner) if p.requires_grad]
            private.mechanism.beside.accept(trainable)


@disable_dynamo
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
