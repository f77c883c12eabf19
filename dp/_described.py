"""Values that say what they are: in a sentence, and as a table in a notebook."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from html import escape


__all__ = ("Described",)


class Described:
    """A dataclass whose ``str`` is a sentence, and which notebooks show as a table.

    Every field is said under its name, unless it has its default. ``repr`` stays the
    dataclass's own.
    """

    __slots__ = ()

    def _title(self) -> str:
        """Return what the value is, in a word or two."""
        return type(self).__name__

    def _facts(self) -> dict[str, str]:
        """Return what is said of it, by name."""
        return dict(_fields_of(self))

    def __str__(self) -> str:
        told = ", ".join(f"{name} {words}" for name, words in self._facts().items())
        return f"{self._title()}: {told}"

    def _repr_html_(self) -> str:
        """Return a table, which Jupyter asks for."""
        left = ' style="text-align: left"'
        rows = "".join(
            f"<tr><th{left}>{escape(name)}</th><td{left}>{escape(words)}</td></tr>"
            for name, words in self._facts().items()
        )
        return f"<table><caption>{escape(self._title())}</caption>{rows}</table>"


def _fields_of(value: object) -> Iterator[tuple[str, str]]:
    assert is_dataclass(value), "Described is for dataclasses"  # noqa: S101
    for field in fields(value):
        told = getattr(value, field.name)
        if field.default is MISSING or told != field.default:
            yield field.name.replace("_", " "), _plain(told)


def _plain(value: object) -> str:
    """Return a value to read.

    >>> _plain(2.91573123), _plain(1e-05), _plain(None)
    ('2.9157', '1e-05', 'none')
    """
    if isinstance(value, float):
        return f"{value:.5g}"
    return "none" if value is None else str(value)
