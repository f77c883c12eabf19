"""Load compiled kernels, and verify them before their first use."""

import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType


__all__ = ("load_verified_kernel",)


def load_verified_kernel(
    module: str, check: Callable[[ModuleType], None], *, otherwise: str
) -> ModuleType | None:
    """Return a module of kernels if it imports, compiles and passes *check*, or else None.

    Args:
        module: The full name of the module.
        check: Compares its kernels with a reference, and raises if they differ.
        otherwise: What happens without the kernels, for the warning that says why.
    """
    try:
        kernels = import_module(module)
        check(kernels)
    except Exception as error:  # noqa: BLE001 -- compilers fail in many ways
        warnings.warn(
            f"{otherwise}, which is as safe and slower: the kernel for it cannot be used"
            f" because of {error!r}",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return kernels
