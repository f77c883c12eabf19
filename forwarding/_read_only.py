"""Drop what is written to a read-only name while a ``preserved`` block runs.

A block undoes every write, so one that cannot be done need not be done: a base whose
``__init__`` assigns ``self.fixed`` can be built around a target whose ``fixed`` may
not be set. Outside a block the same assignment is an error, as ever.
"""

from _thread import RLock  # What threading has, without its import of 1 ms.
from typing import TYPE_CHECKING, Final, NoReturn, cast

from forwarding._class_level import ClassLevelData
from forwarding._record import Spec, mark, record_in, record_of, spec_in
from forwarding._recording import recorders


if TYPE_CHECKING:
    from types import FunctionType

__all__ = ("Gate", "gates")

_LOCK: Final = RLock()


class Gate:
    """A read-only property, and its stand-in for the time that blocks run."""

    __slots__ = ("_base", "_blocks", "_name", "_plain", "_stand_in")

    def __init__(self, base: type, name: str, plain: property, spec: Spec) -> None:
        self._base = base
        self._name = name
        self._plain = plain
        self._stand_in = _stand_in(name, plain, spec)
        self._blocks = 0

    def stands_for(self, attribute: object) -> bool:
        """Whether the class still has the property that this was made for."""
        return attribute is self._plain or attribute is self._stand_in

    def turn(self, *, by: int) -> None:
        """Count the blocks of preserved() that run, and set what they need."""
        with _LOCK:
            self._blocks += by
            wanted = self._stand_in if self._blocks else self._plain
            current = vars(self._base).get(self._name)
            # What someone else put there in the meantime stays.
            if current is not wanted and self.stands_for(current):
                type.__setattr__(self._base, self._name, wanted)


def gates(cls: type, name: str) -> list[Gate]:
    """Return the gate of a name, none if its property has both writers."""
    base = next(base for base in cls.__mro__ if name in vars(base))
    attribute, spec = vars(base)[name], spec_in(base, name)
    with _LOCK:
        # Kept by the record of the class, with which it can be freed.
        record = record_in(base)
        gate = record.gates.get(name) if record else None
        if gate is None or not gate.stands_for(attribute):
            if spec is None or (attribute.fset and attribute.fdel):
                return []
            gate = Gate(base, name, attribute, spec)
            record_of(base).gates[name] = gate
        return [gate]


def _stand_in(name: str, plain: property, spec: Spec) -> property:
    def drop_set(self: object, _value: object) -> None:
        if not _is_preserved(self):
            _refuse(self, name, "setter")

    def drop_delete(self: object) -> None:
        if not _is_preserved(self):
            _refuse(self, name, "deleter")

    # Marked as generated, so that the name still counts as forwarded.
    for drop in (drop_set, drop_delete):
        mark(cast("FunctionType", drop), spec)
    made = type(plain)(
        plain.fget, plain.fset or drop_set, plain.fdel or drop_delete, plain.__doc__
    )
    if isinstance(made, ClassLevelData) and isinstance(plain, ClassLevelData):
        made.__forwarding_owner__ = plain.__forwarding_owner__
    return made


def _is_preserved(wrapper: object) -> bool:
    return any(block.wrapper is wrapper for block in recorders)


def _refuse(wrapper: object, name: str, accessor: str) -> NoReturn:
    # The words of CPython, for another instance that is written to meanwhile.
    raise AttributeError(
        f"property {name!r} of {type(wrapper).__qualname__!r} object has no {accessor}"
    )
