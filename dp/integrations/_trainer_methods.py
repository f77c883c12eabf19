"""Methods of a Trainer that a private run would leave without effect."""

from typing import Any, Final

from transformers import Trainer

from dp.exceptions import UnsupportedOperationError


__all__ = ("check_methods",)

# What a private Trainer does by itself, so that an override is not called in training.
_TAKEN_OVER: Final = {
    "compute_loss": "returns the loss of a whole batch; define per_example_losses(self,"
    " model, inputs), which returns one loss an example",
    "get_train_dataloader": "chooses batches that the plan must draw; leave it out, and"
    " pass train_dataset and data_collator",
    "_get_train_sampler": "chooses batches that the plan must draw; leave it out",
}


def check_methods(kind: type[Any], adapter: type[Any]) -> None:
    """Raise if a Trainer class overrides what a private one does by itself.

    Args:
        kind: The class of the trainer.
        adapter: The private class that is put before it, which may know its loss.

    Raises:
        UnsupportedOperationError: With the method and what to do instead.
    """
    has_own_losses = hasattr(kind, "per_example_losses")
    known: tuple[str, ...] = getattr(adapter, "knows_loss_of", ())
    for name, why in _TAKEN_OVER.items():
        owner = next(base for base in kind.__mro__ if name in vars(base))
        is_known = name == "compute_loss" and (
            has_own_losses or f"{owner.__module__}.{owner.__name__}" in known
        )
        if owner is not Trainer and not is_known:
            raise UnsupportedOperationError(
                f"{owner.__name__}.{name} would not be called in private training: it"
                f" {why}"
            )
