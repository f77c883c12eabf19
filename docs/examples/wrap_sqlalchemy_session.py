"""SQLAlchemy's ``scoped_session``, declared: the session of the current thread."""

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.util import ThreadLocalRegistry

from forwarding import Forwarding, target


def scoped_session(make: Callable[[], Session]) -> Any:
    """Return an object that is, in each thread, the session of that thread."""
    registry = ThreadLocalRegistry(make)

    class ScopedSession(Forwarding, forward=Session):
        session = target(Session, via=registry)

        def remove(self) -> None:
            """Close the thread's session; its next use makes another."""
            if registry.has():
                registry().close()
            registry.clear()

    return ScopedSession()
