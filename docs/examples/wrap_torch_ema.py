"""torch's ``AveragedModel``, declared: a moving average that is used as its model."""

import copy

import torch
from torch import nn

from forwarding import ModuleForwarding


class EMA(ModuleForwarding[nn.Module], nn.Module):
    """Hold an exponential moving average of a model's weights and buffers.

    Every name of the model, its parameters and the keys of its ``state_dict`` are the
    average's too; ``decay`` and ``num_updates`` are the wrapper's own.
    """

    decay: float
    num_updates: int

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        super().__init__(copy.deepcopy(model))
        self.decay, self.num_updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``; what is no float is copied."""
        theirs = model.state_dict()
        for name, mine in self.state_dict().items():
            weight = 1 - self.decay if mine.is_floating_point() else 1
            mine.copy_(torch.lerp(mine.double(), theirs[name].double(), weight))
        self.num_updates += 1
