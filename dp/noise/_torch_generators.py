"""Torch's own generators, seeded by the operating system: fast, not secure."""

import os
import threading
from typing import final

import torch

from dp._keystream import new_key


__all__ = ("TorchGenerators",)


@final
class TorchGenerators(threading.local):
    """One generator per thread and device; a forked process starts new ones."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._by_device: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator of this thread on *device*."""
        if self._process != os.getpid():  # A child must not repeat its parent.
            self._process = os.getpid()
            self._by_device = {}
        if device not in self._by_device:
            generator = torch.Generator(device)
            seed = int.from_bytes(new_key()[:8], "little", signed=True)  # All it takes.
            generator.manual_seed(seed)
            self._by_device[device] = generator
        return self._by_device[device]
