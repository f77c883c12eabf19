"""The exact sum of tensors and Gaussian noise, rounded to a lattice on the host.

Both ways of the float32 stage take the same words of the key stream in the same order, so
that under one key they give the same results: for every block the first 16 bits of all of
its elements, then the next 8 of all, and after the last block of a vector what its
undecided elements need.

Shapes: ``N`` elements of a block, ``C`` that float32 left undecided.
"""

from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp import _tuning
from dp._keystream import Keystream
from dp.noise._chunks import as_vector
from dp.noise._host.compiled_stage import CompiledFloat32, Kernel, Vectors
from dp.noise._host.exact import decide
from dp.noise._host.float32_stage import NumpyFloat32, Undecided
from dp.noise._host.lattice import Lattice
from dp.noise._host.workspace import Workspace


__all__ = ("RoundedGaussian",)

_Array = NDArray[Any]


@final
class RoundedGaussian:
    """The noise of one call and thread: N(0, stddev**2), added to tensors and rounded.

    Args:
        stddev: Standard deviation, in the unit of the tensors.
        keystream: The source of random bits.
        kernel: A verified kernel of the float32 stage; None for numpy's operations.
        workspace: Memory for temporaries, for as long as this object is used.
    """

    def __init__(
        self,
        *,
        stddev: float,
        keystream: Keystream,
        kernel: Kernel | None,
        workspace: Workspace,
    ) -> None:
        self._stddev = stddev
        lattice = Lattice.of(stddev)
        self._keystream = keystream
        self._stage = (
            NumpyFloat32(lattice, workspace)
            if kernel is None
            else CompiledFloat32(lattice, kernel, workspace)
        )
        self._workspace = workspace

    @property
    def keystream(self) -> Keystream:
        """The source of random bits."""
        return self._keystream

    @np.errstate(all="ignore")  # An infinite sum may become NaN, as with any noise.
    def add_(self, parts: list[Tensor]) -> None:
        """Add noise to tensors of one dtype, float32 or float64, in place."""
        if isinstance(self._stage, NumpyFloat32):
            with as_vector(parts, torch.device("cpu")) as x:
                self._add_to_vector(x.numpy(), self._stage)
        elif (vectors := Vectors.of(parts)) is not None:
            self._add_to_vectors(vectors, self._stage)
        else:  # Of a device that does not round by itself: copied here, and back.
            with as_vector(parts, torch.device("cpu")) as x:
                self.add_([x])

    def _add_to_vector(self, x_N: _Array, stage: NumpyFloat32) -> None:
        blocks = []
        for start, words_N, points_N in self._drawn_blocks(len(x_N)):
            block = x_N[start : start + len(words_N)]
            left = stage.round_(block, words_N, points_N)
            blocks.append(left._replace(where=left.where + start))
        if blocks:
            left = Undecided.of(blocks)
            x_N[left.where] = self._decided(left)

    def _add_to_vectors(self, x: Vectors, stage: CompiledFloat32) -> None:
        blocks = [
            stage.round_(x, words_N, points_N)
            for _, words_N, points_N in self._drawn_blocks(int(x.sizes.sum()))
        ]
        if blocks:
            left = Undecided.of(blocks)
            stage.write(left, self._decided(left), x)

    def _drawn_blocks(self, size: int) -> Iterator[tuple[int, _Array, _Array]]:
        """Yield the start of each block, and the 16 and 8 bits of its elements."""
        for start in range(0, size, _tuning.HOST_BLOCK):
            count = min(_tuning.HOST_BLOCK, size - start)
            words_N = self._workspace.array("words", count, np.uint16)
            points_N = self._workspace.array("points", count, np.uint8)
            # 3 bytes an element; what stays undecided takes 8 more, and once in 2**30
            # another 24.
            self._keystream.fill(words_N)
            self._keystream.fill(points_N)
            yield start, words_N, points_N

    def _decided(self, left: Undecided) -> NDArray[np.float64]:
        """Return the results of undecided elements."""
        return decide(left.x, left.bits, stddev=self._stddev, keystream=self._keystream)
