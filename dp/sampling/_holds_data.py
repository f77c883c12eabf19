"""Which attributes of a dataset have an entry of data for each row.

Whole numbers, one a row, say where things are, as offsets and classes do, and are no data.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


__all__ = ("by_row", "holds_rows")


def by_row(dataset: Any) -> dict[str, Any]:
    """Return the attributes of a dataset that have an entry of data for each row."""
    attributes = getattr(dataset, "__dict__", {})
    num_rows = len(dataset)
    return {k: value for k, value in attributes.items() if holds_rows(value, num_rows)}


def holds_rows(value: Any, num_rows: int) -> bool:
    """Whether a value has so many entries, which may be data of people."""
    try:
        return _holds_data(value) and len(value) == num_rows
    except Exception:  # noqa: BLE001 -- of the caller's own types, as one without a length
        return False


def _holds_data(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        is_whole = not (
            value.is_floating_point()
            if isinstance(value, Tensor)
            else np.issubdtype(value.dtype, np.inexact)
        )
        return value.ndim > is_whole
    if isinstance(value, list | tuple):
        return bool(value) and not isinstance(value[0], int | np.integer)
    is_mapping = isinstance(value, Mapping | str | bytes)
    return not is_mapping and all(
        hasattr(value, name) for name in ("__getitem__", "__len__")
    )
