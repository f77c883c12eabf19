"""Norms and clipped sums in the precision of their dtype, whatever else is allowed.

A norm that was found in another precision than the sum it clips is no bound: with
TF32 factors and gradients lose 13 of 24 bits, with bfloat16 16 of them, and a clipped
gradient may be longer than its bound by as much. So what the user allows for the model
is not allowed here.
"""

import threading
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any, Final, final

import torch


__all__ = ("FullPrecision",)

# What may compute a float32 product in fewer bits. The settings are the process's.
_torch: Any = torch.backends  # Whose annotations leave these out.
_ON_HOST: Final = (_torch.mkldnn.matmul, _torch.mkldnn.conv)
_ANYWHERE: Final = (_torch.cuda.matmul, _torch.cudnn.conv, *_ON_HOST)
_FULL: Final = ("ieee", "none")

_lock: Final = threading.Lock()
_inside: set["FullPrecision"] = set()
_allowed: list[tuple[Any, str]] = []  # Before the first of those that are inside.


@final
class FullPrecision:
    """Compute in the dtype of the operands: without autocast, TF32 or bfloat16.

    Args:
        device_types: Of the tensors that are computed with.

    Guarantees:
        * What was allowed is allowed again once no thread needs this any more.
        * Other threads see the same settings meanwhile: their products are of full
          precision too, which may take longer.
    """

    __slots__ = ("_autocasts", "_backends", "_device_types")

    def __init__(self, device_types: Collection[str]) -> None:
        self._device_types = device_types
        self._backends = _ON_HOST if {*device_types} == {"cpu"} else _ANYWHERE
        self._autocasts = ExitStack()

    def __enter__(self) -> None:
        with _lock:
            _inside.add(self)
            for backend in self._backends:
                if (precision := backend.fp32_precision) not in _FULL:
                    _allowed.append((backend, precision))
                    backend.fp32_precision = "ieee"
        for device_type in self._device_types:
            if torch.is_autocast_enabled(device_type):
                off = torch.autocast(device_type, enabled=False)
                self._autocasts.enter_context(off)

    def __exit__(self, *_: object) -> None:
        self._autocasts.close()
        with _lock:
            _inside.remove(self)
            while _allowed and not _inside:
                backend, precision = _allowed.pop()
                backend.fp32_precision = precision
