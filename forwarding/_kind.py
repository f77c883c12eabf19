"""Kinds and types of attributes, as far as classes reveal them without an instance."""

from collections.abc import Iterable, Iterator
from functools import cached_property, partialmethod, singledispatchmethod
from types import FunctionType
from typing import Any, Final

from forwarding._annotations import annotations_of, classes_meant, has_annotation
from forwarding._instance_names import instance_names
from forwarding._record import Kind, spec_of
from forwarding._static import static_attribute


__all__ = (
    "annotation_of",
    "attribute_types",
    "kind_in",
    "kind_of",
)

# Of inspect, whose import takes 10 ms.
_CO_GENERATOR: Final = 0x20
_CO_COROUTINE: Final = 0x80
_CO_ASYNC_GENERATOR: Final = 0x200


def kind_of(attribute: object) -> Kind:
    """Return whether a class attribute is a method, and of what sort, or data.

    >>> kind_of(list.append), kind_of(property()), kind_of(7)
    ('method', 'data', 'data')
    """
    # A class in a class body is callable and does not bind; a data descriptor stores.
    binds = hasattr(type(attribute), "__get__")
    stores = hasattr(type(attribute), "__set__")
    function = _function(attribute)
    if not binds or stores or not callable(function):
        return "data"
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & _CO_COROUTINE:
        return "async method"
    if flags & _CO_ASYNC_GENERATOR:
        return "async generator method"
    return "generator method" if flags & _CO_GENERATOR else "method"


def _function(attribute: object) -> object:
    if isinstance(attribute, classmethod | staticmethod):
        return attribute.__func__
    if isinstance(attribute, partialmethod | singledispatchmethod):
        return attribute.func
    return attribute


def kind_in(classes: Iterable[type], name: str) -> Kind | None:
    """Return the kind of ``name`` on which all classes agree, None if they do not.

    None too if one of the classes does not know the name, or there is no class.
    """
    kinds: set[Kind | None] = {_kind_in(cls, name) for cls in classes}
    return kinds.pop() if len(kinds) == 1 else None


def _kind_in(cls: type, name: str) -> Kind | None:
    attribute = static_attribute(cls, name)
    spec = spec_of(attribute)
    if spec is not None:
        return spec.kind
    if attribute is not None:
        return kind_of(attribute)
    is_data = has_annotation(cls, name) or name in instance_names(cls)
    return "data" if is_data else None


def annotation_of(cls: type, name: str) -> Any:
    """Return the annotation of ``cls.name``, or of what its property returns.

    As it is written, so it may be a string; None if there is none.
    """
    return next((annotation for annotation, _ in _annotations(cls, name)), None)


def attribute_types(classes: Iterable[type], name: str) -> tuple[type, ...]:
    """Return the classes that an attribute of these classes may be of.

    Known from an annotation of the attribute, of its property's result, or of the
    parameter of ``__init__`` that has its name; else from the value in the class body.
    """
    types: dict[type, None] = {}
    for cls in classes:
        types |= dict.fromkeys(_types(cls, name))
    return tuple(types)


def _types(cls: type, name: str) -> tuple[type, ...]:
    # The nearest annotation decides, even if it says nothing, such as Any.
    for annotation, scope in (*_annotations(cls, name), *_parameters(cls, name)):
        return classes_meant(annotation, scope.__module__, scope)
    value = static_attribute(cls, name)
    is_plain = value is not None and not hasattr(type(value), "__get__")
    return (type(value),) if is_plain else ()


def _annotations(cls: type, name: str) -> Iterator[tuple[Any, type]]:
    """Yield what is annotated, and the class that says so, the nearest first."""
    for base in cls.__mro__:
        getter = _getter(vars(base).get(name))
        source, key = (base, name) if getter is None else (getter, "return")
        annotations = annotations_of(source)
        if key in annotations:
            yield annotations[key], base


def _parameters(cls: type, name: str) -> Iterator[tuple[Any, type]]:
    """Yield the annotation of ``engine`` in ``def __init__(self, engine: Engine)``."""
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if isinstance(init, FunctionType) and name in annotations_of(init):
            yield annotations_of(init)[name], base


def _getter(attribute: object) -> object:
    if isinstance(attribute, cached_property):
        return attribute.func
    return getattr(attribute, "fget", None)
