"""What the class of a target tells about its attributes, without an instance."""

import sys
import typing
from functools import partialmethod, singledispatchmethod
from types import SimpleNamespace
from typing import Any

from forwarding._record import Kind


__all__ = ("annotation_of", "attribute_type", "kind_of", "static_attribute")

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE; importing inspect takes 10 ms.


def kind_of(attribute: object) -> Kind:
    """Return whether a class attribute is a method, sync or async, or data.

    >>> kind_of(list.append), kind_of(property()), kind_of(7)
    ('method', 'data', 'data')
    """
    binds = hasattr(type(attribute), "__get__")
    stores = hasattr(type(attribute), "__set__")
    function = _function(attribute)
    if not binds or stores or not callable(function):
        return "data"
    code = getattr(function, "__code__", None)
    is_async = code is not None and code.co_flags & _CO_COROUTINE
    return "async method" if is_async else "method"


def _function(attribute: object) -> object:
    if isinstance(attribute, classmethod | staticmethod):
        return attribute.__func__
    if isinstance(attribute, partialmethod | singledispatchmethod):
        return attribute.func
    return attribute


def static_attribute(cls: type, name: str) -> Any:
    """Return ``cls.name`` as it stands in a class body, None if in none."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return None


def annotation_of(cls: type, name: str) -> Any:
    """Return the annotation of ``cls.name``, or of what its property returns.

    As it is written, so it may be a string; None if there is none.
    """
    return _annotation(cls, name)[0]


def attribute_type(cls: type, name: str) -> type | None:
    """Return the class that ``cls`` annotates its attribute ``name`` with, if any."""
    annotation, module = _annotation(cls, name)
    if isinstance(annotation, str):
        annotation = _evaluated(annotation, module)
    found = typing.get_origin(annotation) or annotation
    return found if isinstance(found, type) else None


def _annotation(cls: type, name: str) -> tuple[Any, str]:
    for base in cls.__mro__:
        fget = getattr(vars(base).get(name), "fget", None)
        source, key = (base, name) if fget is None else (fget, "return")
        annotations = getattr(source, "__annotations__", {})
        if key in annotations:
            return annotations[key], base.__module__
    return None, ""


def _evaluated(annotation: str, module: str) -> Any:
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[module]))["it"]
    except Exception:  # noqa: BLE001 -- Evaluating it can raise anything.
        return None
