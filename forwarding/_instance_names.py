"""Names that instances of a class have without a mention in a class body.

Half of an optimizer's interface (``param_groups``, ``state``, ``defaults``) is born in
``__init__``. A wrapper that forwards "the class" without them keeps an assigned list
to itself while the optimizer steps with the old one: opacus#649, finetrainers#293.
"""

import functools
import itertools
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, Final
from weakref import WeakKeyDictionary

from forwarding._bytecode import codes_of
from forwarding._static import static_attribute


__all__ = ("body_names", "instance_names")

# What runs while an instance is being built.
_BUILDERS: Final = ("__new__", "__init__", "__post_init__", "__attrs_post_init__")
_SETTERS: Final = {"setattr", "__setattr__"}
_DICTS: Final = {"__dict__", "vars"}
_CACHE: Final[WeakKeyDictionary[type, tuple[str, ...]]] = WeakKeyDictionary()
_NOISE: Final = (
    "EXTENDED_ARG",
    "NOP",
    "CACHE",
    "PRECALL",
    "PUSH_NULL",
    "COPY_FREE_VARS",
)


def instance_names(cls: type) -> tuple[str, ...]:
    """Return the names that building an instance assigns, base classes first.

    Found in the bytecode of ``__init__`` and of the methods that it calls on ``self``,
    in every class of the method resolution order, and in the fields that dataclasses
    and attrs record. What C code assigns is not seen.

    >>> class Engine:
    ...     def __init__(self):
    ...         self.rpm = 900
    ...         self.reset()
    ...     def reset(self):
    ...         self.oil, self.fuel = 1, 2
    >>> instance_names(Engine)
    ('rpm', 'oil', 'fuel')
    """
    names = _CACHE.get(cls)
    if names is None:
        found = (body_names(base, cls) for base in reversed(cls.__mro__))
        names = tuple(dict.fromkeys(itertools.chain.from_iterable(found)))
        _CACHE[cls] = names
    return names


def body_names(base: type, cls: type) -> tuple[str, ...]:
    """Return those of the names that one class body of ``cls`` assigns."""
    names = dict.fromkeys(_fields(base))
    for builder in _BUILDERS:
        names |= _assigned_by(cls, vars(base).get(builder), seen=set())
    return tuple(names)


def _fields(cls: type) -> Iterator[str]:
    for field in vars(cls).get("__attrs_attrs__", ()):
        yield field.name
    for field in vars(cls).get("__dataclass_fields__", {}).values():
        # An InitVar and a ClassVar are listed too, and are no attributes of instances.
        if field._field_type.name == "_FIELD":  # noqa: SLF001 -- fields() needs inspect.
            yield field.name


def _assigned_by(cls: type, function: object, seen: set[object]) -> dict[str, None]:
    names: dict[str, None] = {}
    for code in codes_of(function):
        if code in seen:
            continue
        seen.add(code)
        instructions = _instructions(code)
        names |= dict.fromkeys(_assigned(code, instructions))
        for method in _methods_used(code, instructions):
            called = static_attribute(cls, method)
            if isinstance(called, FunctionType):
                names |= _assigned_by(cls, called, seen)
    return names


@functools.lru_cache(maxsize=64)
def _instructions(code: CodeType) -> tuple[tuple[str, Any], ...]:
    import dis  # noqa: PLC0415 -- 2 ms, for wrappers of a known class only.

    return tuple(
        (instruction.opname, instruction.argval)
        for instruction in dis.get_instructions(code)
        if instruction.opname not in _NOISE
    )


def _assigned(
    code: CodeType, instructions: tuple[tuple[str, Any], ...]
) -> Iterator[str]:
    """Yield ``x`` of ``self.x = ...``, ``setattr(self, "x", ...)`` and the like."""
    for at, (opname, argument) in enumerate(instructions):
        before = instructions[max(0, at - 3) : at]
        if opname == "STORE_ATTR" and before and _is_self(code, *before[-1]):
            yield argument
        elif opname == "LOAD_CONST" and _is_name(argument):
            is_stored = instructions[at + 1 : at + 2] == (("STORE_SUBSCR", None),)
            before_names = {name for _, name in before if isinstance(name, str)}
            # A setter's argument, or an item that is stored in the instance's dict.
            if before_names & _SETTERS or (is_stored and before_names & _DICTS):
                yield argument


def _methods_used(
    code: CodeType, instructions: tuple[tuple[str, Any], ...]
) -> Iterator[str]:
    for (_, loaded), (opname, argument) in itertools.pairwise(instructions):
        if opname in ("LOAD_ATTR", "LOAD_METHOD") and _is_self(code, "LOAD", loaded):
            yield argument


def _is_self(code: CodeType, opname: str, loaded: Any) -> bool:
    """Whether an instruction loads the instance that is being built.

    That is the first parameter, but in ``__new__``, where it is another variable.
    CPython 3.13 and later load two variables by one instruction.
    """
    name = loaded[-1] if isinstance(loaded, tuple) and loaded else loaded
    if "LOAD" not in opname or "GLOBAL" in opname or "CONST" in opname:
        return False
    if code.co_name == "__new__":
        return name in code.co_varnames[1:]
    return name in (*code.co_varnames[:1], *code.co_freevars)


def _is_name(const: object) -> bool:
    return isinstance(const, str) and const.isidentifier()
