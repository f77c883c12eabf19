"""Names and members that a bulk declaration lists."""

from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, Protocol, TypeAlias

from forwarding._annotations import annotations_of
from forwarding._instance_names import instance_names
from forwarding._path import normalized
from forwarding._specials import refusal
from forwarding.exceptions import ForwardingError


__all__ = ("Names", "interfaces", "members", "spelled")

Names: TypeAlias = str | type | Iterable[str | type]
"""Names in one string, an interface, or several of these."""

_NOT_INTERFACES: Final[tuple[Any, ...]] = (object, Generic, Protocol)
# Stands for data of instances, which no class body defines.
_DATA: Final = property()


def spelled(names: Names) -> tuple[str, ...]:
    """Return the names that are spelled out.

    >>> spelled("step zero_grad")
    ('step', 'zero_grad')
    """
    parts = [part for part in _parts(names) if isinstance(part, str)]
    return tuple(normalized(" ".join(parts)).replace(",", " ").split())


def members(names: Names) -> dict[str, Any]:
    """Return the members of the interfaces, with their class attribute.

    An interface is any class. Its members are what its instances have: public names
    of the class body, annotated ones, and those that ``__init__`` assigns; and its
    special methods. Not among them are what every object has (``__eq__``,
    ``__repr__``), and what cannot be forwarded.

    >>> from collections.abc import Sized
    >>> list(members(Sized))
    ['__len__']
    """
    found: dict[str, Any] = {}
    for interface in interfaces(names):
        found |= _members(interface)
    return found


def interfaces(names: Names) -> tuple[type, ...]:
    """Return the classes among the names."""
    return tuple(part for part in _parts(names) if isinstance(part, type))


def _parts(names: Any) -> Iterator[str | type]:
    parts: Any = names
    if isinstance(names, str | type) or not hasattr(names, "__iter__"):
        parts = (names,)
    for part in parts:
        if not isinstance(part, str | type):
            raise ForwardingError(
                f"forward= and but= take names and classes, got {part!r}"
            )
        yield part


def _members(interface: type) -> dict[str, Any]:
    # The order matters: "step" is a method of a scheduler, whose __init__ assigns it too.
    found: dict[str, Any] = dict.fromkeys(instance_names(interface), _DATA)
    for base in reversed(interface.__mro__):
        if base not in _NOT_INTERFACES:
            found |= dict.fromkeys(_annotated(base), _DATA)
            found |= vars(base)
    return {name: model for name, model in found.items() if _is_member(name, model)}


def _annotated(cls: type) -> Iterator[str]:
    fields = vars(cls).get("__dataclass_fields__", {})
    for name in annotations_of(cls):
        # An InitVar is an argument of __init__, and no attribute.
        if name not in fields or fields[name]._field_type.name != "_FIELD_INITVAR":  # noqa: SLF001
            yield name


def _is_member(name: str, model: Any) -> bool:
    if not name.startswith("_"):
        return True
    is_special = name.startswith("__") and name.endswith("__")
    is_common = name in vars(object) or refusal(name) is not None
    return is_special and callable(model) and not is_common
