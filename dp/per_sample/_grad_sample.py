"""Per-example gradients that another library left on the parameters.

Opacus' ``GradSampleModule``, for example, puts them into ``p.grad_sample``: one row an
example, or a list of such tensors, one for each backward pass.

Shapes: ``B`` examples, ``P`` elements of a parameter.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._parts.part import GradPart, MaterializedGrads, wide


__all__ = ("clear_grad_samples", "from_grad_samples")


def from_grad_samples(parameters: Sequence[Tensor]) -> PerSampleGradients | None:
    """Return the gradients in ``p.grad_sample``, or None if no parameter has any.

    That a row depends on its own example only is for the library that made it to
    ensure: no graph is left that could be checked.

    Args:
        parameters: One without ``grad_sample`` has gradients of zero.

    Raises:
        ValueError: If numbers of examples differ, or a row does not have the shape of
            its parameter.
    """
    rows_of = {
        index: rows
        for index, parameter in enumerate(parameters)
        if (rows := _rows(parameter)) is not None
    }
    if not rows_of:
        return None
    # As of a parameter that one of several backward passes did not reach: which of its
    # rows are missing is not known.
    sizes = {len(rows) for rows in rows_of.values()}
    if len(sizes) > 1:
        raise ValueError(
            "the parameters' grad_sample have different numbers of rows; give each"
            " one row for every example of the batch"
        )
    for index, rows in rows_of.items():
        shape = tuple(parameters[index].shape)
        if tuple(rows.shape[1:]) != shape:
            raise ValueError(
                f"the rows of grad_sample have shape {tuple(rows.shape[1:])}, but the"
                f" parameter has {shape}; give each example the parameter's shape"
            )
    # [B, *shape], held already.
    parts: dict[int, Sequence[GradPart]] = {
        i: [MaterializedGrads(rows)] for i, rows in rows_of.items()
    }
    first = next(iter(rows_of.values()))
    # The losses are not known. A gradient that is not finite has a norm that is not,
    # and is dropped by that.
    nonfinite_B = wide(first.new_zeros(len(first)))
    return PerSampleGradients(parts, parameters, nonfinite_B)


def clear_grad_samples(parameters: Iterable[Tensor]) -> None:
    """Set ``p.grad_sample`` to None where there is one."""
    for parameter in parameters:
        if getattr(parameter, "grad_sample", None) is not None:
            parameter.grad_sample = None  # type: ignore[attr-defined]  # not torch's own


def _rows(parameter: Tensor) -> Tensor | None:
    rows: Tensor | list[Tensor] | None = getattr(parameter, "grad_sample", None)
    if isinstance(rows, list):
        # One tensor for each micro-batch: two of [4, P] are 8 examples.
        return torch.cat(rows).detach() if rows else None
    return None if rows is None else rows.detach()
