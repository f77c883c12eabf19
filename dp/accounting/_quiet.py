"""Keep advice of ``dp_accounting`` out of a program's logs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


__all__ = ("without_advice",)


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence warnings about Renyi orders that are left out of a bound.

    Leaving orders out only makes a bound larger.
    """
    # Through which the library logs; the caller's own level is put back.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
