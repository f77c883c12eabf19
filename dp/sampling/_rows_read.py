"""Which rows of a batch went into the losses of one step, as far as can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from dp.exceptions import SamplingMismatchError
from dp.sampling._yielded import YieldedTensors


__all__ = ("RowsRead",)

# Address of a storage, and the offset, sizes and strides of a part of it.
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
        if any(
            _share(one, other)
            for call in self._calls
            for one in call
            for other in parts
        ):
            raise SamplingMismatchError(
                "examples of this batch are in the losses of two backward calls of one"
                " step, so each of them would count twice; pass every example to backward"
                " once"
            )
        self._at_hand = frozenset(parts)

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
