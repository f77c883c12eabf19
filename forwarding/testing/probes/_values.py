"""Compare values: identity, equality, and what changed."""

import copy
import re
from collections.abc import Callable
from typing import Any


__all__ = (
    "NotApplicableError",
    "addable",
    "alike",
    "attempt",
    "changed",
    "hashes_agree",
    "own_dict",
    "shadowed",
    "touched",
)

# Copying caches this name on every class; it changes no behaviour.
_HARMLESS = frozenset({"__slotnames__"})


class NotApplicableError(Exception):
    """A law has no meaning for the object at hand; the message says why."""


def attempt(action: Callable[..., object], *args: Any) -> Exception | None:
    """Return the exception that ``action(*args)`` raises, or None.

    >>> attempt(getattr, object(), "missing") is None
    False
    """
    try:
        action(*args)
    except Exception as error:  # noqa: BLE001  # the caller compares it
        return error
    return None


def _shown(value: object) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x", repr(value))  # an address is no difference


def alike(left: object, right: object) -> bool:
    """Tell whether two values are one object, or equal objects of one type.

    >>> alike([1], [1]), alike(1, True)
    (True, False)
    """
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    try:
        equal = bool(left == right)
    except Exception:  # noqa: BLE001  # arrays and tensors have no truth value
        equal = False
    return equal or _shown(left) == _shown(right)


def addable(value: Any) -> None:
    """Require that ``value`` can be added to itself.

    >>> addable([1])
    """
    item = copy.deepcopy(value)
    try:
        item += copy.deepcopy(value)
    except TypeError as error:
        raise NotApplicableError("no value drawn can be added to itself") from error


def hashes_agree(left: object, right: object) -> bool:
    """Tell whether ``left``, where it equals ``right``, is found wherever that is.

    >>> hashes_agree(1, 1.0), hashes_agree([1], [1])
    (True, True)
    """
    if left != right or attempt(hash, right) is not None:
        return True
    # A class that defines __eq__ alone has no hash at all, where its equal has one.
    return attempt(hash, left) is None and hash(left) == hash(right)


def touched(
    target: object, names: list[str], action: Callable[[], object]
) -> list[str]:
    """Return those of ``names`` that ``action`` gives another value on ``target``.

    >>> from types import SimpleNamespace
    >>> point = SimpleNamespace(x=1, y=2)
    >>> touched(point, ["x", "y"], lambda: setattr(point, "x", 7))
    ['x']
    """
    before = {name: getattr(target, name) for name in names}
    new = [name for name in names if getattr(target, name) is not before[name]]
    action()

    def is_same(name: str) -> bool:
        if attempt(getattr, target, name) is not None:
            return False
        value = getattr(target, name)
        return value is before[name] or (name in new and alike(value, before[name]))

    return [name for name in names if not is_same(name)]


def own_dict(layer: object) -> dict[str, Any]:
    """Return the attributes that ``layer`` itself stores, not those it shows.

    >>> from types import SimpleNamespace
    >>> own_dict(SimpleNamespace(a=1))
    {'a': 1}
    """
    for name in ("__self_dict__", "__dict__"):  # wrapt keeps its own apart
        try:
            attributes = object.__getattribute__(layer, name)
        except AttributeError:
            continue
        if isinstance(attributes, dict):
            return attributes
    return {}


def shadowed(layers: list[object], target: object, name: str) -> list[str]:
    """Return the types of the layers that keep a value of ``name`` of their own."""
    owned = own_dict(target)
    return [
        type(layer).__name__
        for layer in layers
        if own_dict(layer) is not owned and name in own_dict(layer)
    ]


def changed(cls: type, before: dict[str, object]) -> list[str]:
    """Return the names of ``vars(cls)`` that differ from ``before``.

    >>> class Plain: ...
    >>> changed(Plain, dict(vars(Plain)))
    []
    """
    after = vars(cls)
    return sorted(
        name
        for name in (before.keys() | after.keys()) - _HARMLESS
        if before.get(name) is not after.get(name)
    )
