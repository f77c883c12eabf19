"""The :class:`Wrapper` base: one target, held as ``__wrapped__``."""

from typing import Generic, TypeVar

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__wrapped__!r})"


record_of(Wrapper).targets["__wrapped__"] = None  # Known from Wrapper[T].
