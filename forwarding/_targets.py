"""The targets of a class, and the recorder that turns ``inner.x`` into a path."""

import typing
from typing import Any, Final, TypeVar, cast

from forwarding._record import Record, record_of
from forwarding.exceptions import ForwardingError


__all__ = ("Path", "recorded", "target", "target_names", "target_type")

T = TypeVar("T")


def target(cls: type[T]) -> T:
    """Declare, in a class body, the attribute that holds the object to forward to.

    There it stands for an instance of ``cls``: its attributes are paths for
    :func:`forwarded`, and type checkers see their types. It is gone once the
    class is made; ``__init__`` stores the object under its name.

    >>> from forwarding import forwarded
    >>> class Stack:
    ...     items = target(list)
    ...     push = forwarded(items.append)
    ...
    ...     def __init__(self):
    ...         self.items = []
    >>> stack = Stack()
    >>> stack.push(3)
    >>> stack.items
    [3]

    Args:
        cls: Class of the object; it tells methods from data.

    Raises:
        ForwardingError: ``cls`` is not a class.
    """
    origin = typing.get_origin(cls) or cls
    if not isinstance(origin, type):
        raise ForwardingError(f"target() takes the class of the target, got {cls!r}")
    return cast("T", Path(None, (), origin))


class Path(property):
    """Attribute names from a target on, recorded by attribute access.

    Derives from ``property`` so that Enum makes no member of it and pydantic no
    field. Removes itself from the class.
    """

    def __init__(
        self, root: "Path | None", parts: tuple[str, ...], cls: type | None
    ) -> None:
        super().__init__()
        fields = {"root": root or self, "parts": parts, "cls": cls, "name": ""}
        object.__setattr__(self, "__fields__", fields)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            return object.__getattribute__(self, name)
        root, parts = self.__fields__["root"], self.__fields__["parts"]
        return Path(root, (*parts, name), None)

    def __set_name__(self, owner: type, name: str) -> None:
        if self.__fields__["root"] is self:
            self.__fields__["name"] = name
            record_of(owner).targets[name] = self.__fields__["cls"]
        type.__delattr__(owner, name)


def recorded(path: Path) -> tuple[tuple[str, ...], type | None]:
    """Return the names from the wrapper to the attribute, and the target's class."""
    root = path.__fields__["root"].__fields__
    return (root["name"], *path.__fields__["parts"]), root["cls"]


def target_names(cls: type) -> tuple[str, ...]:
    """Return the names of the targets that a class and its bases declare."""
    found: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        record = vars(base).get("__forwarding__", _EMPTY)
        found |= dict.fromkeys(record.targets)
    below = (name for name, value in vars(cls).items() if _is_target(value))
    return (*found, *(name for name in below if name not in found))


def target_type(cls: type, name: str) -> type | None:
    """Return the class of the target ``name``, None if it is not declared."""
    below = vars(cls).get(name)  # A target() further down in the class body.
    if _is_target(below):
        return cast("type", below.__fields__["cls"])
    for base in cls.__mro__:
        targets = vars(base).get("__forwarding__", _EMPTY).targets
        if name in targets:
            return targets[name] or _type_argument(cls, base)
    return None


def _is_target(value: object) -> typing.TypeGuard[Path]:
    return isinstance(value, Path) and value.__fields__["root"] is value


def _type_argument(cls: type, generic: type) -> type | None:
    """Return ``X`` where a class or its nearest base derives from ``generic[X]``."""
    for base in cls.__mro__:
        for alias in vars(base).get("__orig_bases__", ()):
            origin = typing.get_origin(alias)
            if isinstance(origin, type) and issubclass(origin, generic):
                argument = typing.get_args(alias)[0]
                found = typing.get_origin(argument) or argument
                return found if isinstance(found, type) else None
    return None


_EMPTY: Final = Record()
