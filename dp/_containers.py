"""The containers that batches come in: mappings, sequences and dataclasses.

Torch's own walker, ``torch.utils._pytree``, knows dictionaries, lists and tuples only,
and takes the batches of Hugging Face tokenizers and dataclasses for leaves.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any


__all__ = ("is_sequence", "parts_of", "rebuilt")


def parts_of(value: Any) -> dict[Any, Any] | None:
    """Return the parts of a container by their place in it; None of anything else.

    >>> parts_of({"x": 1, "y": (2, 3)}), parts_of((2, 3)), parts_of("text")
    ({'x': 1, 'y': (2, 3)}, {0: 2, 1: 3}, None)
    """
    if isinstance(value, Mapping):
        return dict(value.items())
    if is_sequence(value):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    return None


def rebuilt(value: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a container of the kind of *value* with other parts in the same places.

    >>> rebuilt([1, 2], {0: "a", 1: "b"})
    ['a', 'b']
    """
    if isinstance(value, Mapping):
        filled: Any = copy(value)
        for key, part in parts.items():
            filled[key] = part  # A read-only mapping fails here, and says so.
        return filled
    if is_sequence(value):
        kind: Any = type(value)
        named = hasattr(value, "_fields")  # A named tuple takes them one by one.
        return kind(*parts.values()) if named else kind(parts.values())
    return replace(value, **parts)


def is_sequence(value: Any) -> bool:
    """Whether *value* is a sequence of parts, and not text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
