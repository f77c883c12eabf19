"""The metaclasses: one that leaves after declaring, one that stays and guards."""

from typing import TYPE_CHECKING, Any, Protocol

from forwarding._interface import Names
from forwarding._mixin import Forwarding, hidden, hides
from forwarding._record import forwarded_attributes


if TYPE_CHECKING:
    from typing import _ProtocolMeta as _Base
else:
    _Base = type(Protocol)  # Goes with ABCs and Protocols alike.

__all__ = ("ForwardingABCMeta", "ForwardingMeta")


def _with_mixin(bases: tuple[type, ...]) -> tuple[type, ...]:
    if any(issubclass(base, Forwarding) for base in bases):
        return bases
    return (Forwarding, *(base for base in bases if base is not object))


class ForwardingABCMeta(_Base):
    """Metaclass that stays on the class, and guards its declarations.

    As :class:`ForwardingMeta`, and assigning a plain value to a forwarded name
    on the class is refused: it would cut the forwarding for every instance.
    Descriptors may be assigned. Use it where a class is patched by others, and
    where its price is no matter: ``isinstance(x, cls)`` is that of an ABC, and
    a subclass cannot have a base with a metaclass of another family (Enum,
    pydantic, traits).

    >>> class Car(metaclass=ForwardingABCMeta, to="engine", forward="rpm"):
    ...     def __init__(self, engine):
    ...         self.engine = engine
    >>> Car.rpm = 900
    Traceback (most recent call last):
    forwarding.exceptions.ForwardingError: Car.rpm = 900 would hide the forwarding ...
    """

    def __new__(
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

    def __setattr__(cls, name: str, value: object) -> None:  # noqa: N805 -- A class.
        if name in forwarded_attributes(cls) and hides(value):
            raise hidden(cls, name, value)
        super().__setattr__(name, value)


class ForwardingMeta(ForwardingABCMeta):
    """Metaclass that declares and leaves: the class keeps its bases' metaclass.

    The class is made by the metaclass that its bases have anyway, usually
    ``type``, from these bases and :class:`Forwarding`, which carries the checks
    on to subclasses. So the class can be a base together with any ABC, Protocol
    or Generic, and ``isinstance`` costs nothing. What leaves cannot guard:
    ``Car.rpm = 900`` on the class is found by :func:`verify` only; see
    :class:`ForwardingABCMeta`. Keywords are those of :class:`Forwarding`.

    >>> class Car(metaclass=ForwardingMeta, to="engine", forward="rpm"):
    ...     def __init__(self, engine):
    ...         self.engine = engine
    >>> type(Car)
    <class 'type'>
    """

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        **kwargs: Any,
    ) -> Any:
        return type(name, _with_mixin(bases), namespace, **kwargs)
