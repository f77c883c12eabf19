"""Look at a class without running its descriptors."""

from typing import Any


__all__ = ("static_attribute",)


def static_attribute(cls: type, name: str) -> Any:
    """Return ``cls.name`` as it stands in a class body, None if in none."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return None
