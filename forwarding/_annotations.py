"""Annotations on every Python: evaluated at once, in quotes, or deferred."""

import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Final, TypeVar


__all__ = (
    "annotations_of",
    "classes_meant",
    "has_annotation",
    "remove_annotation",
    "type_argument",
)

_KEPT_IN: Final = ("__annotations__", "__annotate_func__", "__annotate__")
# Any has been a class since Python 3.11, and says nothing.
_SAY_NOTHING: Final[tuple[Any, ...]] = (Any, object, type(None))


def annotations_of(holder: Any) -> dict[str, Any]:
    """Return the annotations of a class body or a function, as far as they are known.

    Python 3.14 evaluates them on request. A name that is not defined yet must not raise
    here, while the class is being made, so it becomes a forward reference (PEP 749).
    """
    if not isinstance(holder, type):
        return _of_function(holder)
    if sys.version_info >= (3, 14):
        is_annotated = any(name in vars(holder) for name in _KEPT_IN)
        return _forward_references(holder) if is_annotated else {}
    annotations = vars(holder).get("__annotations__")
    return annotations if isinstance(annotations, dict) else {}


def has_annotation(cls: type, name: str) -> bool:
    """Return whether a class or one of its bases annotates ``name``."""
    return any(name in annotations_of(base) for base in cls.__mro__)


def remove_annotation(cls: type, name: str) -> None:
    """Take an annotation from a class body, before a decorator makes a field of it."""
    if "__annotations__" in vars(cls):
        del vars(cls)["__annotations__"][name]
    elif sys.version_info >= (3, 14):
        cls.__annotate__ = _without(cls, name)


def classes_meant(annotation: Any, module: str, scope: Any = None) -> tuple[type, ...]:
    """Return the classes that an annotation allows, apart from None.

    >>> classes_meant("int | None", __name__)
    (<class 'int'>,)

    Args:
        annotation: As it was written; a string and a forward reference are evaluated.
        module: Name of the module that it was written in.
        scope: Class whose type parameters it may use.

    Returns:
        Nothing if the annotation says nothing, or cannot be evaluated now.
    """
    try:
        return tuple(dict.fromkeys(_classes(annotation, module, scope)))
    except Exception:  # noqa: BLE001 -- Evaluating an annotation can raise anything.
        return ()


def type_argument(cls: type, generic: type) -> tuple[Any, str]:
    """Return what ``cls`` puts for the parameter of ``generic``, and where it says so.

    >>> T = TypeVar("T")
    >>> class Box(typing.Generic[T]): ...
    >>> class Pair(Box[T], typing.Generic[T]): ...
    >>> class Numbers(Pair[int]): ...
    >>> type_argument(Numbers, Box)[0]
    <class 'int'>

    Returns:
        The argument, None if there is none, and the name of the module.
    """
    # Down from class Car(Named[str, Engine]) to class Wrapper(Generic[T]), one base at a
    # time: Named may have its parameters in another order.
    for alias in vars(cls).get("__orig_bases__", cls.__bases__):
        base = typing.get_origin(alias) or alias
        if not (isinstance(base, type) and issubclass(base, generic)):
            continue
        arguments = typing.get_args(alias)
        if base is generic:
            return (arguments[0] if arguments else None), cls.__module__
        inner, module = type_argument(base, generic)
        parameters = getattr(base, "__parameters__", ())
        if inner in parameters and len(arguments) == len(parameters):
            return arguments[parameters.index(inner)], cls.__module__
        return inner, module
    return None, ""


def _of_function(function: Any) -> dict[str, Any]:
    if sys.version_info >= (3, 14) and hasattr(function, "__annotate__"):
        return _forward_references(function)
    annotations: dict[str, Any] = getattr(function, "__annotations__", None) or {}
    return annotations


if sys.version_info >= (3, 14):

    def _forward_references(holder: Any) -> dict[str, Any]:
        import annotationlib  # noqa: PLC0415 -- 5 ms.

        return annotationlib.get_annotations(
            holder, format=annotationlib.Format.FORWARDREF
        )

    def _without(cls: type, name: str) -> Any:
        """Return the function that evaluates annotations, for all names but one."""
        import annotationlib  # noqa: PLC0415

        original = cls.__annotate__

        def annotate(form: Any, /) -> dict[str, Any]:
            annotations = annotationlib.call_annotate_function(
                original, form, owner=cls
            )
            return {key: text for key, text in annotations.items() if key != name}

        return annotate


def _classes(annotation: Any, module: str, scope: Any) -> Iterator[type]:
    for part in _parts(annotation, module, scope):
        if part is annotation:
            if isinstance(part, type) and part not in _SAY_NOTHING:
                yield part
        else:
            yield from _classes(part, module, scope)


def _parts(annotation: Any, module: str, scope: Any) -> tuple[Any, ...]:
    """Return what an annotation stands for; itself, alone, if it is a class."""
    text = getattr(annotation, "__forward_arg__", annotation)
    if isinstance(text, str):
        return (_evaluated(text, module, scope),)
    if isinstance(annotation, TypeVar):
        bound = annotation.__bound__
        return annotation.__constraints__ or (() if bound is None else (bound,))
    for behind in ("__value__", "__supertype__"):  # An alias, and a NewType.
        if hasattr(annotation, behind):
            return (getattr(annotation, behind),)
    return _of_alias(annotation)


def _of_alias(annotation: Any) -> tuple[Any, ...]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return arguments
    if origin in (typing.ClassVar, typing.Final, typing.Annotated):
        return arguments[:1]
    return (annotation if origin is None else origin,)


def _evaluated(text: str, module: str, scope: Any) -> Any:
    # Type parameters of PEP 695 are in no module's namespace.
    names = {p.__name__: p for p in getattr(scope, "__type_params__", ())}
    space = {**vars(sys.modules[module]), **names}
    return eval(text, space)  # noqa: S307 -- An annotation is code of the program itself.
