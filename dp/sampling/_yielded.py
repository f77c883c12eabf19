"""Which tensors a loader yielded, so that losses can be held against their ticket.

A batch of the same size passes for another one if only examples are counted. Where a
graph keeps a tensor of data, its storage says which batch that is of: the one that the
ticket is for, an earlier one, or, as after a copy to another device, no known one.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dp._containers import parts_of


__all__ = ("YieldedTensors",)

_FEW: Final = 64  # Storages that are remembered without asking which are still there.


@final
class YieldedTensors:
    """The tensors of the batch yielded last, and the storages of those before it.

    Guarantees:
        * Earlier batches are not kept alive. A storage that was freed is not taken for
          another one at its address.
    """

    def __init__(self) -> None:
        self.rows: Sequence[
            Tensor
        ] = ()  # Those with the examples along their first axis.
        self.iteration: int = 0  # How many were begun before this one.
        self._versions: list[int] = []
        self._current: frozenset[int] = frozenset()
        self._earlier: dict[int, StorageWeakRef] = {}
        self._most = _FEW

    def replace(self, batch: Any, *, empty_batch: Any, num_rows: int) -> None:
        """Take *batch* for the one at hand, and the last one for an earlier one."""
        found: dict[int, StorageWeakRef] = {}
        rows: list[Tensor] = []
        for tensor, emptied in _tensors(batch, empty_batch):
            handle = StorageWeakRef(tensor.untyped_storage())
            found[handle.cdata] = handle
            if _is_by_row(tensor, emptied, num_rows):
                rows.append(tensor)
        self.rows = rows
        self._versions = [*map(_version, rows)]
        self._current = frozenset(found)
        self._earlier |= found
        if len(self._earlier) > self._most:
            self._earlier = {
                key: ref for key, ref in self._earlier.items() if not ref.expired()
            }
            self._most = max(_FEW, 2 * len(self._earlier))

    def clear(self) -> None:
        """Take no batch for the one at hand any more: another iteration begins."""
        self.iteration += 1
        self.rows = ()
        self._versions = []
        self._current = frozenset()

    @property
    def was_written(self) -> bool:
        """Whether something wrote to the rows of the batch at hand since it was yielded."""
        return self._versions != [*map(_version, self.rows)]

    def batch_of(self, tensor: Tensor) -> Literal["last", "earlier"] | None:
        """Return which batch *tensor* is a part or a view of; None if of no known one."""
        key = tensor.untyped_storage()._cdata  # noqa: SLF001 -- as StorageWeakRef does
        if key in self._current:
            return "last"
        handle = self._earlier.get(key)
        return None if handle is None or handle.expired() else "earlier"


def _version(tensor: Tensor) -> int:
    return tensor._version  # noqa: SLF001 -- torch has no other name for it


def _tensors(batch: Any, empty_batch: Any) -> Iterator[tuple[Tensor, Any]]:
    """Yield the tensors that have a storage of their own, and their empty ones."""
    if isinstance(batch, Tensor):
        if batch.layout == torch.strided and not batch.is_nested and batch.numel():
            yield batch, empty_batch
        return
    parts = parts_of(batch)
    if parts:
        emptied = parts_of(empty_batch) or {}
        for place, part in parts.items():
            yield from _tensors(part, emptied.get(place))


def _is_by_row(tensor: Tensor, emptied: Any, num_rows: int) -> bool:
    """Whether the first axis is that of the examples.

    The empty batch says which axis that is: sizes alone are ambiguous where a sequence
    is as long as the batch is large.
    """
    shape = tensor.shape
    if not isinstance(emptied, Tensor) or not shape or shape[0] != num_rows:
        return False
    return emptied.dim() == len(shape) and emptied.shape[0] == 0
