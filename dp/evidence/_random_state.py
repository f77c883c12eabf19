"""The state of every random number generator that a loss function may draw from."""

import ctypes
import random
from collections.abc import Callable, Iterable
from typing import Any, Final, final

import numpy as np
import torch


__all__ = ("GENERATORS", "RandomState", "numpys_position")

GENERATORS: Final = (
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
)
_Way = tuple[Callable[[], Any], Callable[[Any], None]]  # To read a state, and to write.
_WORDS_OF_NUMPY: Final = 625  # Of 32 bits: 624 of its twister, and where it stands.


@final
class RandomState:
    """The states of torch's, numpy's and Python's generators, and of others.

    Args:
        others: Generators of the program's own, of :data:`GENERATORS`.
        devices: Accelerators whose generators count.
        numpys: Whether numpy's generator counts. Its state takes as long to read as a
            small model's forward pass; :func:`numpys_position` does not.
    """

    __slots__ = ("_states", "_ways")

    def __init__(
        self,
        others: Iterable[Any] = (),
        devices: Iterable[torch.device] = (),
        *,
        numpys: bool = True,
    ) -> None:
        # Whatever a loss may draw dropout, augmentation or labels from.
        ways: list[_Way] = [
            (torch.get_rng_state, torch.set_rng_state),
            (random.getstate, random.setstate),
            *map(_of_device, devices),
            *map(_of_generator, others),
        ]
        if numpys:
            ways.append((np.random.get_state, np.random.set_state))
        self._ways = ways
        self._states = [read() for read, _ in ways]

    def now(self) -> "RandomState":
        """Return the states of the same generators at this moment."""
        other = object.__new__(RandomState)
        other._ways = self._ways
        other._states = [read() for read, _ in self._ways]
        return other

    def restore(self) -> None:
        """Let every generator go on from this state."""
        for (_, write), state in zip(self._ways, self._states, strict=True):
            write(state)

    def equals(self, other: "RandomState") -> bool:
        """Whether the generators have drawn as many numbers in both states."""
        return _equal(self._states, other._states)  # noqa: SLF001


def numpys_position() -> bytes:
    """Return bytes that change when numpy's generator draws.

    The cached half of a pair of normal numbers is not in them, so they cannot put the
    generator back.
    """
    generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]  # Not in its stubs.
    address = generator.ctypes.state_address
    return ctypes.string_at(address, 4 * _WORDS_OF_NUMPY)


def _of_device(device: torch.device) -> _Way:
    module = torch.get_device_module(device)
    return (
        lambda: module.get_rng_state(device),
        lambda state: module.set_rng_state(state, device),
    )


def _of_generator(generator: Any) -> _Way:
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    return generator.get_state, generator.set_state


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, dict):
        return all(_equal(value, right[key]) for key, value in left.items())
    # numpy's state is a tuple that holds an array, which == would compare by element.
    if isinstance(left, list) or (
        isinstance(left, tuple) and any(isinstance(x, np.ndarray) for x in left)
    ):
        return all(map(_equal, left, right))
    return bool(left == right)
