"""Memory for temporaries that is kept from one block, and one call, to the next.

A fresh array of a megabyte costs a page fault every 4 KB, which together take as long as
the arithmetic on it.
"""

from collections import deque
from typing import Any, Final, final

import numpy as np
from numpy.typing import DTypeLike, NDArray


__all__ = ("Workspace", "borrow", "give_back")


@final
class Workspace:
    """Uninitialised arrays by name and dtype. Only one thread may use it at a time."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, np.dtype[Any]], NDArray[Any]] = {}

    def array(self, name: str, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """Return a vector that has anything in it, often of the last one of that name."""
        key = name, np.dtype(dtype)
        array = self._arrays.get(key)
        if array is None or array.size < size:
            array = self._arrays[key] = np.empty(size, dtype)
        return array[:size]


_spare: Final[deque[Workspace]] = (
    deque()
)  # Its methods are safe to call from any thread.


def borrow() -> Workspace:
    """Return a workspace that no one else has, until it is given back."""
    try:
        return _spare.pop()
    except IndexError:
        return Workspace()


def give_back(workspace: Workspace) -> None:
    """Let another call have the workspace."""
    _spare.append(workspace)
