"""Special methods among the names: called as Python calls them, on the class."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final


__all__ = ("as_python_calls", "is_special", "special_call")

# What the stand-in of a special method returns, where Python or a proxy written in C
# takes no other type.
_ANSWERS: Final[Mapping[str, str]] = {
    "__bool__": "True",
    "__bytes__": "b'answer'",
    "__complex__": "7j",
    "__contains__": "True",
    "__delitem__": "None",
    "__float__": "7.5",
    "__format__": "'answer'",
    "__hash__": "7",
    "__index__": "7",
    "__int__": "7",
    "__iter__": "Items()",
    "__len__": "7",
    "__length_hint__": "7",
    "__repr__": "'answer'",
    "__reversed__": "Items()",
    "__setitem__": "None",
    "__str__": "'answer'",
}


def is_special(name: str) -> bool:
    """Whether Python looks a method of this name up on the class."""
    return name.startswith("__") and name.endswith("__")


def special_call(method: Callable[..., object]) -> tuple[tuple[Any, ...], Any]:
    """Return the arguments with which Python calls a special method: by position."""
    if method.__name__ in {"__exit__", "__aexit__"}:
        return (None, None, None), {}
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # some builtins tell no signature
        return (), {}
    positional = {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    }
    required = (one for one in parameters if one.default is one.empty)
    return tuple(one.name for one in required if one.kind in positional), {}


def as_python_calls(script: str, name: str) -> str:
    """Return a law's script with the method called on the class, as by an operator.

    >>> as_python_calls("wrapper.NAME(*args)", "__neg__")
    'type(wrapper).NAME(wrapper, *args)'
    """
    called = re.sub(r"\b(wrapper|target)\.NAME\(", r"type(\1).NAME(\1, ", script)
    answer = _ANSWERS.get(name, "object()")
    # Equal, not the same: float() and the like may make another object of it.
    return called.replace("object()", answer).replace(" is result", " == result")
