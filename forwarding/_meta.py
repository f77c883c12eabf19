"""The metaclasses: one that leaves after declaring, one that stays and guards."""

from abc import ABCMeta
from typing import TYPE_CHECKING, Any, Protocol

from forwarding._interface import Names
from forwarding._mixin import Forwarding, hidden, hides
from forwarding._record import forwarded_attributes


# The metaclass of Protocol, so that a guarded class goes with ABCs and Protocols.
_Base = ABCMeta if TYPE_CHECKING else type(Protocol)

__all__ = ("ForwardingABCMeta", "ForwardingMeta")


def _with_mixin(bases: tuple[type, ...]) -> tuple[type, ...]:
    if any(issubclass(base, Forwarding) for base in bases):
        return bases
    return (Forwarding, *(base for base in bases if base is not object))


class ForwardingABCMeta(_Base):
    """Metaclass that stays, and refuses class-level writes that cut a forwarding."""

    def __new__(  # noqa: D102
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        *,
        to: str = "",
        forward: Names = (),
        but: Names = (),
        **kwargs: Any,
    ) -> Any:
        bulk = {"to": to, "forward": forward, "but": but}
        return super().__new__(
            cls, name, _with_mixin(bases), namespace, **bulk, **kwargs
        )

    def __setattr__(cls, name: str, value: object) -> None:
        if name in forwarded_attributes(cls) and hides(value):
            raise hidden(cls, name, value)
        super().__setattr__(name, value)


class ForwardingMeta(ForwardingABCMeta):
    """Metaclass that declares and leaves: the class keeps its bases' metaclass.

    >>> class Car(metaclass=ForwardingMeta, to="engine", forward="rpm"):
    ...     def __init__(self, engine):
    ...         self.engine = engine
    >>> type(Car)
    <class 'type'>
    """

    def __new__(  # noqa: D102
        cls,  # noqa: ARG004
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        **kwargs: Any,
    ) -> Any:
        return type(name, _with_mixin(bases), namespace, **kwargs)
