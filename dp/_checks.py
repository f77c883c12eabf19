"""One-line argument checks, so that every bad value is refused in one form.

Each check takes one keyword argument, whose name is the name in the message:
``positive(max_grad_norm=c)`` raises ``max_grad_norm must be > 0 and finite, got -1``.
"""

import math
import operator
import warnings
from typing import Final, SupportsIndex, get_args

from dp._reports import shown
from dp._typing import NeighboringRelation


__all__ = (
    "clipping_norm",
    "count",
    "cyclic_coin",
    "non_negative",
    "open_unit",
    "positive",
    "probability",
    "relation",
    "shown",
    "small_delta",
)

# Beyond these, the square of a norm near the bound underflows or overflows in float32.
_SMALLEST_NORM: Final = 1e-18
_LARGEST_NORM: Final = 1e18
_MOST_EXAMPLES: Final = 1e9
_ROUNDING: Final = 1e-12  # Of a product that is 1 but for rounding.


def positive(**named: float) -> float:
    """Return the value if it is a finite number above 0."""
    ((name, value),) = named.items()
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be > 0 and finite, got {shown(value)}")
    return float(value)


def clipping_norm(**named: float) -> float:
    """Return the value if gradients can be clipped to it.

    Beyond the range, the square of a norm near the value underflows or overflows in
    float32, and what is clipped to it may be any multiple of it.
    """
    ((name, value),) = named.items()
    positive(**named)
    if not _SMALLEST_NORM <= value <= _LARGEST_NORM:
        raise ValueError(
            f"{name} must be in [{_SMALLEST_NORM:g}, {_LARGEST_NORM:g}], where squares"
            f" are float32 numbers, got {shown(value)}; scale the loss"
        )
    return float(value)


def non_negative(**named: float) -> float:
    """Return the value if it is a finite number of at least 0."""
    ((name, value),) = named.items()
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be >= 0 and finite, got {shown(value)}")
    return float(value)


def probability(**named: float) -> float:
    """Return the value if it lies in ``(0, 1]``."""
    ((name, value),) = named.items()
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {shown(value)}")
    return float(value)


def open_unit(**named: float) -> float:
    """Return the value if it lies strictly between 0 and 1."""
    ((name, value),) = named.items()
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(f"{name} must be strictly between 0 and 1, got {shown(value)}")
    return float(value)


def count(**named: SupportsIndex) -> int:
    """Return the value if it is a whole number of at least 1."""
    ((name, value),) = named.items()
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number >= 1, got {shown(value)}")
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {shown(value)}")
    return number


def relation(
    *,
    neighboring_relation: str,
    truncated: bool,
    allocated: bool = False,
    by_position: bool = False,
) -> None:
    """Check that a relation is known, and fits how batches are drawn.

    Args:
        neighboring_relation: The relation.
        truncated: Whether batches may be truncated.
        allocated: Whether they are drawn by random allocation.
        by_position: Whether an example's place in the dataset decides its batch.
    """
    known = get_args(NeighboringRelation)
    if neighboring_relation not in known:
        raise ValueError(
            f"neighboring_relation must be one of {', '.join(map(repr, known))}, got"
            f" {shown(neighboring_relation)}"
        )
    if truncated and neighboring_relation == "add_or_remove_one":
        raise ValueError(
            "neighboring_relation must be 'zero_out' or 'replace_one' where batches are"
            " truncated (TruncatedPoissonSampling): their cost depends on the number of"
            f" examples, which {neighboring_relation!r} keeps private"
        )
    if allocated and neighboring_relation == "replace_one":
        raise ValueError(
            "neighboring_relation must be 'add_or_remove_one' or 'zero_out' with random"
            f" allocation (RandomAllocation), got {neighboring_relation!r}: no bound is"
            " proven for an example that is replaced; use PoissonSampling"
        )
    if by_position and neighboring_relation == "add_or_remove_one":
        raise ValueError(
            "neighboring_relation must be 'zero_out' or 'replace_one' where batches are"
            " cut by position (DisjointBatches(assigned_by='position')), got"
            f" {neighboring_relation!r}: one example more or less moves others to other"
            " batches; use assigned_by='coin'"
        )


def cyclic_coin(sampling_probability: float, bands: int) -> float:
    """Return the probability of an example to be in a step that it is eligible in.

    Samplers and accountants take it from here: it is one floating-point number.

    Args:
        sampling_probability: The probability to be in any one step.
        bands: In one of how many steps an example is eligible.

    Raises:
        ValueError: If it would be above 1.
    """
    coin = sampling_probability * bands
    if coin > 1 + _ROUNDING:
        raise ValueError(
            "sampling_probability must be at most 1 / bands with cyclic Poisson sampling"
            f" (CyclicPoisson), got {sampling_probability!r} and bands={bands}; take"
            " fewer bands, or smaller batches"
        )
    return min(1.0, coin)


def small_delta(target_delta: float, *, num_examples: float) -> None:
    """Warn unless delta is below one over the number of examples, if that can be one."""
    if 1 / target_delta <= num_examples <= _MOST_EXAMPLES:
        warnings.warn(
            f"target_delta={target_delta:g} is not below one over the {num_examples:g}"
            " examples that the plan is about: such a guarantee permits publishing an"
            " example outright. Choose a much smaller one",
            stacklevel=4,
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
