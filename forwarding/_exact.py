"""Methods that repeat the target's signature, as fast as hand-written ones.

``*args, **kwargs`` accept any call and cost a tuple and a dict on each layer. A final
class or a Protocol has a signature that will not change, so neither is needed.
"""

from types import FunctionType
from typing import Any

from forwarding.exceptions import ForwardingError


__all__ = ("exact_signature",)


def exact_signature(
    where: str, name: str, model: Any
) -> tuple[str, str, dict[str, Any]]:
    """Return the parameters of a method, the arguments it passes on, and defaults.

    Args:
        where: What an error calls the method.
        name: Its name on the wrapper.
        model: The method in the target's class.

    Raises:
        ForwardingError: The signature is unknown, or a default is left out (``...``),
            as in many Protocols.
    """
    function = getattr(model, "__func__", model)
    if not isinstance(function, FunctionType):
        raise ForwardingError(
            f"{where}: exact=True needs a method written in Python on the target's class, "
            f"found {model!r}"
        )
    import inspect  # noqa: PLC0415 -- 10 ms, for exact methods only.

    given = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    parameters = given if isinstance(model, staticmethod) else given[1:]
    # Written anew rather than by str(signature): defaults are names of the namespace,
    # and annotations are left to describe().
    texts, arguments = ["self"], []
    defaults: dict[str, Any] = {}
    marked_positional = False
    for before, parameter in zip([None, *parameters], parameters, strict=False):
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            marked_positional = True
        elif marked_positional:
            texts.append("/")
            marked_positional = False
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and _opens_keywords(before):
            texts.append("*")
        texts.append(_text(where, name, parameter, defaults))
        arguments.append(_argument(parameter))
    texts += ["/"] * marked_positional
    return ", ".join(texts), f"({', '.join(arguments)})", defaults


def _opens_keywords(before: Any) -> bool:
    """Whether a keyword-only parameter after ``before`` needs a star."""
    return before is None or before.kind not in (
        before.KEYWORD_ONLY,
        before.VAR_POSITIONAL,
    )


def _text(where: str, name: str, parameter: Any, defaults: dict[str, Any]) -> str:
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    text = f"{star.get(parameter.kind, '')}{parameter.name}"
    if parameter.default is parameter.empty:
        return text
    # A Protocol writes "..." for "some default"; passing Ellipsis would be a surprise.
    if parameter.default is ...:
        raise ForwardingError(
            f"{where}: exact=True needs the value of {parameter.name}=..., which the "
            "target's class leaves out"
        )
    default = f"{name}_{parameter.name}"
    defaults[default] = parameter.default
    return f"{text}={default}"


def _argument(parameter: Any) -> str:
    if parameter.kind is parameter.KEYWORD_ONLY:
        return f"{parameter.name}={parameter.name}"
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    return f"{star.get(parameter.kind, '')}{parameter.name}"
