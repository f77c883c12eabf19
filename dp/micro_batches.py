"""Batches in parts, for memory and for trainers that accumulate gradients.

One private step needs one draw, whole. Where a draw is too large for the device, its
parts go through the model one after the other: clipped sums add up, so how a batch is
split never changes the step.

Not done here: drawing (:mod:`dp.sampling`) and adding up (:mod:`dp.optimizer`).
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch

from dp import _checks
from dp._containers import is_sequence, parts_of, rebuilt
from dp.sampling import TicketedLoader


__all__ = ("MicroBatches", "split_batch", "split_by_unit")


@final
class MicroBatches:
    """Yield every batch of a loader in a fixed number of parts.

    For trainers that call ``step`` after every *per_step* batches: accelerate's
    ``gradient_accumulation_steps``, Lightning's ``accumulate_grad_batches``. The
    optimizer still gets the loader itself, whose tickets it spends.

    >>> from dp import PoissonLoader
    >>> loader = PoissonLoader(range(5), sampling_probability=1.0, steps=1)
    >>> list(MicroBatches(loader, per_step=2))
    [tensor([0, 1]), tensor([2, 3, 4])]

    Guarantees:
        * Every example of a draw is in one part of it, and its order is kept.
        * The number of parts is public: it does not depend on what was drawn, so a
          part may be empty.
        * All rows of a unit of privacy are in one part: split over two, the unit would
          be clipped twice.

    Args:
        loader: The loader whose batches are split.
        per_step: How many parts each batch has.

    Raises:
        ValueError: If *per_step* is not a whole number of at least 1.
    """

    def __init__(self, loader: TicketedLoader, *, per_step: int) -> None:
        self.loader = loader
        self.per_step: int = _checks.count(per_step=per_step)

    @property
    def dataset(self) -> Any:
        """The dataset that the loader draws from."""
        return self.loader.dataset

    def __len__(self) -> int:
        return self.per_step * len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            size = _batch_size(batch)
            for part in self._parts(size):
                self.loader.part = part
                yield _sliced(batch, size, part)

    def _parts(self, size: int) -> Iterator[slice]:
        ticket = self.loader.ticket
        unit_of_row = None if ticket is None else ticket.draw.unit_of_row
        if unit_of_row is None:
            unit_of_row = np.arange(size)
        num_units = int(unit_of_row[-1]) + 1 if size else 0
        for part in range(self.per_step):
            bounds = (part * num_units, (part + 1) * num_units)
            start, stop = np.searchsorted(
                unit_of_row, [bound // self.per_step for bound in bounds]
            )
            yield slice(int(start), int(stop))


def split_batch(batch: Any, *, max_examples: int) -> list[Any]:
    """Return *batch* in parts of at most *max_examples* examples; none if it is empty.

    >>> split_batch({"x": torch.arange(5), "name": "a"}, max_examples=3)
    [{'x': tensor([0, 1, 2]), 'name': 'a'}, {'x': tensor([3, 4]), 'name': 'a'}]

    Args:
        batch: Tensors and arrays whose first axis is the batch, in mappings and
            sequences of any depth. A sequence with one entry an example, as a list
            of strings, is split too; anything else goes into every part.
        max_examples: The largest number of examples of a part.

    Raises:
        TypeError: If *batch* holds no tensor or array.
        ValueError: If two tensors have different numbers of examples, or if
            *max_examples* is not a whole number of at least 1.
    """
    step = _checks.count(max_examples=max_examples)
    size = _batch_size(batch)
    return [
        _sliced(batch, size, slice(start, start + step))
        for start in range(0, size, step)
    ]


def split_by_unit(
    loader: TicketedLoader, batch: Any, *, max_examples: int
) -> Iterator[Any]:
    """Yield the batch of a loader that groups rows by unit, in parts of whole units.

    Each part is clipped before the next is asked for: ``loader.part`` says which rows
    it has.

    >>> from dp import PoissonLoader
    >>> loader = PoissonLoader(
    ...     range(5), sampling_probability=1.0, steps=1, units=["a", "a", "a", "b", "c"]
    ... )
    >>> (batch,) = loader
    >>> [part.tolist() for part in split_by_unit(loader, batch, max_examples=2)]
    [[0, 1, 2], [3, 4]]

    Args:
        loader: The loader that yielded *batch* last.
        batch: The batch, or a copy of it on another device.
        max_examples: The most rows of a part; a unit with more is a part of its own.
    """
    at_most = _checks.count(max_examples=max_examples)
    unit_of_row = loader.unit_of_row
    size, start = _batch_size(batch), 0
    units = range(size) if unit_of_row is None else unit_of_row.tolist()
    while start < size:
        # The first row of the unit that would be cut, or the row after a long unit.
        stop = min(start + at_most, size)
        if stop < size:
            stop = units.index(units[stop])
        if stop <= start:
            stop = bisect_right(units, units[start])
        loader.part = slice(start, stop)
        yield _sliced(batch, size, slice(start, stop))
        start = stop


def _batch_size(batch: Any) -> int:
    sizes = set(_sizes(batch))
    if not sizes:
        raise TypeError(
            f"a batch of type {type(batch).__name__} holds no tensor with a batch axis,"
            " so it cannot be split; collate examples into tensors"
        )
    if len(sizes) > 1:
        raise ValueError(
            "the tensors of a batch differ in the size of their first axis, so the"
            " batch cannot be split; put the batch axis first in each of them"
        )
    return sizes.pop()


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, torch.Tensor | np.ndarray):
        if batch.ndim:
            yield len(batch)
    else:
        for part in (parts_of(batch) or {}).values():
            yield from _sizes(part)


def _sliced(batch: Any, size: int, part: slice) -> Any:
    if isinstance(batch, torch.Tensor | np.ndarray):
        return batch[part] if batch.ndim else batch
    if not any(True for _ in _sizes(batch)):
        one_an_example = is_sequence(batch) and len(batch) == size
        return batch[part] if one_an_example else batch
    parts = {
        place: _sliced(value, size, part)
        for place, value in (parts_of(batch) or {}).items()
    }
    return rebuilt(batch, parts)
