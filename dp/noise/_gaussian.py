"""The noise stage: its interface and its guarantees."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from operator import attrgetter
from typing import Final, Literal, final

import torch
from torch import Tensor

from dp import _checks
from dp._keystream import KEY_BITS, RepeatedKeys
from dp._ranks import rank_and_size
from dp.noise._chunks import as_vector, in_chunks
from dp.noise._device.noise import add_rounded
from dp.noise._host.add import add_on_host
from dp.noise._host.exact import TOTAL_VARIATION, granularity
from dp.noise._host.verification import Sample, Verifier
from dp.noise._torch_generators import TorchGenerators


__all__ = ("GaussianNoise", "Witness", "witnessed", "witnessed_release")

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
    "debug": "NOT PRIVATE: a debugging seed, by which anyone can repeat the noise",
}
# Standard deviations that keep a lattice inside the normal numbers of the dtype.
_LOG2_RANGE: Final = {torch.float32: 64, torch.float64: 512}

_LARGEST_EPSILON: Final = 700.0  # exp(epsilon) overflows above 709.
_REQUIRES_GRAD: Final = attrgetter("requires_grad")
# Devices that round by themselves; others lack float64, or emulate it slowly.
_WITH_FLOAT64: Final = frozenset({"cuda"})


Source = Literal["os", "fast", "debug"]
"""Where noise comes from."""

Witness = Callable[[Callable[[], float], Sequence[Tensor]], float]
"""Called in place of adding noise: with what adds it, and with the sums."""

_witness: ContextVar[Witness | None] = ContextVar("witness of noise", default=None)
_release: ContextVar[Witness | None] = ContextVar("witness of a release", default=None)


@contextmanager
def witnessed(witness: Witness) -> Iterator[None]:
    """Let *witness* see the sums of this context, before and after noise is added.

    A witness of the context around it is called by this one's, in place of the noise.
    """
    outer = _witness.get()

    def both(add: Callable[[], float], sums: Sequence[Tensor]) -> float:
        return witness(add if outer is None else partial(outer, add, sums), sums)

    try:  # Before it is set: an interrupt must leave no witness behind.
        _witness.set(both)
        yield
    finally:
        _witness.set(outer)


@contextmanager
def witnessed_release(witness: Witness | None) -> Iterator[None]:
    """Let the witness of a release, if there is one, see the sums of this context.

    It is called around the witnesses of :func:`witnessed`. There is one at most: what an
    interrupt left of another release is replaced.
    """
    try:
        _release.set(witness)
        yield
    finally:
        _release.set(None)


def is_observed() -> bool:
    """Whether an audit sees the sums of this context, or stands in for what adds noise."""
    return _witness.get() is not None or GaussianNoise.add_ is not _ADD


@final
class GaussianNoise:
    """Add independent Gaussian noise to tensors.

    Args:
        rng: ``"os"`` draws from a cryptographic generator under a fresh 256-bit key
            of the operating system, and rounds exactly. Tensors on CUDA devices are
            rounded there, with random bits from ChaCha20 where Triton is installed, or
            else from AES on the host. Tensors on other devices are copied to the host
            and back in chunks. On the host, numba halves the time where it is installed,
            without a change to any result, once 134 million elements were drawn. The first
            call on a CUDA device, and the first with numba, take a few seconds more, to
            compile and check kernels. ``"fast"`` draws from torch's generator on
            the tensor's device, seeded by the operating system, and adds in floating
            point; an attacker who guesses the seed can subtract the noise.
            ``"debug"`` is NOT PRIVATE: a program that needs the same run twice gets
            ``"os"``'s noise under keys that *seed* decides, on one thread, and the
            loader's batches too. Every epsilon of the run is infinite.
        seed: The seed of ``"debug"``, and of nothing else. A copy, or what is loaded
            from a checkpoint, begins with it again.

    Raises:
        ValueError: If *rng* is another word, or if there is a *seed* for another
            source than ``"debug"``, or none for that.

    Guarantees:
        * No seed, state or checkpoint affects the noise, but for ``"debug"``. With ``"os"`` a key lives for
          one thread's or device's part of one call; with ``"fast"`` every object,
          thread, device and forked process has its own generator. Copies and pickles
          carry neither.
        * With ``"os"`` the result is ``round(x + N)`` for the real number ``x + N``,
          where ``round`` goes to the nearest multiple of :meth:`granularity`. This is
          post-processing of the ideal Gaussian mechanism on the tensor as given, so
          floating-point attacks on noise (Mironov 2012) do not apply, and the
          sensitivity does not grow. :meth:`delta_error` bounds the deviation from it.
        * Not covered: rounding errors in the computation of the sums passed in.

    References:
        Knuth and Yao, "The Complexity of Nonuniform Random Number Generation", 1976:
        no more random bits than the result needs.
        Mironov, "On Significance of the Least Significant Bits for Differential
        Privacy", 2012, section 5.2: rounding after an exact addition.
    """

    def __init__(self, *, rng: Source = "os", seed: int | None = None) -> None:
        if rng not in _DESCRIPTIONS:
            raise ValueError(
                f"rng must be 'os', 'fast' or 'debug', got {_checks.shown(rng)}"
            )
        # Noise of a seed can be had again: two runs with one seed on two datasets have
        # the same noise, and the difference of their releases has none.
        if (rng == "debug") != (seed is not None):
            raise ValueError(
                f"seed is for rng='debug', which needs one, got rng={_checks.shown(rng)} and"
                f" seed={_checks.shown(seed)}: noise that protects anything has no seed"
            )
        self._rng: Source = rng
        self._seed = seed
        self._generators = TorchGenerators()
        self._debug_keys: RepeatedKeys | None = None
        self._verifier = Verifier()

    @property
    def rng(self) -> Source:
        """The source of randomness."""
        return self._rng

    @property
    def seed(self) -> int | None:
        """The seed of ``"debug"``; None for every other source."""
        return self._seed

    @property
    def description(self) -> str:
        """A one-line description of the generator, for the certificate."""
        return _DESCRIPTIONS[self._rng]

    def __repr__(self) -> str:
        if self._rng == "debug":
            return f"<NOT PRIVATE: GaussianNoise(rng='debug', seed={self._seed!r})>"
        return f"GaussianNoise(rng={self._rng!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # Never its state: a copy draws other noise.
        return _rebuilt, (self._rng, self._seed)

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
            WrongNoiseError: If an element did not get its noise: elements on the host
                are verified in the first three calls, and one in 128 after that.
        """
        if any(map(_REQUIRES_GRAD, sums)):  # No graph is made of noise.
            sums = [tensor.detach() for tensor in sums]
        add = partial(self._add, sums, stddev)
        for variable in (_witness, _release):
            if (witness := variable.get()) is not None:
                add = partial(witness, add, sums)
        return add()

    def check(self, sums: Sequence[Tensor], *, stddev: float) -> None:
        """Raise what :meth:`add_` would, before a release is charged.

        Raises:
            TypeError, ValueError: As :meth:`add_`.
        """
        _placed(sums, _checks.non_negative(stddev=stddev))

    def _add(self, sums: Sequence[Tensor], stddev: float) -> float:
        stddev = _checks.non_negative(stddev=stddev)
        on_host, on_device = _placed(sums, stddev)
        # Nothing to add: every epsilon of such a release is infinite.
        if stddev == 0:
            return stddev
        if self._rng == "fast":
            self._add_fast(list(in_chunks(sums)), stddev)
            return stddev
        is_verified = self._verifier.is_due()
        if self._rng == "debug":
            if self._debug_keys is None:  # Ranks may be made after this object.
                rank, _ = rank_and_size()
                name = f"noise of seed {self._seed}, rank {rank}: "
                self._debug_keys = RepeatedKeys(name)
            with self._debug_keys.used():
                _add_exactly(
                    on_host, on_device, stddev, is_verified=is_verified, most_threads=1
                )
        else:
            _add_exactly(on_host, on_device, stddev, is_verified=is_verified)
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
        """Return the spacing of the lattice of results, or 0 if there is none.

        >>> GaussianNoise().granularity(stddev=1.0)
        0.0625
        """
        stddev = _checks.positive(stddev=stddev)
        return 0.0 if self._rng == "fast" else granularity(stddev)

    def delta_error(self, num_elements: int, *, epsilon: float) -> float:
        """Return the increase of delta that accounts for inexact sampling.

        Args:
            num_elements: The number of elements noised, over all releases.
            epsilon: The epsilon of the (epsilon, delta) guarantee.

        Returns:
            ``(1 + exp(epsilon)) * t``, where ``t`` bounds the total variation distance
            between the releases and the rounded ideal mechanism, given uniform random
            bytes; infinity for ``"fast"``, for which no bound is known, for ``"debug"``,
            and for an *epsilon* so large that it guarantees nothing.
        """
        if self._rng != "os" or epsilon > _LARGEST_EPSILON:
            return math.inf
        # Example: a million elements at epsilon 3 add 6e-32 to delta.
        distance = _checks.count(num_elements=num_elements) * TOTAL_VARIATION
        return (1 + math.exp(epsilon)) * distance


