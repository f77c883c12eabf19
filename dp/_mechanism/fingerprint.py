"""Whether two processes hold the same thing, without sending it.

A fingerprint of a dataset is made of private examples: it is compared, never shown.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree

from dp.sampling import TicketedLoader, origins
from dp.sampling._units import index_of


__all__ = (
    "Fingerprint",
    "fingerprint_of_dataset",
    "fingerprint_of_tensors",
    "held_by",
)

_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PLACES: Final = 12
_READINGS: Final = 3


@torch.no_grad()
def fingerprint_of_tensors(tensors: Sequence[Tensor]) -> list[int]:
    """Return the sum of each tensor's bits, read as integers: exact in any order."""
    # Sums of integers wrap around, and are the same in whatever order a device adds
    # them. Weights that differ in a single bit have another sum; two that changed
    # places have not.
    return [
        int(
            t.detach()
            .contiguous()
            .view(_INTEGERS[t.element_size()])
            .sum(dtype=torch.int64)
        )
        for t in tensors
    ]


@final
@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What some examples of a dataset are, and in which order it has them.

    Attributes:
        order: How many there are, and which rows of what a ``Subset`` reads, in words.
        leaves: For each leaf of an example a hash of some examples' leaves; None for
            one that is another at each reading, as with random augmentation.
    """

    order: str
    leaves: tuple[str | None, ...]

    @property
    def is_whole(self) -> bool:
        """Whether all of an example is the same at each reading."""
        return None not in self.leaves


def fingerprint_of_dataset(dataset: Any) -> Fingerprint:
    """Return a dataset's order, with hashes of some examples from the first to the last.

    Each is read several times: what a random augmentation changes says nothing, and what
    it leaves, as a label and the indices of a random split, tells datasets apart.
    """
    # Example: 5000 images, each flipped at random at every reading. A flip may fall alike
    # in all three readings of one image, but hardly so in those of all twelve; if it
    # does, two ranks compare nothing unless it did so on both.
    size = len(dataset)
    places = sorted(
        {(size - 1) * i // (_PLACES - 1) for i in range(_PLACES if size else 0)}
    )
    first, *others = (
        [_leaves_of(dataset[place]) for place in places]
        for _reading in range(_READINGS)
    )
    counts = [len(leaves) for leaves in first]
    if any([len(leaves) for leaves in other] != counts for other in others):
        return Fingerprint(_order_of(dataset), (None,))
    columns = [
        [[leaves[i : i + 1] for leaves in reading] for reading in (first, *others)]
        for i in range(max(counts, default=0))
    ]
    return Fingerprint(
        _order_of(dataset),
        tuple(
            _hash(column[0]) if all(c == column[0] for c in column) else None
            for column in columns
        ),
    )


def held_by(loader: TicketedLoader) -> NDArray[np.uint64]:
    """Return a number for each unit or row that this process has for itself.

    What two processes both have, has one number. There are none where nothing can be
    told: of a dataset that is no part of another, or is augmented at random.
    """
    index = index_of(loader)
    if index is not None:
        # Also if each has one row here: its others may be on another rank.
        numbers = [int(_hash(repr(unit))[:16], 16) for unit in index.values]
        return np.unique(np.array(numbers, np.uint64))
    held = [np.empty(0, np.uint64)]
    for source, rows in _read_by(loader.dataset):
        found = fingerprint_of_dataset(source)
        # Without indices there is nothing to compare: rows of equal content may be two
        # people's.
        if source is not loader.dataset and found.is_whole:
            base = np.uint64(int(_hash((found.order, found.leaves))[:16], 16))
            held.append(rows.astype(np.uint64) + base)  # Which wraps around.
    return np.unique(np.concatenate(held))


def _order_of(dataset: Any) -> str:
    """Return how many rows a dataset has, and a hash of which it reads, if that is seen."""
    read = [
        hashlib.sha256(rows.tobytes()).digest() for _source, rows in _read_by(dataset)
    ]
    return f"{len(dataset)} {_hash(read)}"


def _read_by(dataset: Any) -> list[tuple[Any, NDArray[np.int64]]]:
    """Return what a ``Subset`` or ``ConcatDataset`` reads, and which rows of it."""
    places = np.arange(len(dataset))
    found = origins(dataset, places, places, by_object=False)
    return [(source, rows) for source, _places, rows in found]


def _leaves_of(example: Any) -> list[str]:
    return [_hash(_content(leaf)) for leaf in _pytree.tree_leaves(example)]


def _hash(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _content(leaf: object) -> object:
    """The value of a plain leaf; of others, whose bytes may be addresses, the type."""
    # repr of a tensor rounds its numbers, so they are listed instead.
    if isinstance(leaf, Tensor):
        return leaf.dtype, tuple(leaf.shape), leaf.tolist()
    if isinstance(leaf, np.ndarray):
        return leaf.dtype, leaf.shape, leaf.tolist()
    if isinstance(leaf, str | bytes | int | float | np.generic | None):
        return type(leaf).__qualname__, leaf
    return type(leaf).__qualname__
