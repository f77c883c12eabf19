"""The :class:`Forwarding` base, which completes and checks declarations."""

from typing import Any, Generic, Protocol, get_origin

from forwarding._descriptor import Forwarded
from forwarding._install import install, refuse_in_place
from forwarding._interface import Names, interfaces, members, spelled
from forwarding._record import forwarded_attributes, record_of, spec_of
from forwarding.exceptions import ForwardingError


__all__ = ("Forwarding", "hidden", "hides")


class Forwarding:
    """Base that declares in bulk, and checks what its subclasses declare.

    It has no state, no metaclass and no ``__init__``, so it goes with every
    other base; put it first.

    >>> class Car(Forwarding, to="engine", forward="rpm serial"):
    ...     def __init__(self, engine):
    ...         self.engine = engine

    Class keywords:

    ``to``
        Path to the object to forward to; by default the only target of the
        class.
    ``forward``
        Names in one string; or a class, Protocol or ABC, whose public names and
        special methods are meant, except those that the class body defines
        itself; or several of these.
    ``but``
        Names not to forward, in the same forms.

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
        _check_unknown(cls, kwargs)
        super().__init_subclass__(**kwargs)
        error = record_of(cls).error
        if error is not None:
            raise error
        _check_undeclared(cls)
        _forward(cls, to, forward, but)
        _check_hidden(cls)
        _check_conflicts(cls)


_TAKES_NO_KEYWORDS: tuple[Any, ...] = (Forwarding, Generic, Protocol, object)


def _check_unknown(cls: type, kwargs: dict[str, Any]) -> None:
    """Refuse class keywords that no base takes; Python would not say which."""
    takers = (base for base in cls.__mro__[1:] if "__init_subclass__" in vars(base))
    if kwargs and all(base in _TAKES_NO_KEYWORDS for base in takers):
        raise ForwardingError(
            f"{cls.__name__}: no base takes the class keyword {next(iter(kwargs))!r}; "
            "Forwarding takes to=, forward= and but="
        )


def _check_undeclared(cls: type) -> None:
    """Refuse what reads as a declaration and is none."""
    for name, value in vars(cls).items():
        if value is Forwarded:
            raise ForwardingError(
                f"{cls.__name__}.{name} is Forwarded itself; write Forwarded()"
            )
    for name, annotation in vars(cls).get("__annotations__", {}).items():
        if get_origin(annotation) is Forwarded and name not in vars(cls):
            raise ForwardingError(
                f"{cls.__name__}.{name} is annotated and not declared; "
                f"write {name}: Forwarded[...] = Forwarded()"
            )


def _forward(cls: type, to: str, forward: Names, but: Names) -> None:
    excepted = {*spelled(but), *members(but)}
    names, interface = spelled(forward), members(forward)
    _check_keywords(cls, to, {*names, *interface}, excepted)
    for name in names:
        if name in vars(cls):
            raise ForwardingError(
                f"{cls.__name__}.{name} is defined in the class body "
                f"and also forwarded to {to!r}; remove one of them"
            )
        if name not in excepted:
            install(cls, name, Forwarded(f"{to}.{name}" if to else ""))
    for name, model in interface.items():
        if name not in vars(cls) and name not in excepted:
            install(cls, name, Forwarded(f"{to}.{name}" if to else ""), model)
            for owner in interfaces(forward):
                refuse_in_place(cls, name, owner)


def _check_keywords(cls: type, to: str, names: set[str], excepted: set[str]) -> None:
    if to and not names:
        raise ForwardingError(f"{cls.__name__}: to={to!r} needs forward=, the names")
    unknown = ", ".join(sorted(excepted - names))
    if unknown:
        raise ForwardingError(
            f"{cls.__name__}: but= excepts {unknown}, which forward= does not name"
        )


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
    declarer = next(b.__name__ for b in cls.__mro__ if spec_of(vars(b).get(name)))
    return ForwardingError(
        f"{cls.__name__}.{name} = {value!r} would hide the forwarding of {name!r} "
        f"declared in {declarer}; use a property, or set it on an instance"
    )


def _check_conflicts(cls: type) -> None:
    bases = [base for base in cls.__bases__ if forwarded_attributes(base)]
    if len(bases) < 2:  # noqa: PLR2004
        return
    for name, spec in forwarded_attributes(cls).items():
        winner = _declarer(cls, name)
        for base in bases:
            other = _declarer(base, name)
            another = spec_of(vars(other).get(name))
            if another and another.path != spec.path and not issubclass(winner, other):
                raise ForwardingError(
                    f"{cls.__name__}.{name} is forwarded to {str(spec)!r} by "
                    f"{winner.__name__} and to {str(another)!r} by {other.__name__}; "
                    f"define {cls.__name__}.{name} to choose"
                )


def _declarer(cls: type, name: str) -> type:
    return next((base for base in cls.__mro__ if name in vars(base)), cls)
