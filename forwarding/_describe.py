"""What ``help()``, ``inspect`` and Sphinx say about a forwarded attribute."""

import functools
from types import FunctionType
from typing import Any

from forwarding._record import Spec


__all__ = ("describe",)

_SHARED = tuple(
    name
    for name in functools.WRAPPER_ASSIGNMENTS
    if name not in ("__module__", "__name__", "__qualname__")
)


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
    inherited = getattr(model, "__doc__", None) if _is_documented(model) else None
    attribute.__doc__ = doc or inherited or f"Forwarded to ``{spec}``."


def _is_documented(model: Any) -> bool:
    """Whether its docstring is about the attribute, not about the value's class."""
    return hasattr(type(model), "__get__")


def _sign(function: FunctionType, model: Any) -> None:
    original = getattr(model, "__func__", model)
    if isinstance(model, staticmethod):
        vars(function)["__signature__"] = _with_self(original)
    elif hasattr(original, "__code__") or getattr(original, "__text_signature__", None):
        functools.update_wrapper(function, original, assigned=_SHARED, updated=())


def _with_self(function: Any) -> Any:
    import inspect  # noqa: PLC0415 -- 10 ms, for static methods only.

    signature = inspect.signature(function)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[first, *signature.parameters.values()])
