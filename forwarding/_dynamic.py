"""Dynamic targets: looked up at each access, or made at the first one.

``target(Session, via=...)`` is the spelling. Each way to look up is one
:class:`Resolver`, which says how generated code reaches the target in one step; a
property in between would call Python twice for each access.
"""

from _thread import RLock  # What threading has, without its import of 1 ms.
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar, final

from forwarding._record import record_in
from forwarding.exceptions import ForwardingError, TargetMissingError


__all__ = (
    "Lazily",
    "Resolver",
    "is_built",
    "lazy",
    "resolver_for",
    "resolver_of",
    "unbound",
)

T = TypeVar("T")


class Resolver(Protocol):
    """How one dynamic target is found."""

    reason: str
    """What an error says when there is no target."""
    expression: str
    """Source of the look-up; ``{name}`` is the target's, ``{via}`` this resolver's."""
    errors: str
    """Exceptions that mean "nothing is bound", as source; "" if none does."""
    may_be_none: bool
    """Whether the look-up gives None when there is no target."""

    @property
    def via(self) -> Any:
        """What ``{via}`` is in the expression."""

    def attribute(self, name: str) -> Any:
        """Return what stands on the class under the target's name."""


@final
class lazy(Generic[T]):  # noqa: N801 -- Read as an adjective: via=lazy(make).
    """Make a target at its first use, once, whatever the number of threads.

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
        make: Called with the wrapper; its result is kept as an attribute of it. An
            error passes to whoever asked, and the next access tries again.
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
        own = vars(wrapper)
        key = f"_{self._name.strip('_')}_lock"
        # The lock is the instance's. One for all, as cached_property's was, makes
        # instances wait for each other, and deadlock where factories use others.
        lock = own.setdefault(key, _Lock())
        with lock:
            if self._name not in own:
                own[self._name] = self._make(wrapper)
        own.pop(key, None)  # Left after an error, so that waiting threads share it.
        return own[self._name]


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


class _Called:
    """Any callable without arguments: a registry, the top of a stack."""

    expression: Final = "{via}()"
    errors: Final = "LookupError"
    may_be_none: Final = False

    def __init__(self, via: Callable[[], Any]) -> None:
        self.via = via
        self.reason = f"{getattr(via, '__qualname__', type(via).__name__)}() found none"

    def attribute(self, name: str) -> Any:
        return _property(self, name)


class _InContext:
    """A ContextVar: each task and each thread has its own target."""

    expression: Final = "{via}()"
    errors: Final = "LookupError"
    may_be_none: Final = False

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self.via = variable.get
        self.reason = f"the ContextVar {variable.name!r} is not set in this context"

    def attribute(self, name: str) -> Any:
        def bind(_wrapper: object, value: Any) -> None:
            self._variable.set(value)

        return _property(self, name).setter(bind)

    def __reduce__(self) -> tuple[Any, ...]:
        return _InContext, (self._variable,)


class _InThread:
    """An attribute, of the target's name, of a ``threading.local``."""

    expression: Final = "{via}.{name}"
    errors: Final = "AttributeError"
    may_be_none: Final = False

    def __init__(self, local: Any) -> None:
        self.via = local
        self.reason = "this thread has bound none"

    def attribute(self, name: str) -> Any:
        def bind(_wrapper: object, value: Any) -> None:
            setattr(self.via, name, value)

        return _property(self, name).setter(bind)


class _Weakly:
    """A weak reference, which the wrapper holds in ``_<name>_ref``."""

    expression: Final = "self._{name}_ref()"
    errors: Final = "AttributeError"
    may_be_none: Final = True
    reason: Final = "it was collected, or none was assigned"

    def __init__(self, reference: Callable[[Any], Any]) -> None:
        self.via = reference

    def attribute(self, name: str) -> Any:
        def bind(wrapper: object, value: Any) -> None:
            setattr(wrapper, f"_{name}_ref", self.via(value))

        return _property(self, name).setter(bind)


class Lazily:
    """No look-up of its own: after the first use, the target is a plain attribute."""

    expression: Final = "self.{name}"
    errors: Final = ""
    may_be_none: Final = False
    reason: Final = ""

    def __init__(self, via: lazy[Any]) -> None:
        self.via = via

    def attribute(self, name: str) -> Any:
        return LazyTarget(name, self.via.make)


def resolver_for(via: Any) -> Resolver:
    """Return how to find a target that ``via`` leads to.

    Raises:
        ForwardingError: ``via`` is none of what leads to a target.
    """
    import threading  # noqa: PLC0415 -- For dynamic targets only.
    import weakref  # noqa: PLC0415
    from contextvars import ContextVar  # noqa: PLC0415

    if isinstance(via, lazy):
        return Lazily(via)
    if isinstance(via, ContextVar):
        return _InContext(via)
    if isinstance(via, threading.local):
        return _InThread(via)
    if isinstance(via, type) and issubclass(via, weakref.ref):
        return _Weakly(via)
    if callable(via) and not isinstance(via, type):
        return _Called(via)
    raise ForwardingError(
        "via= takes a ContextVar, a threading.local, weakref.ref, lazy(make) or a "
        f"function without arguments, got {via!r}"
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


def is_built(wrapper: object, name: str) -> bool:
    """Return whether asking for a target would not make it."""
    resolver = resolver_of(type(wrapper), name)
    return not isinstance(resolver, Lazily) or name in vars(wrapper)


def _property(resolver: Resolver, name: str) -> property:
    source = resolver.expression.format(name=name, via="via")
    space = {"via": resolver.via}
    look_up = eval(f"lambda self: {source}", space)  # noqa: S307 -- Ours, of above.

    def find(wrapper: object) -> Any:
        try:
            found = look_up(wrapper)
        except (LookupError, AttributeError) as error:
            if resolver.errors not in (type(error).__name__, *_bases(error)):
                raise
            raise unbound(wrapper, name) from error
        if found is None and resolver.may_be_none:
            raise unbound(wrapper, name)
        return found

    return property(find)


def _bases(error: BaseException) -> list[str]:
    return [base.__name__ for base in type(error).__mro__]
