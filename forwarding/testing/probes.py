"""The tools that the laws' scripts call, so that a counterexample runs as it is printed.

Every counterexample is a program: it needs the user's own names and
``from forwarding.testing.probes import *``. A probe that cannot do its work on
some class (no instance dictionary, a layout fixed in C) raises
:class:`NotApplicableError`; the law then says nothing about that class.
"""

import copy
import inspect
import re
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, Never
from unittest import mock

from forwarding.testing._pickling import pickled


__all__ = (
    "NotApplicableError",
    "addable",
    "alike",
    "attempt",
    "call_during_get",
    "changed",
    "copy",
    "copyable",
    "counting",
    "derive",
    "failing",
    "finish",
    "half_built",
    "inspect",
    "keeps",
    "link",
    "linked",
    "mock",
    "override",
    "own_dict",
    "patchable",
    "pickled",
    "raising",
    "recorder",
    "shadowed",
    "touched",
    "types",
    "weakly",
)

# Copying caches this name on every class; it changes no behaviour.
_HARMLESS = frozenset({"__slotnames__"})
_LINK = "law_kit_link"
_MEETING_SECONDS = 5.0


class NotApplicableError(Exception):
    """Say that a law has no meaning for the object at hand, and why."""


def _shown(value: object) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x", repr(value))  # an address is no difference


def alike(left: object, right: object) -> bool:
    """Tell whether two values are one object, or equal objects of one type.

    >>> alike([1], [1]), alike(1, True)
    (True, False)
    """
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    try:
        equal = bool(left == right)
    except Exception:  # noqa: BLE001  # arrays and tensors have no truth value
        equal = False
    return equal or _shown(left) == _shown(right)


def addable(value: Any) -> None:
    """Require that ``value`` can be added to itself.

    >>> addable([1])
    """
    item = copy.deepcopy(value)
    try:
        item += copy.deepcopy(value)
    except TypeError as error:
        raise NotApplicableError("no value drawn can be added to itself") from error


def touched(
    target: object, names: list[str], action: Callable[[], object]
) -> list[str]:
    """Return those of ``names`` that ``action`` gives another value on ``target``.

    >>> point = types.SimpleNamespace(x=1, y=2)
    >>> touched(point, ["x", "y"], lambda: setattr(point, "x", 7))
    ['x']
    """
    before = {name: getattr(target, name) for name in names}
    new = [name for name in names if getattr(target, name) is not before[name]]
    action()

    def is_same(name: str) -> bool:
        if attempt(getattr, target, name) is not None:
            return False
        value = getattr(target, name)
        return value is before[name] or (name in new and alike(value, before[name]))

    return [name for name in names if not is_same(name)]


def attempt(action: Callable[..., object], *args: Any) -> Exception | None:
    """Return the exception that ``action(*args)`` raises, or None.

    >>> attempt(getattr, object(), "missing") is None
    False
    """
    try:
        action(*args)
    except Exception as error:  # noqa: BLE001  # the caller compares it
        return error
    return None


def own_dict(layer: object) -> dict[str, Any]:
    """Return the attributes that ``layer`` itself stores, not those it shows.

    >>> own_dict(types.SimpleNamespace(a=1))
    {'a': 1}
    """
    for name in ("__self_dict__", "__dict__"):  # wrapt keeps its own apart
        try:
            found = object.__getattribute__(layer, name)
        except AttributeError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def shadowed(layers: list[object], target: object, name: str) -> list[str]:
    """Return the types of the layers that keep a value of ``name`` of their own."""
    owned = own_dict(target)
    return [
        type(layer).__name__
        for layer in layers
        if own_dict(layer) is not owned and name in own_dict(layer)
    ]


def changed(cls: type, before: dict[str, object]) -> list[str]:
    """Return the names of ``vars(cls)`` that differ from ``before``.

    >>> class Plain: ...
    >>> changed(Plain, dict(vars(Plain)))
    []
    """
    after = vars(cls)
    return sorted(
        name
        for name in (before.keys() | after.keys()) - _HARMLESS
        if before.get(name) is not after.get(name)
    )


def half_built(cls: type) -> Any:
    """Return an instance of ``cls`` whose ``__init__`` never ran."""
    new: Callable[..., Any] = cls.__new__
    try:
        return new(cls)
    except TypeError as error:
        raise NotApplicableError(f"{cls.__name__} has no bare instances") from error


def _subclass(cls: type, namespace: dict[str, object]) -> type:
    # An empty __slots__ keeps the layout, so that __class__ can be assigned.
    body = {"__slots__": (), "__module__": __name__, **namespace}
    try:
        return types.new_class(cls.__name__, (cls,), {}, lambda ns: ns.update(body))
    except TypeError as error:
        raise NotApplicableError(f"{cls.__name__} has no subclasses") from error


def override(target: object, **descriptors: object) -> None:
    """Give this one object class attributes of its own.

    >>> class Point: ...
    >>> point = Point()
    >>> override(point, x=property(lambda self: 7))
    >>> point.x
    7
    """
    cls = _subclass(type(target), descriptors)
    try:
        object.__setattr__(target, "__class__", cls)
    except (AttributeError, TypeError) as error:
        raise NotApplicableError(
            f"the class of a {type(target).__name__} cannot be exchanged"
        ) from error


