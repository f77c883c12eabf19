"""torch's ``AveragedModel``, declared: a moving average that shows its model's names."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from forwarding import Forwarding, preserved


class EMA(Forwarding, nn.Module, to="module", forward="training"):
    """Hold an exponential moving average of a model's weights and buffers.

    A model's own names are forwarded by a subclass, in one line::

        class BertEMA(EMA, to="module", forward=Bert, but=nn.Module): ...
    """

    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        # First the target, past nn.Module, which cannot store yet. Its __init__ sets
        # training, which is the target's: that is undone.
        object.__setattr__(self, "module", copy.deepcopy(model))
        with preserved(self):
            super().__init__()
        self.module = self.module  # Registered, now that it can be.
        self.decay = decay
        self.register_buffer("num_updates", torch.tensor(0))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the averaged model."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``; what is no float is copied."""
        theirs = model.state_dict()
        for name, mine in self.module.state_dict().items():
            weight = 1 - self.decay if mine.is_floating_point() else 1
            mine.copy_(torch.lerp(mine.double(), theirs[name].double(), weight))
        self.num_updates += 1
