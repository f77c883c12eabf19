"""Recompute elements of a release from the random bits that they were drawn with.

An element's first 24 bits leave an interval that its uniform number ``U`` lies in. A
noisy sum ``k * g`` on the lattice is the rounded ``x + s * Z`` for some ``U`` of that
interval exactly if the normal probabilities of the two midpoints around ``k`` meet it.
So noise is verified by the normal distribution function alone, in float64, whatever
tables, stages, blocks and threads made it. Each element has bits of its own: where they
lie in the key stream follows from the element's place in a chunk, and chunks that share
a key may not share bytes.

A few thousand elements of a release are verified, which the operating system picks: of
the first releases and of one in 128 after them. What is wrong in a share ``r`` of
elements is missed by one verification with probability ``(1 - r)**2048``. What 24 bits
leave open, in one element of 2000, is decided by :mod:`dp.noise._host.exact`.

Shapes: ``K`` elements that were picked, ``P`` parts of chunks, ``N`` elements of a block.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp import _tuning
from dp._keystream import Keystream
from dp.exceptions import WrongNoiseError
from dp.noise._host.exact import granularity


__all__ = ("Chunk", "Sample", "Verifier")

_PICKED: Final = 2048
_FIRST: Final = 3
_EVERY: Final = 128
_BYTES: Final = 3  # Of an element: 16 bits, and 8 more.
# Of the distribution function in float64; 24 bits leave intervals of 6e-8.
_ERROR: Final = 1e-12
# Lattice steps up to which float32 holds all of a sum; beyond it, storing rounds.
_LARGEST_EXACT: Final = 2.0**22

_Floats = NDArray[np.float64]
_Indices = NDArray[np.int64]


class Chunk(NamedTuple):
    """How some tensors were noised, as one vector.

    Attributes:
        parts: The tensors, in the order of the vector.
        keystream: What their random bits were drawn from.
        start: How many bytes were drawn from it before.
    """

    parts: Sequence[Tensor]
    keystream: Keystream
    start: int


@final
class Verifier:
    """Which releases are verified: the first ones, and later ones at random."""

    def __init__(self) -> None:
        self._number = 0

    def is_due(self) -> bool:
        """Whether the next release is verified."""
        self._number += 1
        return self._number <= _FIRST or secrets.randbelow(_EVERY) == 0


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """Elements of contiguous tensors, picked at random before noise is added.

    Attributes:
        tensors: The tensors that they are picked of.
        picked: The tensor of each, and its index in it.
        before: Their values without noise.
    """

    tensors: Sequence[Tensor]
    picked: list[tuple[int, _Indices]]
    before: _Floats

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Self:
        """Pick elements, each as likely as any other."""
        ends = np.cumsum([tensor.numel() for tensor in tensors])
        count = min(_PICKED, int(ends[-1]))  # None of empty tensors.
        picked_K = np.unique(np.random.default_rng().integers(ends[-1], size=count))
        of_K = np.searchsorted(ends, picked_K, side="right")
        picked = []
        for t in np.unique(of_K).tolist():
            begin = int(ends[t]) - tensors[t].numel()
            picked.append((t, picked_K[of_K == t] - begin))
        return cls(tensors, picked, _values(tensors, picked))

    def check(self, chunks: Sequence[Chunk], stddev: float) -> None:
        """Raise unless each element got its own noise of this standard deviation.

        Raises:
            WrongNoiseError: If one did not.
        """
        addresses_K = np.concatenate(
            [
                self.tensors[t].data_ptr() + self.tensors[t].itemsize * index
                for t, index in self.picked
            ]
            or [np.empty(0, np.int64)]
        )
        bits_K = _bits_of(addresses_K, chunks)
        after_K = _values(self.tensors, self.picked)
        is_right_K = _is_rounded(self.before, after_K, bits_K, stddev)
        wrong = int(np.count_nonzero(~is_right_K))
        if wrong:
            raise WrongNoiseError(
                f"{wrong} of {len(is_right_K)} elements did not get the noise of"
                f" standard deviation {stddev!r} that their random bits say, so nothing"
                " was released. Please report it, with the versions of dp, numpy and"
                " torch"
            )


def _values(tensors: Sequence[Tensor], picked: list[tuple[int, _Indices]]) -> _Floats:
    parts = [
        tensors[t].detach().reshape(-1)[torch.from_numpy(index)].double().cpu().numpy()
        for t, index in picked
    ]
    return np.concatenate(parts or [np.empty(0)])


def _bits_of(addresses_K: _Indices, chunks: Sequence[Chunk]) -> _Indices:
    """Return the 24 bits of each element; -1 for one that has none of its own."""
    bits_K = np.full(len(addresses_K), -1)
    places = [
        (part.data_ptr(), part.nbytes, part.itemsize, before, number)
        for number, chunk in enumerate(chunks)
        for part, before in zip(chunk.parts, _numbers_before(chunk.parts), strict=True)
    ]
    if not places or _share_bits(chunks):
        return bits_K
    start_P, size_P, item_P, before_P, chunk_P = np.array(sorted(places)).T
    part_K = np.maximum(np.searchsorted(start_P, addresses_K, side="right") - 1, 0)
    offset_K = addresses_K - start_P[part_K]
    is_inside_K = (offset_K >= 0) & (offset_K < size_P[part_K])
    place_K = before_P[part_K] + offset_K // item_P[part_K]
    for number in np.unique(chunk_P[part_K]).tolist():
        mine_K = is_inside_K & (chunk_P[part_K] == number)
        bits_K[mine_K] = _drawn_bits(chunks[number], place_K[mine_K])
    return bits_K


def _numbers_before(parts: Sequence[Tensor]) -> list[int]:
    """Return how many elements of a chunk come before each of its parts."""
    return [0, *np.cumsum([part.numel() for part in parts]).tolist()][:-1]


def _share_bits(chunks: Sequence[Chunk]) -> bool:
    """Whether two chunks may have got the same part of one key stream."""
    ends: dict[int, int] = {}
    for chunk in sorted(chunks, key=lambda c: c.start):
        key = id(chunk.keystream)
        if chunk.start < ends.get(key, 0):
            return True
        ends[key] = chunk.start + _BYTES * sum(part.numel() for part in chunk.parts)
    return False


def _drawn_bits(chunk: Chunk, place_K: _Indices) -> _Indices:
    """Return the bits of elements of a chunk: 16 of each of a block, then 8 of each."""
    bits_K = np.empty_like(place_K)
    size, block = sum(part.numel() for part in chunk.parts), _tuning.HOST_BLOCK
    for first in np.unique(place_K // block * block).tolist():
        count = min(block, size - first)
        drawn = chunk.keystream.again(chunk.start + _BYTES * first, _BYTES * count)
        words_N = np.frombuffer(drawn, np.uint16, count)
        points_N = np.frombuffer(drawn, np.uint8, count, 2 * count)
        mine_K = place_K // block * block == first
        at = place_K[mine_K] - first
        bits_K[mine_K] = 256 * words_N[at].astype(np.int64) + points_N[at]
    return bits_K


def _is_rounded(
    before_K: _Floats, after_K: _Floats, bits_K: _Indices, stddev: float
) -> NDArray[np.bool_]:
    """Whether each sum is the one without noise, and normal noise, and rounded."""
    spacing = granularity(stddev)
    sum_K, steps_K = before_K / spacing, after_K / spacing
    size_K = np.abs(steps_K)
    slack_K = size_K * np.where(size_K > _LARGEST_EXACT, 2.0**-23, 2.0**-50)
    # Of the midpoints below and above the lattice point, how much noise leads there.
    below_K, above_K = (
        _normal_probability(
            (steps_K + side * (0.5 + slack_K) - sum_K) * spacing / stddev
        )
        for side in (-1, 1)
    )
    low_K, high_K = bits_K * 2.0**-24, (bits_K + 1) * 2.0**-24
    meets_K = (below_K < high_K + _ERROR) & (above_K > low_K - _ERROR)
    is_right_K = (bits_K >= 0) & (steps_K == np.rint(steps_K)) & meets_K
    # An infinite sum stays without a value, whatever is added.
    return np.asarray(is_right_K | ~np.isfinite(sum_K))


def _normal_probability(z_K: _Floats) -> _Floats:
    probability_K: _Floats = torch.special.erfc(
        torch.from_numpy(z_K / -math.sqrt(2))
    ).numpy()
    return probability_K / 2