def _rebuilt(rng: Source, seed: int | None = None) -> GaussianNoise:
    return GaussianNoise(rng=rng, seed=seed)


def _add_exactly(
    on_host: Sequence[Tensor],
    on_device: Sequence[Tensor],
    stddev: float,
    *,
    is_verified: bool,
    most_threads: int | None = None,
) -> None:
    """Add noise that is rounded exactly, where each tensor is.

    Raises:
        WrongNoiseError: If an element did not get it, where that is verified.
    """
    if on_host:
        dense = [tensor.contiguous() for tensor in on_host]
        sample = Sample.of(dense) if is_verified else None
        chunks = add_on_host(dense, stddev, most_threads)
        if sample is not None:
            sample.check(chunks, stddev)
        for tensor, copy in zip(on_host, dense, strict=True):
            if copy is not tensor:
                tensor.copy_(copy)
    if on_device:
        add_rounded(list(in_chunks(on_device)), stddev)


def _placed(sums: Sequence[Tensor], stddev: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return tensors by where they are rounded, if all of them can hold the noise."""
    on_host, on_device, dtypes = _by_place(sums)
    for dtype in dtypes:
        _check_range(dtype, stddev)
    return on_host, on_device


def _by_place(
    sums: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor], set[torch.dtype]]:
    """Check tensors, and split them by whether the host or their device rounds them.

    Also return their dtypes. All of it in one loop: with thousands of small tensors, to
    look at each takes as long as to draw its noise.
    """
    on_host, on_device = list[Tensor](), list[Tensor]()
    dtypes = set[torch.dtype]()
    host = on_device if "cpu" in _WITH_FLOAT64 else on_host
    for tensor in sums:
        _check_tensor(tensor)
        dtypes.add(tensor.dtype)
        if tensor.is_cpu:  # Asked first: a device's type is a string made anew.
            host.append(tensor)
        elif tensor.device.type in _WITH_FLOAT64:
            on_device.append(tensor)
        else:
            on_host.append(tensor)
    return on_host, on_device, dtypes


_ADD: Final = GaussianNoise.add_


def _check_tensor(tensor: Tensor) -> None:
    if tensor.dtype not in _LOG2_RANGE or tensor.layout != torch.strided:
        raise TypeError(
            f"noise needs dense sums in float32 or float64, got {tensor.dtype} with"
            f" layout {tensor.layout}; sum the gradients in float32"
        )
    # A sum [3].expand(5, 3) has 15 elements and 3 numbers: one noise for five of them.
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
