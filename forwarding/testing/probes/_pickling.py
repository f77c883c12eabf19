"""A trip through pickle, also for classes that stand where pickle finds none."""

import io
import operator
import pickle
import sys
from typing import Any


__all__ = ("pickled",)


def _is_out_of_reach(cls: type) -> bool:
    """Whether a class stands where pickle cannot import it from.

    That is in a function, or in what is executed and no module: a notebook cell that was
    run again, a doctest, ``exec``. A class that its own module does not have under its
    name is not meant: no program can pickle that one.
    """
    module = sys.modules.get(cls.__module__)
    if "<locals>" in cls.__qualname__ or module is None:
        return True
    if cls.__module__ not in ("__main__", "builtins"):  # exec() without a __name__.
        return False
    try:
        return operator.attrgetter(cls.__qualname__)(module) is not cls
    except AttributeError:
        return True


class _ByReference(pickle.Pickler):
    """Pickle classes out of reach by their place in a list."""

    def __init__(self, file: io.BytesIO, classes: list[type]) -> None:
        super().__init__(file)
        self._classes = classes

    def persistent_id(self, obj: object) -> int | None:
        if isinstance(obj, type) and _is_out_of_reach(obj):
            self._classes.append(obj)
            return len(self._classes) - 1
        return None


class _FromReference(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, classes: list[type]) -> None:
        super().__init__(file)
        self._classes = classes

    def persistent_load(self, pid: int) -> type:
        return self._classes[pid]


def pickled(wrapper: object) -> Any:
    """Return ``wrapper`` after a trip through pickle.

    A class that pickle cannot import, as in a test's function, is not held against it.
    """
    file, classes = io.BytesIO(), list[type]()
    _ByReference(file, classes).dump(wrapper)
    file.seek(0)
    return _FromReference(file, classes).load()
