"""A trip through pickle, also for classes that are defined inside a function."""

import io
import pickle
from typing import Any


__all__ = ("pickled",)


class _ByReference(pickle.Pickler):
    """Pickle classes defined inside a function by their place in a list."""

    def __init__(self, file: io.BytesIO, classes: list[type]) -> None:
        super().__init__(file)
        self._classes = classes

    def persistent_id(self, obj: object) -> int | None:
        if isinstance(obj, type) and "<locals>" in obj.__qualname__:
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

    A class defined inside a function, as in a test, is not held against it.
    """
    file, classes = io.BytesIO(), list[type]()
    _ByReference(file, classes).dump(wrapper)
    file.seek(0)
    return _FromReference(file, classes).load()
