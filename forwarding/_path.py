"""Paths from a wrapper to an attribute: names, and items in brackets."""

import functools
import keyword
from typing import Any, Final, TypeAlias

from forwarding.exceptions import ForwardingError


__all__ = ("Item", "Part", "normalized", "parsed_path", "spelled_path", "step")


class Item:
    """One step of a path into a container, such as ``[0]`` or ``['lr']``."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key: Final = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Item) and self.key == other.key

    def __hash__(self) -> int:
        return hash((Item, self.key))

    def __repr__(self) -> str:
        return f"[{self.key!r}]"


Part: TypeAlias = str | Item
"""One step of a path: the name of an attribute, or an :class:`Item`."""

_ADVICE = (
    "a path is attribute names joined by dots, with items such as [0] or ['lr']; "
    "a recorded one is declared by forwarded(inner.x)"
)


@functools.lru_cache(maxsize=256)
def parsed_path(text: object, where: str) -> tuple[Part, ...]:
    """Return the parts of a spelled path.

    >>> parsed_path("groups[0]['lr']", "")
    ('groups', [0], ['lr'])

    Args:
        text: The path; the empty string has no parts.
        where: What the message of an error calls the path.

    Raises:
        ForwardingError: ``text`` is no path.
    """
    if text == "":
        return ()
    parts: list[Part] = []
    for name in _split(text, where):
        head, *items = name.split("[")
        head = normalized(head)
        if not head.isidentifier() or keyword.iskeyword(head):
            raise ForwardingError(f"{where}: {_ADVICE}")
        parts += [head, *(_item(item, where) for item in items)]
    return tuple(parts)


def normalized(name: str) -> str:
    """Return a name as Python reads it in source code: ``ﬁ`` is ``fi``.

    >>> normalized("ﬁle")
    'file'
    """
    if name.isascii():
        return name
    import unicodedata  # noqa: PLC0415 -- For few names, and a library of its own.

    return unicodedata.normalize("NFKC", name)


def spelled_path(path: tuple[Part, ...]) -> str:
    """Return a path as it is written in source code.

    >>> spelled_path(("groups", Item(0), "lr"))
    'groups[0].lr'
    """
    try:
        return ".".join(path)  # type: ignore[arg-type]  # Most paths have no items.
    except TypeError:
        parts = (repr(part) if isinstance(part, Item) else f".{part}" for part in path)
        return "".join(parts).removeprefix(".")


def step(thing: object, part: Part) -> Any:
    """Return what one step of a path leads to.

    Raises:
        AttributeError: There is no such attribute, or no such item.
    """
    if isinstance(part, str):
        return getattr(thing, part)
    try:
        return thing[part.key]  # type: ignore[index]
    except (LookupError, TypeError) as error:
        # An attribute that cannot be read must be an AttributeError, or hasattr()
        # raises: pytorch#152308 is a KeyError out of a module's attribute.
        raise AttributeError(
            f"{type(thing).__name__!r} object has no item {part}: {error!r}"
        ) from error


def _split(text: object, where: str) -> list[str]:
    """Split at dots outside brackets and quotes."""
    if not isinstance(text, str) or "(" in text:
        raise ForwardingError(f"{where}: {_ADVICE}")
    names = [""]
    quote = ""
    for letter in text:
        if letter == "." and not quote:
            names.append("")
            continue
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        names[-1] += letter
    return names


def _item(text: str, where: str) -> Item:
    inside, closing = text[:-1], text[-1:]
    is_string = len(inside) > 1 and inside[0] == inside[-1] and inside[0] in "'\""
    if closing == "]" and is_string and "\\" not in inside:
        return Item(inside[1:-1])
    if closing == "]" and inside.removeprefix("-").isdecimal():
        return Item(int(inside))
    raise ForwardingError(f"{where}: {_ADVICE}")
