"""Epsilon in TensorBoard, beside the learning rate.

>>> from torch.utils.tensorboard import SummaryWriter  # doctest: +SKIP
>>> log_epsilon(optimizer, SummaryWriter("runs"), every=10)  # doctest: +SKIP
"""

from typing import Any, Protocol

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from dp import _checks
from dp.integrations._unwrapping import require_private_optimizer


__all__ = ("Writer", "log_epsilon")


class Writer(Protocol):
    """The part of ``SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> Any:
        """Write one number."""


def log_epsilon(
    optimizer: Optimizer,
    writer: Writer,
    *,
    every: int = 1,
    tag: str = "privacy/epsilon",
) -> RemovableHandle:
    """Write epsilon after every *every* steps of *optimizer*.

    Two curves: under *tag* that of the run, whenever it ends, and under
    ``{tag}_if_planned_to_stop_here`` that of the steps so far. Both are public: they
    depend on the plan and on how many steps were taken. Losses and gradient norms of
    the training data are not, so none are written.

    Args:
        optimizer: A DPOptimizer, or what accelerate or Lightning made of one.
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or alike.
        every: Steps between two entries; the accountant is asked no more often.
        tag: The name of the curves; their steps are those that the ledger was charged.

    Returns:
        A handle whose ``remove()`` ends the logging.

    Raises:
        TypeError: If there is no DPOptimizer in *optimizer*.
        ValueError: If *every* is not a whole number of at least 1.
    """
    private = require_private_optimizer(optimizer)
    every = _checks.count(every=every)

    def write(*_: Any) -> None:
        steps = private.ledger.steps
        if steps % every == 0:
            writer.add_scalar(tag, private.guarantee().epsilon, steps)
            so_far = private.spent().epsilon
            writer.add_scalar(f"{tag}_if_planned_to_stop_here", so_far, steps)

    return private.register_step_post_hook(write)
