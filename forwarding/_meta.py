"""Two ways to make a class: one leaves no metaclass behind, one stays and guards."""

import types
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from forwarding._checks import hiding_error, would_hide
from forwarding._descriptor import Forwarded
from forwarding._mixin import Forwarding
from forwarding._record import declared_spec


if TYPE_CHECKING:
    from typing import _ProtocolMeta as _Base
else:
    _Base = type(Protocol)  # Goes with ABCs and Protocols alike.

__all__ = ("ForwardingABCMeta", "ForwardingMeta")


class ForwardingABCMeta(_Base):
    """Metaclass that stays on the class, and guards its declarations.

    As :func:`ForwardingMeta`; besides, assigning a plain value to a forwarded
    name on the class is refused, because it would cut the forwarding for every
    instance. Descriptors may be assigned.

    What stays has a price: ``isinstance(x, cls)`` takes as long as for an ABC,
    and a subclass may have ABCs and Protocols beside it, but no base whose
    metaclass is of another family (Enum, pydantic, traits, the Protocols of
    typing_extensions before Python 3.13).

    >>> class Car(metaclass=ForwardingABCMeta, to="engine", forward="rpm"):
    ...     def __init__(self, engine):
    ...         self.engine = engine
    >>> Car.rpm = 900
    Traceback (most recent call last):
    forwarding.exceptions.ForwardingError: Car.rpm = 900 would hide the forwarding of 'rpm' declared in Car; use a property, or set it on an instance
    """

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        **kwargs: Any,
    ) -> Any:
        return super().__new__(cls, name, _with_mixin(bases), namespace, **kwargs)

    def __setattr__(cls, name: str, value: object) -> None:
        # Asked of one name: an assignment must not cost what the class declares.
        if would_hide(value) and declared_spec(cls, name) is not None:
            raise hiding_error(cls, name, value)
        super().__setattr__(name, value)
        if isinstance(value, Forwarded):
            value.__set_name__(cls, name)


if TYPE_CHECKING:

    class ForwardingMeta(ForwardingABCMeta):
        """What type checkers see of :func:`ForwardingMeta`, which is no class."""

else:

    def ForwardingMeta(  # noqa: N802 -- Read as what it is used for, a metaclass.
        name: str,
        bases: tuple[type, ...],
        namespace: MutableMapping[str, Any],
        /,
        **kwargs: Any,
    ) -> type:
        """Make a class that declares, and leave no metaclass on it.

        For ``metaclass=``. The class is made by the metaclass that its bases
        have anyway, usually ``type``, from these bases and :class:`Forwarding`,
        which carries the checks on to subclasses. So it goes with every base,
        so do its subclasses, and ``isinstance`` costs nothing.

        What leaves cannot guard: ``Car.rpm = 900`` on the class is found by
        :func:`verify` only; see :class:`ForwardingABCMeta`.

        >>> class Car(metaclass=ForwardingMeta, to="engine", forward="rpm"):
        ...     def __init__(self, engine):
        ...         self.engine = engine
        >>> type(Car)
        <class 'type'>

        Args:
            name: Name of the class.
            bases: Its bases.
            namespace: Its body.
            kwargs: Those of :class:`Forwarding`, and those of the bases.

        Raises:
            ForwardingError: As :class:`Forwarding`.
        """
        bases = _with_mixin(bases)
        metaclass, _, kwargs = types.prepare_class(name, bases, kwargs)
        return metaclass(name, bases, namespace, **kwargs)

    def _prepare(
        name: str, bases: tuple[type, ...], /, **kwargs: Any
    ) -> MutableMapping[str, Any]:
        return types.prepare_class(name, _with_mixin(bases), kwargs)[1]

    # It is no class so that Python does not look for a conflict before the call.
    ForwardingMeta.__prepare__ = _prepare


def _with_mixin(bases: tuple[type, ...]) -> tuple[type, ...]:
    if any(issubclass(base, Forwarding) for base in bases):
        return bases
    return (Forwarding, *(base for base in bases if base is not object))
