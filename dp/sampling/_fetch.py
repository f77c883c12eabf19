"""Batches of a map-style dataset, read in this process.

Equivalent to torch's loader with ``num_workers=0``, with less overhead per batch, and
a dataset that consists of tensors is read by column instead of by row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate


__all__ = ("fetch", "iter_batches")


_UNEQUAL: Final = "stack expects each tensor to be equal size"  # So torch says it.


def iter_batches(
    dataset: Any,
    draws: Iterable[Sequence[int]],
    collate_fn: Callable[[list[Any]], Any],
) -> Iterator[Any]:
    """Yield what *collate_fn* makes of the examples of each draw.

    Guarantees:
        * The batches are those of ``torch.utils.data.DataLoader``.
    """
    if collate_fn is default_collate and _is_columns(dataset):
        for indices in draws:
            yield _columns(dataset, _vector(indices))
    else:
        for indices in draws:
            yield _collated(fetch(dataset, indices), collate_fn)


def _collated(examples: Any, collate_fn: Callable[[list[Any]], Any]) -> Any:
    """Collate examples; say what helps where they have several shapes.

    Raises:
        ValueError: If torch's own function cannot stack them.
    """
    try:
        return collate_fn(examples)
    except RuntimeError as error:
        if collate_fn is not default_collate or _UNEQUAL not in str(error):
            raise
        # Torch's message has the sizes of private examples.
        raise ValueError(
            "the examples of a batch have several shapes, so that they cannot be stacked;"
            " pass collate_fn=, which pads them to one shape"
        ) from None


def fetch(dataset: Any, indices: Sequence[int]) -> Any:
    """Read examples as torch's loader does."""
    if getattr(dataset, "__getitems__", None):
        return dataset.__getitems__(indices)
    return [dataset[i] for i in indices]


def _is_columns(dataset: Any) -> bool:
    """Whether rows of tensors are all there is: a subclass may do more than read."""
    if type(dataset) is Subset:
        return _is_columns(dataset.dataset)
    return type(dataset) is TensorDataset and all(
        type(column) is Tensor and column.layout == torch.strided
        for column in dataset.tensors
    )


def _columns(dataset: Any, indices: Tensor) -> list[Tensor]:
    while type(dataset) is Subset:
        indices = _vector([dataset.indices[i] for i in indices.tolist()])
        dataset = dataset.dataset
    return [column[indices.to(column.device)] for column in dataset.tensors]


def _vector(indices: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.asarray(indices, dtype=np.int64))
