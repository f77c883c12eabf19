"""Validate DPOptimizer's arguments against its plan."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from dp._mechanism.likely_causes import remedy_of_shape
from dp._reports import shown
from dp.clipping import Clipping, FlatClipping
from dp.exceptions import SamplingMismatchError
from dp.optimizer._adapts import check_adapts
from dp.per_sample import Declared
from dp.plan import PrivacyPlan
from dp.sampling import PoissonLoader, TicketedLoader, Unamplified, UnamplifiedLoader
from dp.sampling._units import check_units


__all__ = (
    "check_form",
    "check_loader",
    "check_losses",
    "check_no_grad_sample",
    "clipping_for",
    "declared_public",
)

# What a caller may declare public, also by name.
Public = Iterable[Declared] | Mapping[str, Declared]


def check_form(losses: object, *, has_batch: bool) -> None:
    """Raise unless *losses* are a tensor, or a function that has its batch."""
    if isinstance(losses, Tensor):
        if has_batch:
            raise TypeError(
                "a batch was given beside finished losses; give the function that"
                " computes them, as in backward(loss_fn, batch), or the losses alone"
            )
    elif not callable(losses):
        raise TypeError(
            "losses must be a function that returns one loss an example, or these"
            f" losses as a tensor, got a {type(losses).__name__}"
        )
    elif not has_batch:
        raise TypeError(
            "a loss function was given without its batch; call backward(loss_fn, batch)"
        )


def check_losses(losses: Tensor, *, has_units: bool = False) -> None:
    """Raise unless *losses* is a vector of losses, or any tensor of them with units."""
    if (losses.dim() != 1 and not has_units) or not losses.is_floating_point():
        raise ValueError(
            "losses must be a floating-point vector, one loss an example, got"
            f" {losses.dtype} with {losses.dim()} dimensions;"
            f" {remedy_of_shape(losses)}; or pass units="
            " with the example of every loss"
        )


def check_no_grad_sample(
    param_groups: Sequence[Mapping[str, Any]], remedy: str, *, nor_soon: bool
) -> None:
    """Raise if a parameter has ``grad_sample``, with its name and the *remedy*.

    With *nor_soon*, also if a hook of Opacus' GradSampleModule waits for a backward
    pass to make one: it counts forward passes in ``_forward_counter``.
    """
    for number, group in enumerate(param_groups):
        names = group.get("param_names")
        for index, parameter in enumerate(group["params"]):
            awaited = nor_soon and getattr(parameter, "_forward_counter", 0) > 0
            if awaited or getattr(parameter, "grad_sample", None) is not None:
                name = f" {names[index]!r}" if names else ""
                has = "will get" if awaited else "has"
                raise SamplingMismatchError(
                    f"the parameter{name} at {index} of group {number}, of shape"
                    f" {tuple(parameter.shape)}, {has} a grad_sample {remedy}"
                )


def check_loader(plan: PrivacyPlan, loader: TicketedLoader | None) -> None:
    """Raise unless *loader* draws as *plan* claims."""
    if isinstance(plan.sampling, Unamplified):
        if loader is not None and not isinstance(loader, UnamplifiedLoader):
            raise ValueError(
                f"loader={type(loader).__name__} was given, but the plan claims no"
                " amplification; plan with PoissonSampling, pass a dp.UnamplifiedLoader,"
                " or use the loader without giving it here"
            )
        return
    if not isinstance(loader, PoissonLoader):
        raise ValueError(  # noqa: TRY004 -- None is the likely value, not a wrong type
            f"the plan claims amplification by {plan.sampling!r}, which only"
            f" plan.loader(dataset) can prove, got loader={shown(loader)}; pass that"
            " loader, or plan with Unamplified()"
        )
    check_units(plan.unit_of_privacy, has_units=loader.units_digest is not None)
    if loader.sampling != plan.sampling:
        raise ValueError(
            f"the loader draws by {loader.sampling!r}, but the plan says"
            f" {plan.sampling!r}; use plan.loader(dataset)"
        )


def clipping_for(plan: PrivacyPlan, clipping: Clipping | None) -> Clipping:
    """Return *clipping*, or flat clipping; raise if it is not what *plan* noises."""
    if clipping is None:
        return FlatClipping(max_grad_norm=plan.max_grad_norm_at(0))
    check_adapts(plan, clipping)
    sensitivity = clipping.sensitivity("add_or_remove_one")
    if sensitivity != plan.max_grad_norm_at(0):
        raise ValueError(
            f"clipping has sensitivity {sensitivity!r}, but the plan's noise is for"
            f" max_grad_norm={plan.max_grad_norm_at(0)!r}; make them equal"
        )
    return clipping


def declared_public(public: Public) -> dict[str, Declared]:
    """Return the tensors that were declared public, by what a certificate calls each.

    >>> import torch
    >>> [*declared_public({"basis": torch.zeros(2, 3)})]
    ['basis: float32 of shape (2, 3)']

    Raises:
        TypeError: If one of them is neither a tensor nor a function.
    """
    if isinstance(public, Tensor):
        raise TypeError(
            "public must list tensors, or map names to them, got a single tensor of"
            f" shape {tuple(public.shape)}; pass public=[tensor]"
        )
    named = (
        public.items()
        if isinstance(public, Mapping)
        else ((f"tensor {i}", tensor) for i, tensor in enumerate(public))
    )
    declared: dict[str, Declared] = {}
    for name, one in named:
        if isinstance(one, Tensor):
            dtype = str(one.dtype).removeprefix("torch.")
            declared[f"{name}: {dtype} of shape {tuple(one.shape)}"] = one
        elif callable(one):
            declared[f"{name}: computed by a function at every step"] = cast(
                "Declared", one
            )
        else:
            raise TypeError(
                f"public[{name!r}] must be a tensor, got {type(one).__name__}; pass"
                " model.buffers(), or dict(model.named_buffers()) for their names"
            )
    return declared
