"""The name that was probably meant, for errors about one that does not exist."""

from collections.abc import Iterable


__all__ = ("suggestion",)


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return a question to put behind *name*, or nothing if no name is near.

    >>> suggestion("sped", ["speed", "serial"])
    " (did you mean 'speed'?)"
    >>> suggestion("sped", ["colour"])
    ''
    """
    from difflib import get_close_matches  # noqa: PLC0415 -- no program that works needs it

    public = [other for other in names if not other.startswith("_") and other != name]
    near = get_close_matches(name, public, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
