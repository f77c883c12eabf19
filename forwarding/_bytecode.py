"""The code objects behind a class attribute."""

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any


__all__ = ("codes_of",)


def codes_of(attribute: object) -> Iterator[CodeType]:
    """Yield the code of a function or property, of what it wraps, and of inner functions.

    >>> [code.co_name for code in codes_of(property(lambda self: self.x))]
    ['<lambda>']
    """
    if isinstance(attribute, property):
        for accessor in (attribute.fget, attribute.fset, attribute.fdel):
            yield from codes_of(accessor)
        return
    function: Any = getattr(attribute, "__func__", attribute)
    function = getattr(function, "func", function)  # Of a cached_property.
    while isinstance(function, FunctionType):
        yield from _with_inner(function.__code__)
        function = vars(function).get("__wrapped__")


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _with_inner(const)
