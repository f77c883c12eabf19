"""Whether a loss function is being evaluated again."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


__all__ = ("look", "looking")

_looking: ContextVar[bool] = ContextVar("dp_looking", default=False)


def looking() -> bool:
    """Whether a loss function runs for a second time, only to be compared.

    For functions that log or count: what they do outside of torch, numpy and their own
    modules is not undone. False everywhere else.

    >>> looking()
    False
    """
    return _looking.get()


@contextmanager
def look() -> Iterator[None]:
    """Let :func:`looking` be true."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)
