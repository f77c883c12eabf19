"""The :class:`Wrapper` base: one target, held as ``__wrapped__``."""

from reprlib import recursive_repr
from typing import Generic, TypeVar

from forwarding._dynamic import is_built
from forwarding._mixin import Forwarding
from forwarding._record import record_of


__all__ = ("Holder", "SlottedWrapper", "Wrapper")

T = TypeVar("T")


class Holder(Forwarding, Generic[T]):
    """Common base of the ready wrappers, which differ in where they keep the target."""

    __slots__ = ()
    __wrapped__: T

    def __init__(self, wrapped: T, /) -> None:
        self.__wrapped__ = wrapped  # type: ignore[misc]  # A subclass has the place.

    @recursive_repr()
    def __repr__(self) -> str:
        # Looking at a wrapper, in a log or a debugger, must not make its lazy target.
        has_target = is_built(self, "__wrapped__") and hasattr(self, "__wrapped__")
        inside = repr(self.__wrapped__) if has_target else "<nothing yet>"
        return f"{type(self).__name__}({inside})"


class Wrapper(Holder[T]):
    """Hold the wrapped object as ``__wrapped__``; forward what is declared.

    >>> from forwarding import Forwarded
    >>> class Loud(Wrapper[list[int]]):
    ...     count = Forwarded()
    >>> Loud([1, 1, 2]).count(1)
    2
    """


class SlottedWrapper(Holder[T]):
    """A :class:`Wrapper` whose instances have no ``__dict__``, for many small ones.

    Give its subclasses ``__slots__`` too, or they have one again.

    >>> from forwarding import Forwarded
    >>> class Small(SlottedWrapper[list[int]]):
    ...     __slots__ = ()
    ...     count = Forwarded()
    >>> small = Small([1, 1, 2])
    >>> small.count(1), hasattr(small, "__dict__")
    (2, False)
    """

    __slots__ = ("__weakref__", "__wrapped__")


# Its class is known from Wrapper[T].
record_of(Holder).targets["__wrapped__"] = None
