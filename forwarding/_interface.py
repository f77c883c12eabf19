"""The names that a bulk declaration stands for."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeAlias

from forwarding._specials import refusal
from forwarding.exceptions import ForwardingError


__all__ = ("Names", "interfaces", "members", "spelled")

Names: TypeAlias = str | type | Iterable[str | type]
"""Names in one string, an interface, or several of these."""

_NOT_INTERFACES: tuple[Any, ...] = (object, Generic, Protocol)


def spelled(names: Names) -> tuple[str, ...]:
    """Return the names that are spelled out.

    >>> spelled("step zero_grad")
    ('step', 'zero_grad')
    """
    parts = [part for part in _parts(names) if isinstance(part, str)]
    return tuple(" ".join(parts).replace(",", " ").split())


def members(names: Names) -> dict[str, Any]:
    """Return the members of the interfaces, with their class attribute or None.

    An interface is any class. Its members are its public names, annotated ones
    too, and its special methods; but not what every object has (``__eq__``,
    ``__repr__``), nor what cannot be forwarded.

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
    found: dict[str, Any] = {}
    for base in reversed(interface.__mro__):
        if base not in _NOT_INTERFACES:
            found |= dict.fromkeys(getattr(base, "__annotations__", ()))
            found |= vars(base)
    return {name: model for name, model in found.items() if _is_member(name, model)}


def _is_member(name: str, model: Any) -> bool:
    if not name.startswith("_"):
        return True
    is_special = name.startswith("__") and name.endswith("__")
    is_common = name in vars(object) or refusal(name) is not None
    return is_special and callable(model) and not is_common
