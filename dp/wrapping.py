"""Private optimizer classes, for trainers that build the optimizer themselves."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dp._reports import shown
from dp.clipping import Clipping
from dp.exceptions import UnsupportedOperationError
from dp.noise import GaussianNoise
from dp.optimizer import AdamBiasCorrection, DPOptimizer
from dp.optimizer._validate import Public
from dp.plan import PrivacyPlan
from dp.sampling import TicketedLoader


__all__ = ("wrap_class",)


def wrap_class(
    optimizer_class: type[Optimizer],
    *,
    plan: PrivacyPlan,
    loader: TicketedLoader | None = None,
    clipping: Clipping | None = None,
    noise: GaussianNoise | None = None,
    public: Public = (),
    bias_correction: AdamBiasCorrection | None = None,
) -> type[DPOptimizer]:
    """Return a class that is built like *optimizer_class* and is a DPOptimizer.

    Use :class:`dp.DPOptimizer` where an optimizer is asked for, and this only where
    its class is, as by ``Trainer(optimizer_cls_and_kwargs=...)``.

    >>> import dp, torch
    >>> plan = dp.PrivacyPlan(
    ...     sampling=dp.Unamplified(),
    ...     noise_multiplier=1.0,
    ...     max_grad_norm=1.0,
    ...     expected_batch_size=8,
    ...     steps=10,
    ...     target_delta=1e-5,
    ... )
    >>> DPAdamW = dp.wrap_class(torch.optim.AdamW, plan=plan)
    >>> optimizer = DPAdamW([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    >>> type(optimizer).__name__, optimizer.param_groups[0]["lr"]
    ('DPAdamW', 0.1)

    Guarantees:
        * It is built once. Trainers that build an optimizer for every parameter would
          clip and charge each alone, and no ledger would know the sum.

    Args:
        optimizer_class: The class of the optimizer that makes the update.
        plan: As for :class:`dp.DPOptimizer`, as all that follow.
        loader: The loader whose batches are trained on.
        clipping: The clipping rule.
        noise: The source of noise.
        public: Tensors that are constants of the program.
        bias_correction: Takes the noise out of Adam's second moments.

    Raises:
        TypeError: If *optimizer_class* is no optimizer class, or is private already.
        UnsupportedOperationError: From the class, if it is built a second time.
    """
    _check_class(optimizer_class)
    if not isinstance(public, Mapping | Tensor):
        public = tuple(public)  # A class that failed to build may be built again.
    is_built = False
    name = f"DP{optimizer_class.__name__}"

    class Private(DPOptimizer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            nonlocal is_built
            if is_built:
                raise UnsupportedOperationError(
                    f"{name} was built already, and a second one would have a ledger of"
                    " its own for the same plan; put all parameters into one optimizer,"
                    " or call wrap_class again for another run"
                )
            super().__init__(
                optimizer_class(*args, **kwargs),
                plan=plan,
                loader=loader,
                clipping=clipping,
                noise=noise,
                public=public,
                bias_correction=bias_correction,
            )
            is_built = True

        def __reduce_ex__(self, _protocol: object) -> tuple[Any, ...]:
            # A class made at run time has no name to be found by; a copy needs no
            # constructor, and so not this class.
            return _blank, (), self.__getstate__()

    Private.__name__ = Private.__qualname__ = name
    Private.__doc__ = f"{optimizer_class.__name__}, differentially private."
    Private.__signature__ = inspect.signature(optimizer_class)
    return Private


def _blank() -> DPOptimizer:
    return DPOptimizer.__new__(DPOptimizer)


def _check_class(optimizer_class: object) -> None:
    if not (
        isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)
    ):
        raise TypeError(
            "optimizer_class must be a class of torch optimizers, got"
            f" {shown(optimizer_class)}; to wrap an optimizer, call DPOptimizer"
        )
    if issubclass(optimizer_class, DPOptimizer):
        raise TypeError(
            f"optimizer_class {optimizer_class.__name__} is private already"
        )
