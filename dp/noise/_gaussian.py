"""The noise stage: what is asked of it, and what it promises."""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, final

import torch
from torch import Tensor

from dp import _checks
from dp._keystream import KEY_BITS, Keystream
from dp.noise._chunks import as_vector, in_chunks
from dp.noise._device.noise import add_rounded
from dp.noise._host.lattice import TOTAL_VARIATION, RoundedGaussian, granularity
from dp.noise._torch_generators import TorchGenerators


__all__ = ("GaussianNoise",)

_DESCRIPTIONS: Final = {
    "os": (
        f"AES-{KEY_BITS} in counter mode, or ChaCha20 on a CUDA device, under a fresh"
        f" {KEY_BITS}-bit key of the operating system for every release; the exact sum"
        " rounded to a lattice of 1/16 to 1/32 of the standard deviation"
    ),
    "fast": (
        "torch's generator, NOT cryptographic, with a 64-bit seed of the operating"
        " system, of which 32 bits take effect on CPU; floating-point sum, open to"
        " attacks on its low-order bits"
    ),
}
# Standard deviations that keep a lattice inside the normal numbers of the dtype.
_LOG2_RANGE: Final = {torch.float32: 64, torch.float64: 512}

_LARGEST_EPSILON: Final = 700.0  # Its exponential is a number.
_HOST: Final = torch.device("cpu")
_WITH_FLOAT64: Final = frozenset({"cuda"})  # Other devices lack it, or do it slowly.
_CHUNKS_WORTH_A_THREAD: Final = 2
# Of the host: threads wait for each other between numpy's calls, and 16 of them took
# twice as long as 2.
_MOST_THREADS: Final = 2


@final
class GaussianNoise:
    """Add independent Gaussian noise to tensors.

    Args:
        rng: ``"os"`` draws from a cryptographic generator under a fresh 256-bit key
            of the operating system, and rounds exactly. Tensors of CUDA devices are
            rounded there, with bits of ChaCha20 where Triton is installed, and else
            of AES, sent from the host. Tensors of other devices are copied to the
            host and back by chunks. The first call on a CUDA device takes some seconds,
            to compile and to check. ``"fast"`` draws from torch's generator on the
            tensor's device, seeded by the operating system, and adds in floating
            point: whoever guesses the seed subtracts the noise.

    Raises:
        ValueError: If *rng* is neither.

    Guarantees:
        * No seed, state or checkpoint has an effect on the noise. With ``"os"`` a key
          lives for one thread's or device's part of one call; with ``"fast"`` every object,
          thread, device and forked process has a generator of its own. Copies and
          pickles carry neither.
        * With ``"os"`` the result is ``round(x + N)`` for the real number ``x + N``,
          where ``round`` goes to the nearest multiple of :meth:`granularity`. It is
          post-processing of the ideal Gaussian mechanism on the tensor as it stands,
          so that floating-point attacks on noise (Mironov 2012) find nothing, and no
          sensitivity is added. :meth:`delta_error` bounds what is missing to that.
        * Not covered: how the sum that is passed in was itself rounded.

    References:
        Knuth and Yao, "The Complexity of Nonuniform Random Number Generation", 1976:
        no more random bits than the result needs.
        Mironov, "On Significance of the Least Significant Bits for Differential
        Privacy", 2012, section 5.2: rounding after an exact addition.
    """

    def __init__(self, *, rng: Literal["os", "fast"] = "os") -> None:
        if rng not in _DESCRIPTIONS:
            raise ValueError(f"rng must be 'os' or 'fast', got {rng!r}")
        self._rng: Literal["os", "fast"] = rng
        self._generators = TorchGenerators()

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

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (self._rng,)  # A copy has its own randomness.

    @torch.no_grad()
    def add_(self, sums: Sequence[Tensor], *, stddev: float) -> float:
        """Add noise of standard deviation *stddev* to every element, in place.

        Args:
            sums: Dense tensors of any shape, on any device, in float32 or float64.
            stddev: Standard deviation, in the unit of *sums*. At 0 nothing changes.

        Returns:
            The standard deviation of the noise that was added.

        Raises:
            TypeError: If a tensor is not a dense tensor of float32 or float64.
            ValueError: If *stddev* is negative, infinite, NaN, or so small or large
                that the precision of a tensor could not hold the noise.
        """
        stddev = _checks.non_negative(stddev=stddev)
        for tensor in sums:
            _check_tensor(tensor)
        for dtype in {tensor.dtype for tensor in sums}:
            _check_range(dtype, stddev)
        if stddev == 0:
            return stddev
        chunks = list(in_chunks(sums, num_threads=_num_threads()))
        if self._rng == "os":
            on_host, on_device = _by_place(chunks)
            if on_host:
                _add_rounded(on_host, stddev)
            if on_device:
                add_rounded(on_device, stddev)
        else:
            self._add_fast(chunks, stddev)
        return stddev

    def _add_fast(self, chunks: Sequence[list[Tensor]], stddev: float) -> None:
        for parts in chunks:
            device = parts[0].device
            with as_vector(parts, device) as x:
                noise = torch.empty_like(x).normal_(
                    generator=self._generators.on(device)
                )
                x.add_(noise, alpha=stddev)

    def granularity(self, *, stddev: float) -> float:
        """Return the spacing of the lattice that results lie on; 0 if there is none.

        >>> GaussianNoise().granularity(stddev=1.0)
        0.0625
        """
        stddev = _checks.positive(stddev=stddev)
        return 0.0 if self._rng == "fast" else granularity(stddev)

    def delta_error(self, num_elements: int, *, epsilon: float) -> float:
        """Return what to add to delta for sampling that is not perfectly Gaussian.

        Args:
            num_elements: Elements noised over all releases.
            epsilon: The epsilon that the delta belongs to.

        Returns:
            ``(1 + exp(epsilon)) * t``, where ``t`` bounds the total variation between
            what was released and the rounded ideal mechanism, given uniform key
            bytes; infinity for ``"fast"``, for which no bound is known, and for an
            *epsilon* so large that it says nothing.
        """
        if self._rng == "fast" or epsilon > _LARGEST_EPSILON:
            return math.inf
        distance = _checks.count(num_elements=num_elements) * TOTAL_VARIATION
        return (1 + math.exp(epsilon)) * distance


