"""Buffers of a model on many ranks, each of which passes as many examples as it drew."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


__all__ = ("keep_buffers_apart",)


def keep_buffers_apart(model: object) -> None:
    """Let *model*, if it is distributed, share no buffers before a forward pass.

    Ranks draw batches of different sizes, and so run a different number of passes: they
    would wait for each other. Buffers were made equal when the model was wrapped, and
    what would change one in a pass, such as batch normalization, is refused.
    """
    if isinstance(model, nn.Module):
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                module.forward_sync_buffers = False
