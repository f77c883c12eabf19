"""Load the function that is named on the command line: ``script.py:function``."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dp.cli._errors import InputError


__all__ = ("function_of",)


def function_of(target: str) -> Callable[..., Any]:
    """Return the function that *target* names.

    Args:
        target: ``path/to/script.py:function`` or ``package.module:function``.

    Raises:
        InputError: If there is no such file, module or function.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise InputError(
            f"{target!r} names no function; write script.py:function or"
            " package.module:function"
        )
    module = _from_file(Path(place)) if place.endswith(".py") else _imported(place)
    named: Any = getattr(module, name, None)
    if not callable(named):
        raise InputError(f"{place} has no function {name!r}")
    function: Callable[..., Any] = named
    return function


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018, S101 -- a .py has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # As for a script: what it pickles is found here.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def _imported(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise InputError(f"there is no module {name!r} to import") from error
        raise
    finally:
        sys.path.pop(0)
