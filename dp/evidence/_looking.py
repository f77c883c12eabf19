"""Whether a loss function is being evaluated again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch


__all__ = ("apart", "look", "looking")

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


@contextmanager
def apart(
    silenced: Sequence[Callable[[], AbstractContextManager[None]]],
    inside: AbstractContextManager[Any] | None,
) -> Iterator[None]:
    """Evaluate a function apart from the run: silenced, and while `looking` is true."""
    with ExitStack() as stack:
        for silence in silenced:
            stack.enter_context(silence())
        stack.enter_context(look())
        # A weight that is cast under no_grad would stay cached, without its gradient.
        was_enabled = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        stack.callback(torch.set_autocast_cache_enabled, was_enabled)
        if inside is not None:
            stack.enter_context(inside)
        yield
