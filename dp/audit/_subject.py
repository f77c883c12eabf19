"""A model and data whose every released number the auditor can explain.

Record ``j`` has one loss, ``s * (a w_j + b v_j)``, on two parameters of its own. So its
gradient lies on two coordinates that no other record touches, its norm ``s`` is far
above any clipping norm, and what is released there is its clipped gradient, or
nothing, plus noise. Each coordinate is an experiment of its own, and there are
thousands in one run. Because the gradient is spread over two parameters, a norm that
forgets one of them shows.

Shapes: ``M`` records that might be in the data, ``B`` in a batch.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset

from dp.noise._gaussian import witnessed
from dp.optimizer import DPOptimizer
from dp.plan import PrivacyPlan


__all__ = (
    "DIRECTION",
    "GRADIENT_NORM",
    "Bools",
    "CanaryDataset",
    "CanaryModel",
    "Train",
    "fixed_seeds",
    "hooked",
    "sample_membership",
    "training",
)

Train = Callable[[nn.Module, Dataset[Any]], object]
"""The function under audit: it trains a model on a dataset by a ``DPOptimizer`` that it makes.

The model is called with a batch of the dataset, and returns one loss an example. What
is returned does not matter.
"""

GRADIENT_NORM: Final = 1e4
DIRECTION: Final = (0.6, 0.8)

Bools = NDArray[np.bool_]


def training(plan: PrivacyPlan) -> Train:
    """Return the training function of a plan: the loop of the documentation."""

    def train(model: nn.Module, dataset: Dataset[Any]) -> None:
        loader = plan.loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        optimizer = DPOptimizer(sgd, plan=plan, loader=loader)
        for batch in loader:
            optimizer.backward(model, batch)
            optimizer.step()

    return train


def sample_membership(num_records: int) -> Bools:
    """Return which records are in the data: a fair coin of the OS for each."""
    return np.random.default_rng().random(num_records) < 1 / 2


@final
class CanaryDataset(Dataset[Tensor]):
    """The records that are in the data; each is its own number."""

    def __init__(self, included_M: Bools) -> None:
        self._numbers = torch.from_numpy(np.flatnonzero(included_M))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Tensor:
        return self._numbers[index]


@final
class CanaryModel(nn.Module):
    """A model that returns the losses of records and keeps their numbers."""

    def __init__(self, num_records: int) -> None:
        super().__init__()
        self.first = nn.Embedding(num_records, 1)
        self.second = nn.Embedding(num_records, 1)
        self.seen: list[Tensor] = []

    def forward(self, numbers_B: Tensor) -> Tensor:
        self.seen.append(numbers_B.detach().cpu())
        a, b = DIRECTION
        losses_B1: Tensor = GRADIENT_NORM * (
            a * self.first(numbers_B) + b * self.second(numbers_B)
        )
        return losses_B1[:, 0]


@contextmanager
def hooked(look: Callable[[Optimizer, Any, Any], None]) -> Iterator[None]:
    """Call *look* after every step; what is wrong is for the audit to report.

    So the run's own witness, which would end it, leaves releases to the audit.
    """
    handle = register_optimizer_step_post_hook(look)
    try:
        with witnessed(lambda add, _sums: add()):
            yield
    finally:
        handle.remove()


@contextmanager
def fixed_seeds() -> Iterator[None]:
    """Seed every generator that a script may seed; put them back afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 -- the global one
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        try:
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            torch.manual_seed(0)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
