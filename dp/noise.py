"""Gaussian noise that nobody can predict, repeat or subtract.

Not done here: how much noise is enough (:mod:`dp.accounting`), and what it is added
to (:mod:`dp.clipping`).
"""

import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Final, Literal, final

import torch
from torch import Tensor

from dp import _checks
from dp._keystream import KEY_BITS, Keystream


__all__ = ("GaussianNoise",)

_CHUNK: Final = 1 << 16  # Normals drawn at a time: scratch memory stays in cache.
_PRECISIONS: Final = (torch.float32, torch.float64)
_DESCRIPTIONS: Final = {
    "os": (
        f"AES-{KEY_BITS} in counter mode, a fresh key from the operating system for"
        " every release; Box-Muller"
    ),
    "fast": (
        "torch's generator, NOT cryptographic, with a 64-bit seed from the operating"
        " system (32 bits take effect on CPU)"
    ),
}


@final
class GaussianNoise:
    """Add independent Gaussian noise to tensors.

    Args:
        rng: ``"os"`` draws from a cryptographic generator under a fresh 256-bit key
            of the operating system. ``"fast"`` draws from torch's generator, freshly
            seeded by the operating system; whoever can guess the seed can subtract
            the noise.

    Raises:
        ValueError: If *rng* is neither.

    Guarantees:
        * No seed, state or checkpoint has an effect on the noise. With ``"os"`` a key
          lives for one call; with ``"fast"`` every object, thread, device and forked
          process has a generator of its own.

    References:
        Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """

    def __init__(self, *, rng: Literal["os", "fast"] = "os") -> None:
        if rng not in _DESCRIPTIONS:
            raise ValueError(f"rng must be 'os' or 'fast', got {rng!r}")
        self._rng: Literal["os", "fast"] = rng
        self._generators = _Generators()

    @property
    def rng(self) -> Literal["os", "fast"]:
        """Where the noise comes from."""
        return self._rng

    @property
    def description(self) -> str:
        """One line on the generator, for the certificate."""
        return _DESCRIPTIONS[self._rng]

    def __repr__(self) -> str:
        return f"GaussianNoise(rng={self._rng!r})"

    @torch.no_grad()
    def add_(self, sums: Sequence[Tensor], *, stddev: float) -> float:
        """Add noise of standard deviation *stddev* to every element, in place.

        Args:
            sums: Tensors of any shape and device, in float32 or float64.
            stddev: Standard deviation, in the unit of *sums*. At 0 nothing is added.

        Returns:
            The standard deviation of the noise that was added.

        Raises:
            TypeError: If a tensor is not a dense tensor of float32 or float64.
            ValueError: If *stddev* is negative, infinite or NaN.
        """
        stddev = _checks.non_negative(stddev=stddev)
        for tensor in sums:
            _check_precision(tensor)
        if stddev == 0:
            return stddev
        add = _add_secure if self._rng == "os" else self._add_fast
        add(sums, stddev)
        return stddev

    def _add_fast(self, sums: Sequence[Tensor], stddev: float) -> None:
        for tensor in sums:
            generator = self._generators.on(tensor.device)
            noise = torch.empty(_CHUNK, dtype=tensor.dtype, device=tensor.device)
            for part in _parts(tensor):
                drawn = noise[: part.numel()].normal_(generator=generator)
                part.add_(drawn.view(part.shape), alpha=stddev)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (self._rng,)  # A copy has its own randomness.


def _rebuilt(rng: Literal["os", "fast"]) -> GaussianNoise:
    return GaussianNoise(rng=rng)


def _check_precision(tensor: Tensor) -> None:
    if tensor.dtype not in _PRECISIONS or tensor.layout != torch.strided:
        raise TypeError(
            f"noise needs dense sums in float32 or float64, got {tensor.dtype} with"
            f" layout {tensor.layout}; sum the gradients in float32"
        )


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Views of the tensor, of at most one chunk each, that cover it once."""
    if tensor.numel() <= _CHUNK:
        yield tensor
        return
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(order)  # Noise is the same in every order of the axes.
    if dense.is_contiguous():
        yield from torch.split(dense.view(-1), _CHUNK)
        return
    for row in tensor.unbind(0):
        yield from _parts(row)


def _add_secure(sums: Sequence[Tensor], stddev: float) -> None:
    sources = {dtype: _SecureNormals(dtype) for dtype in _PRECISIONS}
    for tensor in sums:
        for part in _parts(tensor):
            noise = sources[tensor.dtype].take(part.numel())
            part.add_(noise.to(tensor.device).view(part.shape), alpha=stddev)


@final
class _SecureNormals:
    """Standard normals from one keystream, a chunk at a time; each is given once."""

    def __init__(self, dtype: torch.dtype) -> None:
        bits = torch.int32 if dtype == torch.float32 else torch.int64
        self._keystream = Keystream()
        self._bits = torch.empty(_CHUNK, dtype=bits)
        self._radius = torch.empty(_CHUNK // 2, dtype=dtype)
        self._angle = torch.empty(_CHUNK // 2, dtype=dtype)
        self._normals = torch.empty(_CHUNK, dtype=dtype)
        self._num_given = _CHUNK

    def take(self, count: int) -> Tensor:
        """Return *count* normals, at most a chunk, valid until the next call."""
        if self._num_given + count > _CHUNK:
            self._refill()
        self._num_given += count
        return self._normals[self._num_given - count : self._num_given]

    def _refill(self) -> None:
        self._keystream.fill(self._bits.numpy())
        half = _CHUNK // 2
        scale = 2.0 ** (1 - 8 * self._bits.itemsize)
        torch.bitwise_and(self._bits, torch.iinfo(self._bits.dtype).max, out=self._bits)
        self._radius.copy_(self._bits[:half]).add_(0.5).mul_(scale)
        self._radius.log_().mul_(-2).sqrt_()
        self._angle.copy_(self._bits[half:]).mul_(2 * math.pi * scale)
        torch.cos(self._angle, out=self._normals[:half]).mul_(self._radius)
        torch.sin(self._angle, out=self._normals[half:]).mul_(self._radius)
        self._num_given = 0


@final
class _Generators(threading.local):
    """Torch's generators of one thread, one a device, seeded by the OS."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._by_device: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator:
        if self._process != os.getpid():  # A forked child must not repeat its parent.
            self.__init__()
        if device not in self._by_device:
            generator = torch.Generator(device)
            generator.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))
            self._by_device[device] = generator
        return self._by_device[device]
