"""Record the writes that reach owners while a ``preserved`` block runs."""

from collections.abc import Iterator
from typing import Any, Final

from forwarding._path import Item, Part, step
from forwarding._record import inherited_spec, spec_of
from forwarding._static import static_attribute


__all__ = ("MISSING", "Unreadable", "Writes", "note_write", "recorders")

MISSING: Final[Any] = object()


class Unreadable:
    """Stands for a former value that raised when it was read."""

    def __init__(self, error: Exception) -> None:
        self.error: Final = error


class Writes:
    """What the owners of one wrapper had before they were first written to."""

    def __init__(self, wrapper: object) -> None:
        self.wrapper: Final = wrapper
        self._before: dict[tuple[int, Part], tuple[Any, Any]] = {}

    def note(self, owner: Any, part: Part) -> None:
        """Remember the value of an attribute, or of an item, unless it is known."""
        key = (id(owner), part)
        if key not in self._before:
            self._before[key] = (owner, _value(owner, part))

    def latest_first(self) -> Iterator[tuple[Any, Part, Any]]:
        """Yield owner, part and former value, in the order to put them back."""
        for (_, part), (owner, value) in reversed(self._before.items()):
            yield owner, part, value


recorders: Final[list[Writes]] = []
"""The blocks that run now. A list, which CPython tests for emptiness fastest."""


def note_write(wrapper: object, name: str, *, deletes: bool = False) -> bool:
    """Report to the blocks of ``wrapper`` that ``name`` is about to change.

    Returns:
        Whether the caller must not write, because the owner would refuse: what is
        undone in any case need not be done.
    """
    blocks = [block for block in recorders if block.wrapper is wrapper]
    if not blocks:
        return False
    spec = inherited_spec(type(wrapper), name)
    part = spec.path[-1]
    owner = spec.find_owner(wrapper)
    owners = tuple(owner) if spec.lens and spec.lens.each else (owner,)
    if all(_is_read_only(one, part, deletes=deletes) for one in owners):
        return True
    for block in blocks:
        for one in owners:
            block.note(one, part)
    return False


def _is_read_only(owner: Any, part: Part, *, deletes: bool) -> bool:
    if isinstance(part, Item):
        return False
    attribute = static_attribute(type(owner), part)
    if isinstance(attribute, property):
        return (attribute.fdel if deletes else attribute.fset) is None
    return _is_frozen(type(owner))


def _is_frozen(cls: type) -> bool:
    """Whether dataclasses, attrs or pydantic refuse every write to an instance."""
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen:
        return True
    config = getattr(cls, "model_config", None)
    if isinstance(config, dict) and config.get("frozen"):
        return True
    # attrs had no public mark before 25.4.
    return getattr(cls.__setattr__, "__name__", "") == "_frozen_setattrs"


def _value(owner: Any, part: Part) -> Any:
    try:
        return step(owner, part)
    except AttributeError as error:
        # Absent, and to be deleted again; but a property that cannot be read is there.
        attribute = (
            None if isinstance(part, Item) else static_attribute(type(owner), part)
        )
        is_computed = isinstance(attribute, property) and spec_of(attribute) is None
        return Unreadable(error) if is_computed else MISSING
    except Exception as error:  # noqa: BLE001 -- A property can raise anything.
        return Unreadable(error)
