"""Give one object class attributes of its own, and watch what reaches them."""

import copy
import linecache
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, Never

from forwarding.testing.probes._values import NotApplicableError, attempt


__all__ = (
    "accepting",
    "call_during_get",
    "compute",
    "counting",
    "derive",
    "half_built",
    "override",
    "raised_in",
    "raising",
    "sourceless",
    "unbound",
)

_MEETING_SECONDS = 5.0


def half_built(cls: type) -> Any:
    """Return an instance of ``cls`` whose ``__init__`` never ran."""
    new: Callable[..., Any] = cls.__new__
    try:
        return new(cls)
    except TypeError as error:
        raise NotApplicableError(f"{cls.__name__} has no bare instances") from error


def unbound(empty: object, target: object, name: str) -> None:
    """Require that a half-built wrapper does not know its target from elsewhere.

    One that asks a registry or a context has a target before ``__init__`` ran.
    """
    answers = attempt(getattr, empty, name) is None
    if answers and getattr(empty, name) is getattr(target, name):
        raise NotApplicableError("the target does not depend on the instance")


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
            f"the class of a {type(target).__name__} cannot be exchanged; a subclass of"
            " it, written in Python, may serve as the target"
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


def accepting(value: object) -> property:
    """Return a property that always shows ``value``, and ignores assignments.

    A base's ``__init__`` may assign the name, as that of ``torch.nn.Module``
    assigns ``training``; a property without a setter would refuse the instance.

    >>> class Point: x = accepting(7)
    >>> point = Point()
    >>> point.x = 8
    >>> point.x
    7
    """
    return property(lambda _: value, lambda _, _value: None)


def raising(error: Exception) -> property:
    """Return a property that raises this very exception at get, set and delete."""

    def refuse(*_: object) -> Never:
        raise error

    return property(refuse, refuse, refuse)


def raised_in(error: Exception) -> str:
    """Return the name of the function that ``error`` comes from.

    >>> raised_in(attempt(int, "no number"))
    'attempt'
    """
    return traceback.extract_tb(error.__traceback__)[-1].name


def sourceless(error: Exception) -> list[str]:
    """Return the functions in the traceback of ``error`` whose line does not show.

    >>> sourceless(attempt(int, "no number"))
    []
    """
    return [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if not linecache.getline(frame.filename, frame.lineno or 0)
        and not _is_typed(frame.filename)
    ]


def _is_typed(filename: str) -> bool:
    """Whether code was typed at a prompt or after ``python -c``, which keep no source."""
    return filename == "<stdin>" or (filename, sys.argv[:1]) == ("<string>", ["-c"])


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


def compute(target: object, name: str) -> None:
    """Make ``target.name`` read-only, and a new copy of its value at each get.

    >>> class Point:
    ...     def __init__(self): self.x = [1]
    >>> point = Point()
    >>> compute(point, "x")
    >>> point.x, point.x is point.x
    ([1], False)
    """
    value = getattr(target, name)
    # A new object at each get tells a snapshot that compares by identity from one that
    # does not.
    if attempt(copy.copy, value) is not None:
        raise NotApplicableError(f"the value of {name} cannot be copied")
    override(target, **{name: property(lambda _: copy.copy(value))})


def call_during_get(target: object, name: str, action: Callable[[], object]) -> None:
    """Make the first get of ``target.name`` run ``action`` in another thread.

    The n-th get returns ``"get n"``; the first waits until ``action`` is done.
    """
    gets: list[str] = []

    def fget(_: object) -> str:
        gets.append(f"get {len(gets) + 1}")
        mine = gets[-1]
        if mine == "get 1":
            # What it raises is seen by what is missing then, and must not be printed.
            meeting = threading.Thread(target=attempt, args=(action,), daemon=True)
            meeting.start()
            meeting.join(_MEETING_SECONDS)
        return mine

    override(target, **{name: property(fget)})
