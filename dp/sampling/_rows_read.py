"""Which rows of a batch went into the losses of one step, as far as can be seen."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp.exceptions import SamplingMismatchError
from dp.sampling._yielded import YieldedTensors


__all__ = ("RowsRead",)

# Address of a storage, and the offset, sizes and strides of a part of it, in bytes.
_Part = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@final
@dataclass(slots=True)
class RowsRead:
    """The parts of the batch at hand that ``backward`` calls of one step read."""

    _calls: list[frozenset[_Part]] = field(default_factory=list)
    _at_hand: frozenset[_Part] = frozenset()

    def admit(self, data: Sequence[Tensor], yielded: YieldedTensors) -> None:
        """Take *data* for what the call at hand reads.

        Raises:
            SamplingMismatchError: If it is of another batch than the one at hand, or if
                another call of the step read some of it.
        """
        parts = set()
        for tensor in data:
            batch = yielded.batch_of(tensor)
            if batch == "earlier":
                raise SamplingMismatchError(
                    "the losses are of a batch that the loader yielded before the last"
                    " one, so their examples are not those of the ticket; train on each"
                    " batch before the next one is drawn, and on no batch twice"
                )
            if batch == "last" and tensor.numel():
                parts.add(_part(tensor))
        if self._calls and self._is_read(parts, yielded):
            raise SamplingMismatchError(
                "examples of this batch are in the losses of two backward calls of one"
                " step, so each of them would count twice; pass every example to backward"
                " once"
            )
        self._at_hand = frozenset(parts)

    def _is_read(self, parts: set[_Part], yielded: YieldedTensors) -> bool:
        """Whether an earlier call read a row of *parts*, or bytes of what has no rows.

        Rows are those of any tensor of the batch: columns of one example in a call and
        its label, or its other columns, in the next are the same example.
        """
        layouts = dict(_layouts(yielded.rows))
        rows = _rows_of(parts, layouts)
        loose = [part for part in parts if part[0] not in layouts]
        return any(
            bool(np.isin(rows, _rows_of(call, layouts)).any())
            or any(_share(one, other) for one in call for other in loose)
            for call in self._calls
        )

    def keep(self) -> None:
        """Take what the call at hand read for read: its gradients were added."""
        self._calls.append(self._at_hand)
        self._at_hand = frozenset()


def _part(tensor: Tensor) -> _Part:
    address = tensor.untyped_storage()._cdata  # noqa: SLF001 -- see _yielded
    size, strides = tensor.element_size(), tensor.stride()
    # An expanded axis reads one element many times: it counts with length 1.
    return (
        address,
        int(tensor.storage_offset()) * size,
        tuple(
            n if stride else 1 for n, stride in zip(tensor.shape, strides, strict=True)
        ),
        tuple(stride * size for stride in strides),
    )


def _layouts(rows: Sequence[Tensor]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield storages that hold one row after the other: where they begin, and how far apart.

    Others, as of a batch in column-major order, are compared byte by byte.
    """
    for tensor in rows:
        address, offset, shape, strides = _part(tensor)
        extent = sum((n - 1) * s for n, s in zip(shape[1:], strides[1:], strict=True))
        if extent < strides[0]:
            yield address, (offset, strides[0])


def _rows_of(
    parts: Iterable[_Part], layouts: Mapping[int, tuple[int, int]]
) -> NDArray[np.int64]:
    """Return the numbers of all rows that *parts* have bytes of, some of them twice."""
    found = [
        _rows_of_part(part, *layouts[part[0]]) for part in parts if part[0] in layouts
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _rows_of_part(part: _Part, first: int, step: int) -> NDArray[np.int64]:
    """Return the numbers of the rows that a part has bytes of.

    Example: rows of 4 columns in float32 begin every 16 bytes. Columns 1 and 2 of rows 3
    and 4 have offset 52 and strides (16, 4): the second axis stays within 8 bytes of its
    row, so the first one alone counts, and 52 // 16 is row 3.
    """
    _, offset, shape, strides = part
    axes = list(zip(shape, strides, strict=True))
    within = [(n, stride) for n, stride in axes if stride < step]
    across = [(n, stride) for n, stride in axes if stride >= step]
    extent = (offset - first) % step + sum((n - 1) * stride for n, stride in within)
    if extent >= step or any(stride % step for _, stride in across):
        across = axes  # It was cut in other ways: every element is looked up.
    places = np.array([offset - first])
    for n, stride in across:
        places = np.add.outer(places, np.arange(n) * stride).ravel()
    return np.unique(places // step)


def _share(one: _Part, other: _Part) -> bool:
    """Whether two parts of storages have a byte in common."""
    spans = [
        (offset, offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)))
        for _, offset, shape, strides in (one, other)
    ]
    (first, last), (others_first, others_last) = spans
    if one[0] != other[0] or first > others_last or others_first > last:
        return False
    # Example: columns 0 and 1 of one batch overlap as spans and share no byte; rows 0
    # to 5 and 4 to 8 share two rows. Written out, byte by byte, it is seen.
    taken = torch.zeros(max(last, others_last) + 1, dtype=torch.bool)
    for _, offset, shape, strides in (one, other):
        view = taken.as_strided(shape, strides, offset)
        if bool(view.any()):
            return True
        view.fill_(True)  # noqa: FBT003 -- torch's signature
    return False
