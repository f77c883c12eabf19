"""The :class:`Wrapper` base: one target, held as ``__wrapped__``."""

from reprlib import recursive_repr
from typing import Generic, TypeVar

from forwarding._dynamic import is_built
from forwarding._mixin import Forwarding
from forwarding._record import record_of


__all__ = ("Wrapper",)

T = TypeVar("T")


class Wrapper(Forwarding, Generic[T]):
    """Hold the wrapped object as ``__wrapped__``; forward what is declared.

    >>> from forwarding import Forwarded
    >>> class Loud(Wrapper[list[int]]):
    ...     count = Forwarded()
    >>> Loud([1, 1, 2]).count(1)
    2
    """

    __wrapped__: T

    def __init__(self, wrapped: T, /) -> None:
        self.__wrapped__ = wrapped

    @recursive_repr()
    def __repr__(self) -> str:
        # Looking at a wrapper, in a log or a debugger, must not make its lazy target.
        has_target = is_built(self, "__wrapped__") and hasattr(self, "__wrapped__")
        inside = repr(self.__wrapped__) if has_target else "<nothing yet>"
        return f"{type(self).__name__}({inside})"


# Its class is known from Wrapper[T].
record_of(Wrapper).targets["__wrapped__"] = None
