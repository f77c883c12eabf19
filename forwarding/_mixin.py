"""The :class:`Forwarding` base, which completes and checks declarations."""

from typing import Any

from forwarding._descriptor import Forwarded, install
from forwarding._interface import Names, names_of
from forwarding._record import Record, Spec, forwarded_attributes, record_of, spec_of
from forwarding.exceptions import ForwardingError


__all__ = ("Forwarding", "hides")


class Forwarding:
    """Base that declares in bulk, and checks what its subclasses declare.

    It has no state, no metaclass and no ``__init__``, so it goes with every
    other base; put it first.

    >>> class Car(Forwarding, to="engine", forward="rpm serial"):
    ...     def __init__(self, engine):
    ...         self.engine = engine

    Class keywords:
        to: Path to the object to forward to.
        forward: Names in one string; or a class, Protocol or ABC, whose public
            names and special methods are forwarded; or several of these.
        but: Names not to forward, in the same forms.

    Raises:
        ForwardingError: A declaration is wrong, two bases forward one name to
            different places, or a plain class attribute would hide a
            forwarded name.
    """

    __slots__ = ()
    _forwarding_is_checked = True

    def __init_subclass__(
        cls, *, to: str = "", forward: Names = (), but: Names = (), **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        error = record_of(cls).error
        if error is not None:
            raise error
        _forward_all(cls, to, forward, but)
        _check_hidden(cls)
        _check_conflicts(cls)


def _forward_all(cls: type, to: str, forward: Names, but: Names) -> None:
    excepted = names_of(but)
    spelled = names_of(forward)
    for name in spelled:
        if name in excepted:
            continue
        if name in vars(cls):
            raise ForwardingError(
                f"{cls.__name__}.{name} is defined in the class body "
                f"and also forwarded to {to!r}; remove one of them"
            )
        install(cls, name, Forwarded(f"{to}.{name}"))


def _check_hidden(cls: type) -> None:
    for base in cls.__bases__:
        for name in forwarded_attributes(base):
            if name in vars(cls) and hides(vars(cls)[name]):
                raise hidden(cls, name, vars(cls)[name])


def hides(value: object) -> bool:
    """Return whether ``value`` as a class attribute cuts a forwarding silently."""
    return not hasattr(type(value), "__get__")


def hidden(cls: type, name: str, value: object) -> ForwardingError:
    """Return the error for a class attribute that hides a forwarded name."""
    declarer = next(
        base.__name__ for base in cls.__mro__ if spec_of(vars(base).get(name))
    )
    return ForwardingError(
        f"{cls.__name__}.{name} = {value!r} would hide the forwarding of {name!r} "
        f"declared in {declarer}; use a property, or set it on an instance"
    )


def _check_conflicts(cls: type) -> None:
    for name in forwarded_attributes(cls):
        if name in vars(cls):
            continue
        declared = [(b, spec_of(vars(b)[name])) for b in cls.__mro__ if name in vars(b)]
        first, spec = declared[0]
        for other, another in declared[1:]:
            if another and another != spec and not issubclass(first, other):
                raise ForwardingError(
                    f"{cls.__name__}.{name} is forwarded to {str(spec)!r} by "
                    f"{first.__name__} and to {str(another)!r} by {other.__name__}; "
                    f"define {cls.__name__}.{name} to choose"
                )
