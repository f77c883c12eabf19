"""The names that a bulk declaration stands for."""

from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeAlias

from forwarding._specials import refusal


__all__ = ("Names", "names_of")

Names: TypeAlias = str | type | Iterable[str | type]
_NOT_INTERFACE = (object, Generic, Protocol)


def names_of(names: Names) -> dict[str, Any]:
    """Return each name, with the class attribute that it has in an interface.

    >>> names_of("step zero_grad")
    {'step': None, 'zero_grad': None}
    """
    if isinstance(names, str):
        return dict.fromkeys(names.replace(",", " ").split())
    if isinstance(names, type):
        return _members(names)
    found: dict[str, Any] = {}
    for part in names:
        found |= names_of(part)
    return found


def _members(interface: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(interface.__mro__):
        if base not in _NOT_INTERFACE:
            found |= dict.fromkeys(base.__dict__.get("__annotations__", ()))
            found |= vars(base)
    return {name: model for name, model in found.items() if _is_member(name, model)}


def _is_member(name: str, model: Any) -> bool:
    if not name.startswith("_"):
        return True
    special = name.startswith("__") and name.endswith("__")
    return special and callable(model) and name not in vars(object) and not refusal(name)
