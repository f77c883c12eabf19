"""Where a warning of this package points: at the line of the user's that led to it."""

import inspect


__all__ = ("callers_level",)


def callers_level() -> int:
    """Return the level of the line that called this package, for the one who warns."""
    frame, level = inspect.currentframe(), 0
    while frame is not None:
        root, _, _ = str(frame.f_globals.get("__name__")).partition(".")
        if root not in ("dp", "torch"):
            break
        frame, level = frame.f_back, level + 1
    return level
