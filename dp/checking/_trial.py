"""Run a loss function again and again, and leave no trace of it on the model.

Shapes: ``B`` examples in a batch.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn


__all__ = ("Trial", "differ", "unchanged")


@final
class Trial:
    """A model and its loss, evaluated as if for the first time, every time.

    Args:
        model: The model, as it will be trained.
        loss_fn: Called with the model and a batch; returns a loss an example.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor]
    ) -> None:
        self.model = model
        self._loss_fn = loss_fn
        self._buffers = [(m, dict(m._buffers)) for m in model.modules()]  # noqa: SLF001 -- torch has no public table
        self._named_buffers = dict(model.named_buffers())
        self._weights = [
            (name, p, p.detach().clone()) for name, p in model.named_parameters()
        ]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that will be trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def losses(self, batch: Any, *, seed: int = 0) -> Tensor:
        """Return the losses of *batch*, by the model's first state and one seed."""
        self._restore_weights()
        copies: dict[int, Tensor] = {}
        for module, buffers in self._buffers:  # The graph of earlier losses keeps its.
            self._set_buffers(
                module,
                {
                    name: None if b is None else copies.setdefault(id(b), b.clone())
                    for name, b in buffers.items()
                },
            )
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 -- whatever the loss draws from
        with torch.enable_grad():
            return self._loss_fn(self.model, batch)

    def changed(self) -> list[str]:
        """Return the names of buffers and parameters that are not as they were."""
        weights = [name for name, p, before in self._weights if differ(p, before)]
        buffers = self._named_buffers
        return weights + [
            name
            for name, buffer in self.model.named_buffers()
            if name not in buffers or differ(buffer, buffers[name])
        ]

    def restore(self) -> None:
        """Give the model its own buffers again, and its parameters their values."""
        self._restore_weights()
        for module, buffers in self._buffers:
            self._set_buffers(module, buffers)

    @torch.no_grad()
    def _restore_weights(self) -> None:
        for _name, parameter, before in self._weights:
            if differ(parameter, before):
                parameter.copy_(before)

    @staticmethod
    def _set_buffers(module: nn.Module, buffers: dict[str, Tensor | None]) -> None:
        module._buffers.clear()  # noqa: SLF001 -- as above
        module._buffers.update(buffers)  # noqa: SLF001


def differ(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors differ anywhere; NaN equals itself."""
    return left.shape != right.shape or not bool(
        torch.eq(left, right).logical_or(left.isnan() & right.isnan()).all()
    )


@contextmanager
def unchanged(trial: Trial) -> Iterator[None]:
    """Put back buffers, parameters, gradients, modes and generators on exit."""
    grads = [(p, p.grad) for p in trial.model.parameters()]
    modes = [(module, module.training) for module in trial.model.modules()]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 -- as above
    with torch.random.fork_rng(devices=_devices(trial.parameters)):
        try:
            yield
        finally:
            trial.restore()
            for parameter, grad in grads:
                parameter.grad = grad
            for module, training in modes:
                module.training = training
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002 -- as above


def _devices(tensors: Sequence[Tensor]) -> list[int]:
    return sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
