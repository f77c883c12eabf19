"""Dynamic targets, looked up at each access or made at the first one.

``target(Session, via=...)`` is the spelling. Each way to look up is one
:class:`Resolver`, which says how generated code reaches the target in one step; a
property in between would call Python twice for each access.
"""

from _thread import RLock  # What threading has, without its import of 1 ms.
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, final

from forwarding._record import record_in
from forwarding.exceptions import ForwardingError, TargetMissingError


__all__ = (
    "Resolver",
    "is_built",
    "lazy",
    "resolver_for",
    "resolver_of",
    "unbound",
    "unbound_or",
)

T = TypeVar("T")


class Resolver(NamedTuple):
    """How one dynamic target is found."""

    expression: str
    """Source of the look-up; ``{name}`` is the target's, ``{via}`` this one's ``via``."""
    via: Any = None
    """What ``{via}`` is in the expression."""
    errors: str = ""
    """Exceptions that mean "nothing is bound", as source; "" if none does."""
    may_be_none: bool = False
    """Whether the look-up gives None when there is no target."""
    reason: str = ""
    """What an error says when there is no target."""
    bind: Callable[[Any, str, Any], None] | None = None
    """Called with wrapper, name and value where a target is assigned."""
    make: Callable[[Any], Any] | None = None
    """Makes the target at its first use; afterwards it is a plain attribute."""

    def attribute(self, name: str) -> Any:
        """Return what stands on the class under the target's name."""
        if self.make is not None:
            return LazyTarget(name, self.make)
        bind = self.bind
        found = property(_Finder(self, name))
        if bind is None:
            return found
        return found.setter(lambda wrapper, value: bind(wrapper, name, value))


@final
class lazy(Generic[T]):  # noqa: N801 -- Read as an adjective: via=lazy(make).
    """A target that is made at its first use, once, however many threads ask.

    ``functools.cached_property`` has had no lock since Python 3.12 (cpython#87634),
    so that eight threads may make eight targets.

    >>> from forwarding import forwarded, target
    >>> class Car:
    ...     numbers = target(list, via=lazy(lambda car: [car.first]))
    ...     append = forwarded(numbers.append)
    ...     first = 7
    >>> car = Car()
    >>> car.append(8)
    >>> car.numbers
    [7, 8]

    Args:
        make: Called with the wrapper; the wrapper keeps the result as an attribute. An
            error propagates, and the next access tries again.
    """

    def __init__(self, make: Callable[[Any], T], /) -> None:
        self.make = make


@final
class LazyTarget:
    """Descriptor that makes the target; the instance's own attribute then hides it."""

    def __init__(self, name: str, make: Callable[[Any], Any]) -> None:
        self._name = name
        self._make = make

    def __get__(self, wrapper: Any, owner: type | None = None, /) -> Any:
        if wrapper is None:
            return self
        own = self._dict_of(wrapper)
        key = f"_{self._name.strip('_')}_lock"
        # The lock is the instance's. One for all, as cached_property's was, makes
        # instances wait for each other, and deadlock where factories use others.
        lock = own.setdefault(key, _Lock())
        with lock:
            if self._name not in own:
                own[self._name] = self._make(wrapper)
        # Left after an error: threads that wait for this lock must not meet another one,
        # made by who comes later, or two would run the factory at the same time.
        own.pop(key, None)
        return own[self._name]

    def _dict_of(self, wrapper: Any) -> dict[str, Any]:
        try:
            own: dict[str, Any] = vars(wrapper)
        except TypeError:
            raise _no_place(wrapper, self._name, "__dict__") from None
        return own


