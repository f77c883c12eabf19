"""The state of every random number generator that a loss function may draw from."""

import random
from collections.abc import Callable, Iterable
from typing import Any, Final, Self, final

import numpy as np
import torch


__all__ = ("GENERATORS", "RandomState")

GENERATORS: Final = (
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
)


@final
class RandomState:
    """The states of torch's, numpy's and Python's generators, and of others.

    Args:
        others: Generators of the program's own, of :data:`GENERATORS`.
        devices: Accelerators whose generators count.
    """

    __slots__ = ("_devices", "_others", "_states")

    def __init__(
        self, others: Iterable[Any] = (), devices: Iterable[torch.device] = ()
    ) -> None:
        self._others, self._devices = tuple(others), tuple(devices)
        self._states = [read() for read, _ in self._ways()]

    def now(self) -> Self:
        """Return the states of the same generators at this moment."""
        return type(self)(self._others, self._devices)

    def restore(self) -> None:
        """Let every generator go on from this state."""
        for (_, write), state in zip(self._ways(), self._states, strict=True):
            write(state)

    def equals(self, other: "RandomState") -> bool:
        """Whether the generators have drawn as many numbers in both states."""
        return _equal(self._states, other._states)

    def _ways(self) -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
        ways: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
            (torch.get_rng_state, torch.set_rng_state),
            (random.getstate, random.setstate),
            (np.random.get_state, np.random.set_state),
        ]
        for device in self._devices:
            ways.append(_of_device(device))
        return [*ways, *map(_of_generator, self._others)]


def _of_device(
    device: torch.device,
) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    module = torch.get_device_module(device)
    return (
        lambda: module.get_rng_state(device),
        lambda state: module.set_rng_state(state, device),
    )


def _of_generator(
    generator: Any,
) -> tuple[Callable[[], Any], Callable[[Any], None]]:
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
    if isinstance(left, list) or (
        isinstance(left, tuple) and any(isinstance(x, np.ndarray) for x in left)
    ):
        return all(map(_equal, left, right))
    return bool(left == right)