def derive(
    factory: Callable[[Any], Any], target: object, /, **descriptors: object
) -> Any:
    """Return a wrapper of ``target`` whose class inherits from the wrapper's class."""
    if isinstance(factory, type):
        return _subclass(factory, descriptors)(target)
    wrapper = factory(target)
    override(wrapper, **descriptors)
    return wrapper


def raising(error: Exception) -> property:
    """Return a property that raises this very exception at get, set and delete."""

    def refuse(*_: object) -> Never:
        raise error

    return property(refuse, refuse, refuse)


def failing(error: Exception, like: object) -> Callable[..., object]:
    """Return a method that raises this very exception.

    It is a coroutine function if ``like`` is one.
    """

    def method(*_args: object, **_keywords: object) -> Never:
        raise error

    async def coroutine(*_args: object, **_keywords: object) -> Never:
        raise error

    return coroutine if inspect.iscoroutinefunction(like) else method


def counting(log: list[str]) -> property:
    """Return a property that writes down every access and stores the last value.

    >>> log = []
    >>> class Point: x = counting(log)
    >>> Point().x = 3
    >>> log
    ['set']
    """
    values: list[object] = [None]

    def fget(_: object) -> object:
        log.append("get")
        return values[-1]

    def fset(_: object, value: object) -> None:
        log.append("set")
        values.append(value)

    return property(fget, fset)


def recorder(result: object, calls: list[Any], like: object) -> Callable[..., object]:
    """Return a method that notes who was called with what, and returns ``result``.

    It is a coroutine function if ``like`` is one.
    """

    def method(self: object, *args: object, **keywords: object) -> object:
        calls.append((self, args, keywords))
        return result

    async def coroutine(self: object, *args: object, **keywords: object) -> object:
        return method(self, *args, **keywords)

    return coroutine if inspect.iscoroutinefunction(like) else method


def finish(result: object) -> object:
    """Run a coroutine that never waits to its end; return anything else as it is.

    >>> async def answer(): return 42
    >>> finish(answer()), finish(7)
    (42, 7)
    """
    if not inspect.iscoroutine(result):
        return result
    try:
        result.send(None)
    except StopIteration as stop:
        return stop.value
    result.close()
    raise RuntimeError("the forwarded coroutine waits for something of its own")


def call_during_get(target: object, name: str, action: Callable[[], object]) -> None:
    """Make the first get of ``target.name`` run ``action`` in another thread.

    The n-th get returns ``"get n"``; the first waits until ``action`` is done.
    """
    gets: list[str] = []

    def fget(_: object) -> str:
        gets.append(f"get {len(gets) + 1}")
        mine = gets[-1]
        if mine == "get 1":
            meeting = threading.Thread(target=action, daemon=True)
            meeting.start()
            meeting.join(_MEETING_SECONDS)
        return mine

    override(target, **{name: property(fget)})


def copyable(target: object, *ways: Callable[[Any], Any]) -> None:
    """Require that the target itself can be copied in these ways.

    >>> copyable([1], copy.copy, pickled)
    """
    for way in ways:
        error = attempt(way, target)
        if error is not None:
            raise NotApplicableError(
                f"{way.__name__} of the target itself raises {type(error).__name__}"
            )


def keeps(
    how: Callable[[Any], Any], wrapper: object, target: object, name: str
) -> bool:
    """Tell whether a copied wrapper keeps a value that a copied target keeps."""
    value = getattr(target, name)
    if not alike(getattr(how(target), name, None), value):
        return True
    return alike(getattr(how(wrapper), name), value)


def link(target: Any, wrapper: object) -> None:
    """Let the target point back at its wrapper, as a child does at its parent."""
    copyable(target, copy.deepcopy, pickled)
    error = attempt(setattr, target, _LINK, None)
    if error is None and attempt(getattr, copy.deepcopy(target), _LINK) is None:
        setattr(target, _LINK, wrapper)
        return
    raise NotApplicableError("the target keeps no further attribute in a copy")


def linked(wrapper: object, attribute: str, depth: int) -> object:
    """Return what the target ``depth`` times ``attribute`` below points back at."""
    for _ in range(depth):
        wrapper = getattr(wrapper, attribute)
    return getattr(wrapper, _LINK)


def patchable(wrapper: object) -> None:
    """Require that ``wrapper`` can hold attributes of its own."""
    if attempt(object.__getattribute__, wrapper, "__dict__") is not None:
        raise NotApplicableError("an instance has no dictionary to patch")


def weakly(target: Any, make_target: Callable[[], Any]) -> Callable[[], object]:
    """Return a weak reference to a target that is freed when it is dropped."""
    try:
        alone = weakref.ref(make_target())
    except TypeError as error:
        raise NotApplicableError("the target takes no weak references") from error
    if alone() is not None:
        raise NotApplicableError("the target itself waits for the garbage collector")
    return weakref.ref(target)