class _Lock:
    """A reentrant lock that copies and pickles as a new one."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Lock, ()


def resolver_for(via: Any) -> Resolver:
    """Return how to find a target that ``via`` leads to.

    Raises:
        ForwardingError: ``via`` is none of what leads to a target.
    """
    import threading  # noqa: PLC0415 -- For dynamic targets only.
    import weakref  # noqa: PLC0415
    from contextvars import ContextVar  # noqa: PLC0415

    if isinstance(via, lazy):
        return Resolver("self.{name}", make=via.make)
    if isinstance(via, ContextVar):
        return _in_context(via)
    if isinstance(via, threading.local):
        return _in_thread(via)
    if isinstance(via, type) and issubclass(via, weakref.ref):
        return _weakly(via)
    if callable(via) and not isinstance(via, type):
        name = getattr(via, "__qualname__", type(via).__name__)
        return Resolver("{via}()", via, "LookupError", reason=f"{name}() found none")
    raise ForwardingError(
        "via= takes a ContextVar, a threading.local, weakref.ref, lazy(make) or a "
        f"function without arguments, got {via!r}"
    )


def _in_context(variable: Any) -> Resolver:
    """Look up a ContextVar: each task and each thread has its own target."""
    return Resolver(
        "{via}()",
        variable.get,
        "LookupError",
        reason=f"the ContextVar {variable.name!r} is not set in this context",
        bind=lambda _wrapper, _name, value: variable.set(value),
    )


def _in_thread(local: Any) -> Resolver:
    """Look up the attribute, of the target's name, of a ``threading.local``."""
    return Resolver(
        "{via}.{name}",
        local,
        "AttributeError",
        reason="this thread has bound none",
        bind=lambda _wrapper, name, value: setattr(local, name, value),
    )


def _weakly(reference: Callable[[Any], Any]) -> Resolver:
    """Look up a weak reference, which the wrapper holds in ``_<name>_ref``."""

    def bind(wrapper: Any, name: str, value: Any) -> None:
        found = reference(value)
        try:
            setattr(wrapper, f"_{name}_ref", found)
        except AttributeError as error:
            raise _no_place(wrapper, name, f"_{name}_ref") from error

    return Resolver(
        "self._{name}_ref()",
        errors="AttributeError",
        may_be_none=True,
        reason="it was collected, or none was assigned",
        bind=bind,
    )


def _no_place(wrapper: object, name: str, slot: str) -> ForwardingError:
    """Return the error for a target that an instance has nowhere to keep."""
    cls = type(wrapper).__name__
    return ForwardingError(
        f"{cls}.{name} is kept in {slot}, which instances of {cls} do not have; add "
        f"{slot!r} to its __slots__, or leave them out"
    )


def resolver_of(cls: type, name: str) -> Resolver | None:
    """Return how ``cls`` finds its target ``name``, None if that is an attribute."""
    for base in cls.__mro__:
        record = record_in(base)
        if record is not None and name in record.targets:
            resolver: Resolver | None = record.resolvers.get(name)
            return resolver
    return None


def unbound(wrapper: object, name: str) -> TargetMissingError:
    """Return the error for a dynamic target that is not there."""
    cls = type(wrapper)
    resolver = resolver_of(cls, name)
    reason = resolver.reason if resolver else "none is bound"
    return TargetMissingError(
        f"{cls.__name__}.{name} has no target now: {reason}", name=name, obj=wrapper
    )


def unbound_or(wrapper: object, name: str, error: Exception) -> Exception:
    """Return that a weak target is gone, or else the error that was caught."""
    try:
        getattr(wrapper, name)
    except TargetMissingError as missing:
        missing.__cause__ = error
        return missing
    return error


def is_built(wrapper: object, name: str) -> bool:
    """Return whether asking for a target would not make it."""
    resolver = resolver_of(type(wrapper), name)
    is_lazy = resolver is not None and resolver.make is not None
    return not is_lazy or name in vars(wrapper)


class _Finder:
    """Getter of the target itself, as it is found for each forwarded attribute."""

    def __init__(self, resolver: Resolver, name: str) -> None:
        source = resolver.expression.format(name=name, via="via")
        space = {"via": resolver.via}
        self._look_up = eval(f"lambda self: {source}", space)  # noqa: S307 -- Ours.
        self._errors = (LookupError, AttributeError) if resolver.errors else ()
        self._may_be_none = resolver.may_be_none
        self._name = name

    def __call__(self, wrapper: object) -> Any:
        try:
            found = self._look_up(wrapper)
        except self._errors as error:
            raise unbound(wrapper, self._name) from error
        if found is None and self._may_be_none:
            raise unbound(wrapper, self._name)
        return found
