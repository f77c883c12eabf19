"""Django's lazy objects, declared: an object that is made when it is first used."""

from collections.abc import Callable
from typing import TypeVar

from forwarding import Forwarding, lazy, target


T = TypeVar("T")


def lazy_object(cls: type[T], make: Callable[[], T]) -> T:
    """Return an object with the interface of ``cls`` that ``make`` builds at first use.

    Once, however many threads ask; ``repr()`` does not build it.
    """

    class Lazy(Forwarding, to="made", forward=cls):
        made = target(cls, via=lazy(lambda _: make()))

    return Lazy()  # type: ignore[return-value]
