"""Kernels of Triton, where there are any that do what they should."""

import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType


__all__ = ("load_verified_kernel",)


def load_verified_kernel(
    name: str, check: Callable[[ModuleType], None], *, otherwise: str
) -> ModuleType | None:
    """Return a module of kernels if it can be imported, compiled and trusted.

    Args:
        name: Of the module in :mod:`dp.noise._device.kernels`.
        check: Compares what its kernels do with what they should do, and raises.
        otherwise: What is done without them, for the warning that says why.
    """
    try:
        kernels = import_module(f"dp.noise._device.kernels.{name}")
        check(kernels)
    except Exception as error:  # noqa: BLE001 -- whatever a compiler may fail with.
        warnings.warn(
            f"{otherwise}, which is as safe and slower: the kernel for it cannot be used"
            f" because of {error!r}",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return kernels
