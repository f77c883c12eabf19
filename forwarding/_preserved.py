"""Keep a base ``__init__`` from overwriting what the target owns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forwarding._record import forwarded_attributes


__all__ = ("preserved",)

_MISSING: Any = object()


@contextmanager
def preserved(wrapper: object, /) -> Iterator[None]:
    """Put the values of all forwarded data back when the block ends.

    For a base whose ``__init__`` assigns names that are forwarded: the
    assignments reach the target, which must keep its own values.

    >>> from forwarding import Wrapper, Forwarded
    >>> class Base:
    ...     def __init__(self):
    ...         self.lr = 0.0
    >>> class Tuned(Wrapper, Base):
    ...     lr = Forwarded("__wrapped__")
    ...     def __init__(self, wrapped):
    ...         self.__wrapped__ = wrapped
    ...         with preserved(self):
    ...             Base.__init__(self)
    >>> inner = Base(); inner.lr = 0.5
    >>> Tuned(inner).lr
    0.5

    Raises:
        AttributeError: The target is not bound yet; bind it before the block.
    """
    before = [
        (owner, spec.name, getattr(owner, spec.name, _MISSING))
        for spec in forwarded_attributes(type(wrapper)).values()
        if spec.kind == "data" and spec.set
        for owner in [spec.find_owner(wrapper)]
    ]
    try:
        yield
    finally:
        for owner, name, value in before:
            _put_back(owner, name, value)


def _put_back(owner: object, name: str, value: Any) -> None:
    if getattr(owner, name, _MISSING) is value:
        return
    if value is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
