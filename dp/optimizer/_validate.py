"""Validate DPOptimizer's arguments against its plan."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dp.clipping import Clipping, FlatClipping
from dp.exceptions import SamplingMismatchError
from dp.per_sample import Declared
from dp.plan import PrivacyPlan
from dp.sampling import PoissonLoader, Unamplified
from dp.sampling._units import check_units


__all__ = (
    "check_loader",
    "check_losses",
    "check_no_grad_sample",
    "clipping_for",
    "declared_public",
)

# What a caller may declare public, also by name.
Public = Iterable[Declared] | Mapping[str, Declared]


def check_losses(losses: Tensor, *, has_units: bool = False) -> None:
    """Raise unless *losses* is a vector of losses, or any tensor of them with units."""
    if (losses.dim() != 1 and not has_units) or not losses.is_floating_point():
        raise ValueError(
            "losses must be a floating-point vector, one loss an example, got"
            f" {losses.dtype} with {losses.dim()} dimensions; use"
            " reduction='none', and reduce over each example's own terms only, or"
            " pass units= with the example of every loss"
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


def check_loader(plan: PrivacyPlan, loader: PoissonLoader | None) -> None:
    """Raise unless *loader* draws as *plan* claims."""
    if isinstance(plan.sampling, Unamplified):
        if loader is not None:
            raise ValueError(
                "loader was given, but the plan claims no amplification; plan with"
                " PoissonSampling, or use the loader without giving it here"
            )
        return
    if not isinstance(loader, PoissonLoader):
        raise ValueError(  # noqa: TRY004 -- None is the likely value, not a wrong type
            f"the plan claims amplification by {plan.sampling!r}, which only"
            f" plan.loader(dataset) can prove, got loader={loader!r}; pass that"
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
    for name, tensor in named:
        if not isinstance(tensor, Tensor):
            if callable(tensor):
                declared[f"{name}: computed by a function at every step"] = tensor
                continue
            raise TypeError(
                f"public[{name!r}] must be a tensor, got {type(tensor).__name__}; pass"
                " model.buffers(), or dict(model.named_buffers()) for their names"
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        declared[f"{name}: {dtype} of shape {tuple(tensor.shape)}"] = tensor
    return declared
