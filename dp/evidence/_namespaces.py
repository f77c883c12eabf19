"""Places that are no dictionaries, read and written as if they were.

Default values of arguments, entries of lists, attributes of classes and slots are kept by
programs as attributes of objects are: a statistic that is made of the first batch, and
kept in one of them, changes the losses of every later one.
"""

import functools
import sys
import sysconfig
import types
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from torch import Tensor


__all__ = (
    "ClassAttributes",
    "Defaults",
    "Entries",
    "PartialArguments",
    "Slots",
    "Variables",
    "is_programs_own",
)

_INSTALLED: Final = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib")
)
_OURS: Final = frozenset(("dp", "forwarding"))
_VALUES: Final = (
    *(bool, int, float, complex, str, bytes, tuple, type(None)),
    *(list, dict, set, Tensor, np.ndarray),
)


@functools.cache
def is_programs_own(module: str) -> bool:
    """Whether a module is neither Python's, nor of a package that was installed."""
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root in _OURS:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not str(Path(file).resolve()).startswith(_INSTALLED)


class _Written(MutableMapping[Any, Any]):
    """A mapping whose names stay, as far as it does not say how they go."""

    __slots__ = ()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __delitem__(self, name: Any) -> None:
        raise TypeError(f"{name!r} cannot be taken out of {type(self).__name__}")


@final
class Variables(_Written):
    """The variables of the scopes around a function, as far as they are assigned."""

    __slots__ = ("_cells",)

    def __init__(self, function: types.FunctionType) -> None:
        cells = function.__closure__ or ()
        self._cells = dict(zip(function.__code__.co_freevars, cells, strict=True))

    def __getitem__(self, name: str) -> Any:
        try:
            return self._cells[name].cell_contents
        except ValueError:  # Not assigned yet, or deleted.
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        self._cells[name].cell_contents = value

    def __delitem__(self, name: str) -> None:
        del self._cells[name].cell_contents

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._cells if name in self)


@final
class Entries(_Written):
    """The entries of a list, whose length was put back before, by their place."""

    __slots__ = ("_list",)

    def __init__(self, entries: list[Any]) -> None:
        self._list = entries

    def __getitem__(self, place: int) -> Any:
        return self._list[place]

    def __setitem__(self, place: int, value: Any) -> None:
        self._list[place] = value

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._list)))


@final
class Defaults(_Written):
    """The default values of a function's positional arguments, by their place."""

    __slots__ = ("_function",)

    def __init__(self, function: types.FunctionType) -> None:
        self._function = function

    def __getitem__(self, place: int) -> Any:
        return (self._function.__defaults__ or ())[place]

    def __setitem__(self, place: int, value: Any) -> None:
        values = list(self._function.__defaults__ or ())
        values[place] = value
        self._function.__defaults__ = tuple(values)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._function.__defaults__ or ())))


@final
class PartialArguments(_Written):
    """The positional arguments of a partial function, by their place."""

    __slots__ = ("_partial",)

    def __init__(self, partial: functools.partial[Any]) -> None:
        self._partial = partial

    def __getitem__(self, place: int) -> Any:
        return self._partial.args[place]

    def __setitem__(self, place: int, value: Any) -> None:
        partial = self._partial
        values = list(partial.args)
        values[place] = value
        state = partial.func, tuple(values), partial.keywords, vars(partial)
        partial.__setstate__(state)  # type: ignore[attr-defined]  # As copies are made.

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._partial.args)))


@final
class ClassAttributes(_Written):
    """The values that a class has, without its methods and whatever else it describes."""

    __slots__ = ("_class",)

    def __init__(self, of: type) -> None:
        self._class = of

    def __getitem__(self, name: str) -> Any:
        return vars(self._class)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        type.__setattr__(self._class, name, value)

    def __delitem__(self, name: str) -> None:
        type.__delattr__(self._class, name)

    def __iter__(self) -> Iterator[str]:
        for name, value in list(vars(self._class).items()):
            if isinstance(value, _VALUES) and not name.startswith("__"):
                yield name


@final
class Slots(_Written):
    """The slots of an object that has no dictionary of its attributes."""

    __slots__ = ("_item", "_members")

    def __init__(self, item: object) -> None:
        self._item = item
        self._members = {
            name: member
            for kind in type(item).__mro__
            for name, member in vars(kind).items()
            if isinstance(member, types.MemberDescriptorType)
        }

    def __getitem__(self, name: str) -> Any:
        try:
            return self._members[name].__get__(self._item)
        except AttributeError:  # Not assigned yet.
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        self._members[name].__set__(self._item, value)

    def __delitem__(self, name: str) -> None:
        self._members[name].__delete__(self._item)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._members if hasattr(self._item, name))