def _rebuilt(rng: Literal["os", "fast"]) -> GaussianNoise:
    return GaussianNoise(rng=rng)


def _by_place(
    chunks: Sequence[list[Tensor]],
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Sort chunks by where they are rounded: on the host, and on their device."""
    places: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    for parts in chunks:
        places[parts[0].device.type in _WITH_FLOAT64].append(parts)
    return places


def _add_rounded(chunks: Sequence[list[Tensor]], stddev: float) -> None:
    """Add noise drawn on the host, on a thread or two."""
    waiting = deque(chunks)  # Threads take from it in turn: cores are not alike.
    num_threads = min(_num_threads(), len(chunks) // _CHUNKS_WORTH_A_THREAD)
    if num_threads <= 1:
        _add_to_waiting(waiting, stddev)
        return
    with ThreadPoolExecutor(num_threads - 1) as pool:
        others = [
            pool.submit(_add_to_waiting, waiting, stddev)
            for _ in range(num_threads - 1)
        ]
        _add_to_waiting(waiting, stddev)
        for other in others:
            other.result()


def _num_threads() -> int:
    return min(torch.get_num_threads(), _MOST_THREADS)


@torch.no_grad()
def _add_to_waiting(waiting: deque[list[Tensor]], stddev: float) -> None:
    """Add noise, under a key of this thread's own, to chunks while there are any."""
    noise = RoundedGaussian(stddev=stddev, keystream=Keystream("noise"))
    while True:
        try:
            parts = waiting.popleft()
        except IndexError:
            return
        with as_vector(parts, _HOST) as x:
            noise.add_(x.numpy())


def _check_tensor(tensor: Tensor) -> None:
    if tensor.dtype not in _LOG2_RANGE or tensor.layout != torch.strided:
        raise TypeError(
            f"noise needs dense sums in float32 or float64, got {tensor.dtype} with"
            f" layout {tensor.layout}; sum the gradients in float32"
        )
    if not tensor.is_contiguous() and any(
        n > 1 and step == 0
        for n, step in zip(tensor.shape, tensor.stride(), strict=True)
    ):
        raise ValueError(
            f"a sum of shape {tuple(tensor.shape)} is expanded, so its elements would"
            " share their noise; pass tensor.contiguous()"
        )


def _check_range(dtype: torch.dtype, stddev: float) -> None:
    if stddev and abs(math.log2(stddev)) > _LOG2_RANGE[dtype]:
        raise ValueError(
            f"stddev must lie within 2**-{_LOG2_RANGE[dtype]} and"
            f" 2**{_LOG2_RANGE[dtype]} for {dtype}, got {stddev!r};"
            " scale the loss and max_grad_norm"
        )
