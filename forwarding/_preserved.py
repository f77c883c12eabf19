"""Keep a base ``__init__`` from overwriting what the target owns."""

from typing import Any, final

from forwarding._record import forwarded_attributes


__all__ = ("preserved",)

_MISSING: Any = object()


@final
class preserved:  # noqa: N801 -- Read as a verb: with preserved(self).
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

    Args:
        wrapper: Its target must be bound already.

    Raises:
        AttributeError: On entering, the target is not bound yet.

    Guarantees:
        The same objects are put back on the same owners, also when the block
        raises or binds another target. A name that an owner did not have is
        deleted again.
    """

    __slots__ = ("_before", "_wrapper")

    def __init__(self, wrapper: object, /) -> None:
        self._wrapper = wrapper
        self._before: list[tuple[object, str, Any]] = []

    def __enter__(self) -> None:
        self._before = [
            (owner, spec.name, getattr(owner, spec.name, _MISSING))
            for spec in forwarded_attributes(type(self._wrapper)).values()
            if spec.kind == "data" and spec.set
            for owner in [spec.find_owner(self._wrapper)]
        ]

    def __exit__(self, *_: object) -> None:
        for owner, name, value in self._before:
            _put_back(owner, name, value)


def _put_back(owner: object, name: str, value: Any) -> None:
    if getattr(owner, name, _MISSING) is value:
        return
    if value is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
