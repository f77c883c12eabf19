"""Say what likely went wrong: nothing here decides what is released.

A step that :func:`check_attached` lets through by mistake is noise alone.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dp.exceptions import UnsupportedOperationError
from dp.per_sample import PerSampleGradients


__all__ = (
    "check_attached",
    "explain_deepspeed",
    "warn_of_many_rows",
    "warn_without_callback",
)


def check_attached(gradients: PerSampleGradients, parameters: Sequence[Tensor]) -> None:
    """Raise if no parameter takes part in the losses.

    Raises:
        UnsupportedOperationError: Then.
    """
    if gradients.is_detached and parameters:
        raise UnsupportedOperationError(
            "none of the optimizer's parameters takes part in the losses, so the step"
            " would be noise alone: they were computed under no_grad, in a checkpoint"
            " with use_reentrant=True (pass False) or by another model; or copies are in"
            " place of the parameters, as by load_state_dict(..., assign=True) or a"
            " framework, for which there is no gradient of one example"
            + explain_deepspeed()
        )


def warn_of_many_rows(*, stacklevel: int) -> None:
    """Warn that what is taken for examples may be rows of fewer of them."""
    warnings.warn(
        "backward was given more losses than the plan expects examples in a batch, and"
        " each is clipped as an example of its own: where several are of one example, as"
        " of its augmented views or its tokens, it counts as often. Say whose they are"
        " (units=), or train on a dp.UnamplifiedLoader, whose batches say it",
        stacklevel=stacklevel + 1,
    )


def warn_without_callback(
    closure: Callable[[], Any] | None, *, stacklevel: int
) -> None:
    """Warn if *closure* is that of a Lightning trainer without our callback.

    For the first step of an optimizer whose evaluations no callback has silenced.
    """
    # Lightning hands the optimizer a partial of its precision plugin's own method.
    module = getattr(getattr(closure, "func", None), "__module__", None) or ""
    if module.startswith("lightning.pytorch."):
        warnings.warn(
            "Lightning takes private steps without PrivacyCallback: epsilon holds, but"
            " dp.check does not run before the first step, trainer options that have no"
            " effect are not refused, training does not stop at the end of the plan but"
            " raises, and what losses log may count twice. Pass"
            " Trainer(callbacks=[dp.integrations.lightning.PrivacyCallback()])",
            stacklevel=stacklevel + 1,
        )


def explain_deepspeed() -> str:
    """Return why DeepSpeed's engines cause these errors, if it is imported."""
    if "deepspeed" not in sys.modules:
        return ""
    return (
        ". DeepSpeed's ZeRO stages 1 to 3 and its fp16 and bf16 engines put copies in"
        " place of the parameters, and may step before any batch: train with stage 0 in"
        " float32 or with torch_autocast, with DistributedDataParallel or with FSDP2"
    )
