"""Private training by one line around a trainer."""

from dp.integrations.private._private import private


__all__ = ("private",)
