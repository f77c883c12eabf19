"""The targets of a class, and the recorder that turns ``inner.x`` into a path."""

import typing
from typing import Any, TypeVar, cast

from forwarding._record import Record, record_of
from forwarding.exceptions import ForwardingError


__all__ = ("Path", "recorded", "target", "targets_of")

T = TypeVar("T")


def target(cls: type[T]) -> T:
    """Declare the attribute that holds the object to forward to.

    In the class body it stands for an instance of ``cls``: its attributes are
    paths for :func:`forwarded`, and type checkers see their types. It is gone
    when the class is made; ``__init__`` stores the object under its name.

    >>> from forwarding import forwarded
    >>> class Stack:
    ...     items = target(list)
    ...     push = forwarded(items.append)
    ...     def __init__(self):
    ...         self.items = []
    >>> stack = Stack()
    >>> stack.push(3)
    >>> stack.items
    [3]

    Args:
        cls: Class of the object; tells methods from data.

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
    field. It never survives the class body.
    """

    def __init__(
        self, root: "Path | None", parts: tuple[str, ...], cls: type | None = None
    ) -> None:
        super().__init__()
        fields = {"root": root or self, "parts": parts, "cls": cls, "name": ""}
        object.__setattr__(self, "__fields__", fields)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            return object.__getattribute__(self, name)
        fields = self.__fields__
        return Path(fields["root"], (*fields["parts"], name))

    def __set_name__(self, owner: type, name: str) -> None:
        fields = self.__fields__
        if fields["root"] is self:
            fields["name"] = name
            record_of(owner).targets[name] = fields["cls"]
        type.__delattr__(owner, name)


def recorded(path: Path) -> tuple[str, ...]:
    """Return the attribute names from the wrapper on; the class is being made."""
    fields = path.__fields__
    return (fields["root"].__fields__["name"], *fields["parts"])


def targets_of(cls: type) -> dict[str, type | None]:
    """Return the declared targets of a class, with their class where known."""
    found: dict[str, type | None] = {}
    for base in reversed(cls.__mro__):
        record = vars(base).get("__forwarding__")
        if isinstance(record, Record):
            found |= record.targets
        for name, value in vars(base).items():
            if isinstance(value, Path) and value.__fields__["root"] is value:
                found[name] = value.__fields__["cls"]  # Declared further down.
    if "__wrapped__" in found and found["__wrapped__"] is None:
        found["__wrapped__"] = _wrapped_type(cls)
    return found


def _wrapped_type(cls: type) -> type | None:
    """Return ``X`` where a class or its nearest base is a ``Wrapper[X]``."""
    for base in cls.__mro__:
        for alias in vars(base).get("__orig_bases__", ()):
            origin, arguments = typing.get_origin(alias), typing.get_args(alias)
            if isinstance(origin, type) and "__wrapped__" in _own_targets(origin):
                wrapped = typing.get_origin(arguments[0]) or arguments[0]
                return wrapped if isinstance(wrapped, type) else None
    return None


def _own_targets(cls: type) -> dict[str, type | None]:
    found: dict[str, type | None] = {}
    for base in cls.__mro__:
        record = vars(base).get("__forwarding__")
        found |= record.targets if isinstance(record, Record) else {}
    return found
