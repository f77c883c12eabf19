"""Documentation of forwarded attributes for ``help()``, ``inspect`` and Sphinx."""

import functools
import sys
from types import FunctionType
from typing import Any, Final

from forwarding._annotations import annotations_of
from forwarding._record import Spec


__all__ = ("describe",)

_SHARED: Final = tuple(
    name
    for name in functools.WRAPPER_ASSIGNMENTS
    if name not in ("__module__", "__name__", "__qualname__")
)
# What a function has, one of C, and one that a cache or another decorator wraps.
_OF_FUNCTIONS: Final = ("__code__", "__text_signature__", "__wrapped__")
_METHODS_OF_FUNCTOOLS: Final = (
    functools.partialmethod,
    functools.singledispatchmethod,
)
# How inspect and asyncio mark a function that returns an awaitable.
_MARKS: Final = ("_is_coroutine_mark", "_is_coroutine_marker", "_is_coroutine")


def describe(
    attribute: property | FunctionType,
    spec: Spec,
    *,
    doc: str | None,
    model: Any,
    annotation: Any,
) -> None:
    """Document generated code.

    Args:
        attribute: What was generated.
        spec: What it was generated from.
        doc: Docstring, if the declaration has one.
        model: The attribute of the target's class, None if unknown.
        annotation: Type of data, None if unknown; a string is left out, for it
            could be evaluated only where it was written.
    """
    if isinstance(attribute, FunctionType):
        _sign(attribute, model)
    elif annotation is not None and not isinstance(annotation, str):
        attribute.fget.__annotations__ = {"return": annotation}
    attribute.__doc__ = doc or _doc(model) or f"Forwarded to ``{spec}``."


def _doc(model: Any) -> str | None:
    """Return the docstring of a class attribute, None where it is that of a class."""
    if isinstance(model, _METHODS_OF_FUNCTOOLS):
        model = model.func
    found: str | None = getattr(model, "__doc__", None)
    # A value has the docstring of its class, and so has a descriptor without its own.
    is_own = hasattr(type(model), "__get__") and found is not type(model).__doc__
    return found if is_own else None


def _sign(function: FunctionType, model: Any) -> None:
    """Give a method the target's signature, and not its ``__wrapped__``.

    Code that follows ``__wrapped__`` would reach the target's function and skip the
    work of the layer.
    """
    original = _function(model)
    if not any(hasattr(original, mark) for mark in _OF_FUNCTIONS):
        return
    for name in _SHARED:
        if hasattr(original, name):
            setattr(function, name, getattr(original, name))
    _resolve_strings(function, original)
    marks = getattr(original, "__dict__", {})
    vars(function).update({mark: marks[mark] for mark in _MARKS if mark in marks})
    signature = _signature(original)
    if signature is not None:
        is_static = isinstance(model, staticmethod)
        vars(function)["__signature__"] = (
            _with_self(signature) if is_static else signature
        )


def _function(model: Any) -> Any:
    """Return the function behind a class attribute, which takes the instance first."""
    if isinstance(model, _METHODS_OF_FUNCTOOLS):
        return model.__get__(None, object)
    return getattr(model, "__func__", model)


def _resolve_strings(function: FunctionType, original: Any) -> None:
    """Evaluate annotations in quotes where their names are known."""
    if not any(isinstance(text, str) for text in annotations_of(original).values()):
        return
    import typing  # noqa: PLC0415 -- Loaded anyway, and needed here only.

    try:
        hints = typing.get_type_hints(original, include_extras=True)
    except Exception:  # noqa: BLE001 -- Evaluating them can raise anything.
        return
    function.__annotations__ = hints


def _signature(original: Any) -> Any:
    import inspect  # noqa: PLC0415 -- 10 ms, for methods of a known class only.

    options: dict[str, Any] = {}
    if sys.version_info >= (3, 14):
        import annotationlib  # noqa: PLC0415

        options["annotation_format"] = annotationlib.Format.FORWARDREF
    try:
        return inspect.signature(original, **options)
    except (TypeError, ValueError):  # Written in C, without a signature.
        return None


def _with_self(signature: Any) -> Any:
    import inspect  # noqa: PLC0415

    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[first, *signature.parameters.values()])
