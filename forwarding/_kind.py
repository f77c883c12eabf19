"""What the class of a target tells about its attributes."""

import typing
from types import FunctionType
from typing import Any

from forwarding._record import Kind


__all__ = ("attribute_type", "kind_of", "static_attribute")

_MISSING = object()
_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE; importing inspect costs 10 ms.


def kind_of(attribute: object) -> Kind:
    """Return whether a class attribute is a method, sync or async, or data.

    >>> kind_of(list.append), kind_of(property()), kind_of(7)
    ('method', 'data', 'data')
    """
    binds = hasattr(type(attribute), "__get__")
    stores = hasattr(type(attribute), "__set__")
    function = getattr(attribute, "__func__", attribute)
    named_later = getattr(attribute, "func", None)  # partialmethod
    if not binds or stores or not (callable(function) or callable(named_later)):
        return "data"
    code = getattr(function, "__code__", None)
    is_async = code is not None and code.co_flags & _CO_COROUTINE
    return "async method" if is_async else "method"


def static_attribute(cls: type, name: str) -> Any:
    """Return ``cls.name`` as it stands in a class body, None if in none."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return None


def attribute_type(cls: type, name: str) -> type | None:
    """Return the class that ``cls`` annotates its attribute ``name`` with, if any."""
    attribute = static_attribute(cls, name)
    source: Any = cls
    if isinstance(attribute, property) and isinstance(attribute.fget, FunctionType):
        source, name = attribute.fget, "return"
    try:
        annotation = typing.get_type_hints(source).get(name)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return None  # Annotations that name nothing at run time.
    return annotation if isinstance(annotation, type) else None
