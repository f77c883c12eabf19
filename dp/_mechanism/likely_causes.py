"""Say what likely went wrong: nothing here decides what is released.

A step that :func:`check_attached` lets through by mistake is noise alone.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

from torch import Tensor

from dp.evidence import callers_level
from dp.exceptions import UnsupportedOperationError
from dp.per_sample import PerSampleGradients


__all__ = (
    "BESIDE",
    "UNSCALED",
    "check_attached",
    "explain_deepspeed",
    "remedy_of_shape",
    "warn_of_many_rows",
    "warn_of_other_gradients",
    "warn_without_callback",
)

BESIDE: Final = (
    "while losses were given to backward or private_loss: an example has one gradient a"
    " step. Take the model out of Opacus' GradSampleModule (to_standard_module()) and"
    " call zero_grad(), or give no losses and let step take every grad_sample"
)
UNSCALED: Final = (
    "a gradient scaler takes part in this step, but the losses were given to backward(),"
    " which clips them as they are; call"
    " scaler.scale(optimizer.private_loss(loss_fn, batch)).backward()"
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


def warn_of_other_gradients() -> None:
    """Warn that gradients that no private loss made were dropped."""
    warnings.warn(
        "gradients of another loss were found on private parameters and dropped: only"
        " losses given to backward or private_loss count. Add every other term, such as"
        " a penalty on the weights, to each example's loss",
        stacklevel=callers_level(),
    )


def warn_without_callback(
    closure: Callable[[], Any] | None, *, stacklevel: int
) -> None:
    """Warn if *closure* is that of a Lightning trainer without our callback.

    For the first step of an optimizer whose evaluations no callback has silenced.
    """
    # Lightning hands the optimizer a partial of its precision plugin's own method.
    module = getattr(getattr(closure, "func", None), "__module__", None) or ""
    if module.startswith(("lightning.pytorch.", "pytorch_lightning.")):
        warnings.warn(
            "Lightning takes private steps without PrivacyCallback: epsilon holds, but"
            " dp.check does not run before the first step, trainer options that have no"
            " effect are not refused, training does not stop at the end of the plan but"
            " raises, and what losses log may count twice. Pass"
            " Trainer(callbacks=[dp.integrations.lightning.PrivacyCallback()])",
            stacklevel=stacklevel + 1,
        )


def remedy_of_shape(losses: Tensor) -> str:
    """Return what makes one loss an example of *losses*, which are none."""
    if losses.dim() < 2:  # noqa: PLR2004 -- a matrix
        return "use reduction='none', and reduce over each example's own terms only"
    return (
        "give outputs and targets one shape, since [n, 1] and [n] make [n, n], and take"
        " the mean over each example's own terms: losses.flatten(1).mean(1)"
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
