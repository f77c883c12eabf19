"""The targets of a class, and the recorder that turns ``inner.x`` into a path."""

import sys
import typing
from typing import Any, TypeVar, cast

from forwarding._annotations import classes_meant, type_argument
from forwarding._dynamic import resolver_for
from forwarding._kind import attribute_types
from forwarding._path import Item, Part
from forwarding._record import record_in, record_of
from forwarding.exceptions import ForwardingError


__all__ = (
    "Path",
    "name_in_body",
    "recorded",
    "register",
    "target",
    "target_names",
    "target_types",
)

T = TypeVar("T")


def target(cls: type[T], *, via: Any = None) -> T:
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
        via: How a dynamic target is found at each access, instead of being stored:
            a ``ContextVar``; a ``threading.local``, in its attribute of the target's
            name; ``weakref.ref``, for a target that the wrapper does not keep alive;
            :class:`lazy`; or a function without arguments. Assigning to the target
            binds it there, but for a function.

    Raises:
        ForwardingError: ``cls`` is not a class, or ``via`` leads to no target.

    Guarantees:
        Where nothing is bound, an access raises :exc:`TargetMissingError`, which
        names the wrapper, the target and the reason.
    """
    origin = typing.get_origin(cls) or cls
    if not isinstance(origin, type):
        raise ForwardingError(f"target() takes the class of the target, got {cls!r}")
    path = Path(None, (), origin)
    path.__fields__["resolver"] = None if via is None else resolver_for(via)
    return cast("T", path)


class Path(property):
    """Attributes and items from a target on, recorded as they are asked for.

    Derives from ``property`` so that Enum makes no member of it and pydantic no
    field. Removes itself from the class.
    """

    __fields__: dict[str, Any]

    def __init__(
        self, root: "Path | None", parts: tuple[Part, ...], cls: type | None
    ) -> None:
        super().__init__()
        fields = {"root": root or self, "parts": parts, "cls": cls, "name": ""}
        object.__setattr__(self, "__fields__", fields)

    # A target may well have a "setter" or "fget", so what property has is recorded too.
    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            return object.__getattribute__(self, name)
        return _extended(self, name)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, int | str):
            raise ForwardingError(f"an item of a path is an int or a str, got {key!r}")
        return _extended(self, Item(key))

    # With __getitem__ alone, Python would iterate over a path for ever.
    __iter__ = None
    __contains__ = None

    def __set_name__(self, owner: type, name: str) -> None:
        if self.__fields__["root"] is self:
            self.__fields__["name"] = name
            register(owner, self)
        resolver = self.__fields__.get("resolver")
        if resolver is None:
            type.__delattr__(owner, name)
        else:
            type.__setattr__(owner, name, resolver.attribute(name))


def recorded(path: Path) -> tuple[tuple[Part, ...], Path]:
    """Return the parts from the wrapper to the attribute, and the target."""
    root = path.__fields__["root"]
    return (root.__fields__["name"], *path.__fields__["parts"]), root


def name_in_body(path: Path, depth: int) -> None:
    """Look up, in the class body that calls, the name that a target has there.

    A body may give the name to something else further down, such as the
    ``cached_property`` that makes the target; afterwards nothing would tell it.
    """
    root = path.__fields__["root"].__fields__
    body = sys._getframe(depth).f_locals  # noqa: SLF001 -- Of the declaring class.
    if not root["name"] and "__qualname__" in body:  # So it is the body of a class.
        names = (name for name, value in body.items() if value is root["root"])
        root["name"] = next(names, "")


def register(cls: type, root: Path) -> None:
    """Record a target on the class that declares it."""
    record, fields = record_of(cls), root.__fields__
    record.targets.setdefault(fields["name"], fields["cls"])
    if fields.get("resolver") is not None:
        record.resolvers[fields["name"]] = fields["resolver"]


def target_names(cls: type) -> tuple[str, ...]:
    """Return the names of the targets that a class and its bases declare."""
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        record = record_in(base)
        names |= dict.fromkeys(record.targets if record else ())
    below = (name for name, value in vars(cls).items() if _is_target(value))
    return (*names, *(name for name in below if name not in names))


def target_types(cls: type, name: str) -> tuple[type, ...]:
    """Return the classes that the target ``name`` may be of, none if unknown.

    Known from target(), from the argument or the bound in Wrapper[T], or else from
    an annotation.
    """
    below = vars(cls).get(name)  # A target() further down in the class body.
    if _is_target(below):
        return (below.__fields__["cls"],)
    for base in cls.__mro__:
        record = record_in(base)
        if record is not None and name in record.targets:
            declared = record.targets[name]
            return (declared,) if declared else _type_argument(cls, base)
    return attribute_types((cls,), name)


def _is_target(value: object) -> typing.TypeGuard[Path]:
    return isinstance(value, Path) and value.__fields__["root"] is value


def _type_argument(cls: type, generic: type) -> tuple[type, ...]:
    argument, module = type_argument(cls, generic)
    if argument is None:
        return ()
    return classes_meant(argument, module or cls.__module__, cls)


def _extended(path: Path, part: Part) -> Path:
    fields = path.__fields__
    return Path(fields["root"], (*fields["parts"], part), None)
