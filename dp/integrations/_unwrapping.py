"""Find the :class:`~dp.DPOptimizer` inside what a framework made of it."""

from typing import Any

from dp.optimizer import DPOptimizer


__all__ = ("find_private_optimizer", "require_private_optimizer")


def find_private_optimizer(optimizer: Any) -> DPOptimizer | None:
    """Return the private optimizer that *optimizer* is or leads to, or None.

    Frameworks keep what they wrap as ``optimizer``: accelerate's AcceleratedOptimizer
    and the proxies of Lightning and Fabric, which pass for an instance of our class.
    """
    while optimizer is not None:
        if isinstance(optimizer, DPOptimizer) and "original_optimizer" in vars(
            optimizer
        ):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def require_private_optimizer(optimizer: Any) -> DPOptimizer:
    """Return the private optimizer that *optimizer* is or leads to.

    Raises:
        TypeError: If there is none.
    """
    private = find_private_optimizer(optimizer)
    if optimizer is None:
        raise TypeError(
            "there is no private optimizer yet: train first, by train() or fit(...), or"
            " let the Accelerator that dp.private returned prepare the model, the"
            " optimizer and the loader, in one call"
        )
    if private is None:
        raise TypeError(
            f"no DPOptimizer was found in {type(optimizer).__name__}: wrap the"
            " optimizer in dp.DPOptimizer first, and then let the framework wrap it"
        )
    return private
