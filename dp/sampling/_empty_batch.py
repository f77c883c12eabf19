"""Infer the empty batch by collating one example once and then twice.

Whatever doubles
is a batch axis and is emptied; what stays is a constant and is kept. So the shapes,
dtypes and containers of an empty batch are those of any other batch, wherever the
batch axis is.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from dp._containers import is_sequence, parts_of, rebuilt
from dp.sampling._fetch import fetch


__all__ = ("empty_batch_of",)


def empty_batch_of(dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> Any:
    """Return what *collate_fn* would make of no examples.

    Reads the first example of *dataset*; only shapes, dtypes and constants remain.

    >>> empty_batch_of([(torch.ones(3), 7)], torch.utils.data.default_collate)
    [tensor([], size=(0, 3)), tensor([], dtype=torch.int64)]

    Raises:
        ValueError: If the dataset holds no example.
        TypeError: If a part of the batch has no batch axis that can be found.
    """
    if len(dataset) == 0:
        raise ValueError(
            "dataset holds no example to tell the shape of an empty batch from; pass"
            " empty_batch="
        )
    first = deepcopy(fetch(dataset, [0]))  # Collating may use up what it is given.
    if isinstance(first, list):  # And reading twice may not give the same.
        twice = first + deepcopy(first)
        first = deepcopy(first)
    else:
        twice = fetch(dataset, [0, 0])
    return _emptied(collate_fn(first), collate_fn(twice))


def _emptied(one: Any, two: Any) -> Any:
    """Return *one* without what *two* has twice of."""
    if type(one) is not type(two):
        raise _unclear(one)
    if isinstance(one, torch.Tensor | np.ndarray):
        return _emptied_array(one, two)
    parts, doubled = parts_of(one), parts_of(two)
    if parts is None or doubled is None:
        return _constant(one, two)
    if is_sequence(one) and one and len(two) == 2 * len(one):
        return one[:0]
    if parts.keys() != doubled.keys():
        raise _unclear(one)
    return rebuilt(
        one, {place: _emptied(part, doubled[place]) for place, part in parts.items()}
    )


def _emptied_array(one: Any, two: Any) -> Any:
    if one.ndim != two.ndim or 0 in one.shape:
        raise _unclear(one)
    doubled = [2 * a == b for a, b in zip(one.shape, two.shape, strict=True)]
    if not any(doubled):
        raise _unclear(one)
    shape = tuple(0 if d else n for d, n in zip(doubled, one.shape, strict=True))
    if isinstance(one, np.ndarray):
        return np.empty(shape, dtype=one.dtype)
    return one.new_empty(shape)


def _constant(one: Any, two: Any) -> Any:
    if isinstance(one, int) and not isinstance(one, bool) and two == 2 * one != 0:
        return 0  # A count of examples.
    if not isinstance(one, str | bytes | int | float | None) or one != two:
        raise _unclear(one)
    return one


def _unclear(part: object) -> TypeError:
    return TypeError(
        f"the collated batch holds a {type(part).__name__} whose batch axis cannot be"
        " inferred, so an empty batch cannot be made; pass empty_batch="
    )
