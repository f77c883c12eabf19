"""Compute norms and clipped sums in the full precision of their dtype.

A norm that was computed in another precision than the sum it clips is no bound: TF32
drops 13 of 24 bits of factors and gradients, bfloat16 drops 16, and a clipped gradient
may exceed its bound by as much. So reduced precision that the user permits for the
model is not permitted here.
"""

import threading
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any, Final, final

import torch
from torch import Tensor


__all__ = ("FullPrecision", "device_types_of")

# The backends that may compute a float32 product in fewer bits. Their settings belong
# to the process, not to a thread.
_torch: Any = torch.backends  # Its annotations leave these out.
_ON_HOST: Final = (_torch.mkldnn.matmul, _torch.mkldnn.conv)
_ANYWHERE: Final = (_torch.cuda.matmul, _torch.cudnn.conv, *_ON_HOST)
_FULL: Final = ("ieee", "none")
_IS_CPU: Final = attrgetter("is_cpu")

_lock: Final = threading.Lock()
_inside: set["FullPrecision"] = set()
_allowed: list[tuple[Any, str]] = []  # The settings before the first one entered.


@final
class FullPrecision:
    """Compute in the dtype of the operands: without autocast, TF32 or bfloat16.

    Args:
        device_types: The types of the devices that are computed on.

    Guarantees:
        * The earlier settings are restored once no thread is inside any more.
        * Meanwhile other threads see the same settings: their products have full
          precision too, which may take longer.
    """

    __slots__ = ("_autocasts", "_backends", "_device_types")

    def __init__(self, device_types: Collection[str]) -> None:
        self._device_types = device_types
        self._backends = _ON_HOST if {*device_types} == {"cpu"} else _ANYWHERE
        self._autocasts: list[torch.autocast] = []

    def __enter__(self) -> None:
        with _lock:
            _inside.add(self)
            for backend in self._backends:
                if (precision := backend.fp32_precision) not in _FULL:
                    _allowed.append((backend, precision))
                    backend.fp32_precision = "ieee"
        for device_type in self._device_types:
            if torch.is_autocast_enabled(device_type):
                self._autocasts.append(torch.autocast(device_type, enabled=False))
                self._autocasts[-1].__enter__()

    def __exit__(self, *error: object) -> None:
        while self._autocasts:
            self._autocasts.pop().__exit__(*error)
        with _lock:
            _inside.remove(self)
            while _allowed and not _inside:
                backend, precision = _allowed.pop()
                backend.fp32_precision = precision


def device_types_of(tensors: Sequence[Tensor]) -> set[str]:
    """Return the types of the devices of tensors."""
    # Asked first, of thousands of parameters: a device's type is a string made anew.
    is_on_host = all(map(_IS_CPU, tensors))
    return {"cpu"} if is_on_host else {tensor.device.type for tensor in tensors}
