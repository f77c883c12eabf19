"""Every special method of the data model, and whether it can be forwarded.

Covers CPython 3.11 to 3.15. A name that is missing on purpose is in the table
too, with its reason. A name that the language does not define, such as
``__array__``, is in no table and may be forwarded.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias


__all__ = ("SPECIALS", "Special", "Standing", "refusal")

Standing: TypeAlias = Literal["forwarded", "own", "refused"]


class Special(NamedTuple):
    """What may be done with one special method, and why."""

    standing: Standing
    """``"forwarded"``: may be declared. ``"own"``: says what the wrapper itself
    is, so define it on the wrapper. ``"refused"``: forwarding it goes wrong."""
    reason: str
    """Where ``{wrapper}`` and ``{target}`` stand for the two objects."""


_FORWARDED = {
    "__repr__ __str__ __bytes__ __format__ __fspath__ __vfspath__": (
        "describes the target; the wrapper becomes invisible in output"
    ),
    "__eq__ __ne__ __lt__ __le__ __gt__ __ge__": (
        "compares the target with the other operand; of two wrappers, declare "
        "a method of your own that unwraps the other"
    ),
    "__hash__": "declare it beside __eq__, or Python sets it to None",
    "__bool__ __len__ __length_hint__ __contains__": "asks the target",
    "__getitem__ __setitem__ __delitem__": "reads and writes the target's items",
    "__iter__ __reversed__ __aiter__": "iterates over the target",
    "__next__ __anext__": "advances the target",
    "__call__": "calls the target; the call runs with the target's own self",
    "__int__ __float__ __complex__ __index__ __round__ __trunc__ __floor__ __ceil__": (
        "converts the target"
    ),
    "__neg__ __pos__ __abs__ __invert__": "the result is the target's, unwrapped",
    "__add__ __sub__ __mul__ __matmul__ __truediv__ __floordiv__ __mod__ __divmod__ "
    "__pow__ __lshift__ __rshift__ __and__ __xor__ __or__": (
        "the result is the target's, unwrapped; the other operand is passed as it is; "
        "a target that also has the operator in place makes that one refused"
    ),
    "__radd__ __rsub__ __rmul__ __rmatmul__ __rtruediv__ __rfloordiv__ __rmod__ "
    "__rdivmod__ __rpow__ __rlshift__ __rrshift__ __rand__ __rxor__ __ror__": (
        "the result is the target's, unwrapped; called with the operands swapped"
    ),
    "__enter__ __aenter__": (
        "'with {wrapper} as x' binds what the target returns, often the target itself"
    ),
    "__exit__ __aexit__": "leaves the target's context; declare it with the entering",
    "__await__": "awaits the target",
    "__buffer__ __release_buffer__": "exports the target's memory (from Python 3.12)",
}

_OWN = {
    "__new__ __init__ __init_subclass__ __set_name__ __class_getitem__ "
    "__mro_entries__ __prepare__ __subclasshook__ __post_init__": (
        "it builds the wrapper or its class, when there is no target yet; "
        "define it on the wrapper"
    ),
    "__instancecheck__ __subclasscheck__ __subclasses__ __mro__ __bases__ __base__ "
    "__abstractmethods__ __orig_bases__ __type_params__ __parameters__": (
        "Python looks it up on the class; no object forwards it"
    ),
    "__dict__ __slots__ __weakref__ __static_attributes__ __firstlineno__": (
        "it is where the wrapper keeps its own attributes"
    ),
    "__name__ __qualname__ __module__ __doc__ __annotations__ __annotate__ "
    "__annotate_func__ __annotations_cache__ __conditional_annotations__ "
    "__match_args__": (
        "help(), pickle and match read it from the class of the wrapper"
    ),
    "__sizeof__": "it measures the memory of the wrapper",
    "__dir__": "it lists what the wrapper has; define it from forwarded_attributes()",
    "__copy__ __deepcopy__ __replace__": (
        "a copy of the wrapper would be a copy of the target, without its wrapper"
    ),
    "__reduce__ __reduce_ex__ __getstate__ __setstate__ __getnewargs__ "
    "__getnewargs_ex__": "unpickling the wrapper would build a bare target",
    "__wrapped__": "it is how unwrap() and inspect find the next layer",
    "__missing__": "only dict calls it, on itself",
    "__isabstractmethod__ __objclass__": "it describes the attribute, not a target",
}

_REFUSED = {
    "__del__": "the wrapper's end would finalize a target that others still use",
    "__class__": (
        "isinstance() would believe it and type() would not; "
        "use forwarding.proxy.TransparentProxy"
    ),
    "__getattribute__ __getattr__": (
        "it would answer for every name, and hide errors of the wrapper; "
        "declare the names, or use forwarding.proxy.TransparentProxy"
    ),
    "__setattr__ __delattr__": (
        "the wrapper could not keep an attribute of its own, not even its target; "
        "declare the names, or use forwarding.proxy.TransparentProxy"
    ),
    "__get__ __set__ __delete__": (
        "the wrapper would become a descriptor wherever a class holds it"
    ),
}

_IN_PLACE = {
    "__iadd__": "+=",
    "__isub__": "-=",
    "__imul__": "*=",
    "__imatmul__": "@=",
    "__itruediv__": "/=",
    "__ifloordiv__": "//=",
    "__imod__": "%=",
    "__ipow__": "**=",
    "__ilshift__": "<<=",
    "__irshift__": ">>=",
    "__iand__": "&=",
    "__ixor__": "^=",
    "__ior__": "|=",
}


def refusal(
    name: str, /, *, wrapper: str = "wrapper", target: str = "target"
) -> str | None:
    """Return why ``name`` cannot be declared as forwarded, None if it can be.

    >>> refusal("__iadd__", wrapper="car", target="engine").partition(";")[0]
    "'car += x' would rebind the name to the engine"
    >>> refusal("__len__") is None
    True

    Args:
        name: An attribute name, special or not.
        wrapper: What the message calls the wrapper.
        target: What the message calls its target.
    """
    special = SPECIALS.get(name)
    if special is None or special.standing == "forwarded":
        return None
    return special.reason.format(wrapper=wrapper, target=target)


def _table() -> Iterator[tuple[str, Special]]:
    groups: tuple[tuple[Standing, dict[str, str]], ...] = (
        ("forwarded", _FORWARDED),
        ("own", _OWN),
        ("refused", _REFUSED),
    )
    for standing, group in groups:
        for names, reason in group.items():
            for name in names.split():
                yield name, Special(standing, reason)
    for name, operator in _IN_PLACE.items():
        reason = (
            f"'{{wrapper}} {operator} x' would rebind the name to the {{target}}; "
            "use forwarding.proxy.TransparentProxy"
        )
        yield name, Special("refused", reason)


SPECIALS: Mapping[str, Special] = MappingProxyType(dict(_table()))
