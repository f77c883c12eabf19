"""Checks of a declaring class, made while Python creates it."""

from types import MemberDescriptorType
from typing import Any, Generic, Protocol, get_origin

from forwarding._annotations import annotations_of
from forwarding._descriptor import Forwarded
from forwarding._record import forwarded_attributes, spec_of
from forwarding._spelling import suggestion
from forwarding.exceptions import ForwardingError


__all__ = (
    "check_conflicts",
    "check_hiding",
    "check_keywords",
    "check_undeclared",
    "check_unknown",
    "hiding_error",
    "would_hide",
)


def check_unknown(cls: type, kwargs: dict[str, Any], mixin: type) -> None:
    """Refuse class keywords that no base takes; Python would not say which."""
    takes_no_keywords: tuple[Any, ...] = (mixin, Generic, Protocol, object)
    # object.__init_subclass__ says "takes no keyword arguments", and not which one.
    takers = (base for base in cls.__mro__[1:] if "__init_subclass__" in vars(base))
    if kwargs and all(base in takes_no_keywords for base in takers):
        raise ForwardingError(
            f"{cls.__name__}: no base takes the class keyword {next(iter(kwargs))!r}; "
            "Forwarding takes to=, forward=, methods=, but= and exact="
        )


def check_undeclared(cls: type) -> None:
    """Refuse a class attribute or annotation that only looks like a declaration."""
    for name, value in vars(cls).items():
        if value is Forwarded:
            raise ForwardingError(
                f"{cls.__name__}.{name} is Forwarded itself; write Forwarded()"
            )
    for name, annotation in annotations_of(cls).items():
        if name not in vars(cls) and _means_forwarded(annotation):
            raise ForwardingError(
                f"{cls.__name__}.{name} is annotated and not declared; "
                f"write {name}: Forwarded[...] = Forwarded()"
            )


def check_keywords(cls: type, to: str, names: set[str], excepted: set[str]) -> None:
    """Refuse class keywords that do nothing, and exceptions from nothing."""
    if to and not names:
        raise ForwardingError(f"{cls.__name__}: to={to!r} needs forward=, the names")
    unknown = sorted(excepted - names)
    if unknown:
        raise ForwardingError(
            f"{cls.__name__}: but= excepts {', '.join(unknown)}, which forward= does not "
            f"name{suggestion(unknown[0], names)}"
        )


def check_hiding(cls: type) -> None:
    """Refuse an attribute, of the class or an earlier base, that cuts a forwarding."""
    for base in cls.__bases__:
        for name in forwarded_attributes(base):
            definer = _declarer(cls, name)
            value = vars(definer)[name]
            if would_hide(value) or isinstance(value, MemberDescriptorType):
                raise hiding_error(definer, name, value, base)


def would_hide(value: object) -> bool:
    """Return whether ``value`` as a class attribute cuts a forwarding silently."""
    return not hasattr(type(value), "__get__")


def hiding_error(
    cls: type, name: str, value: object, base: type | None = None
) -> ForwardingError:
    """Return the error for an attribute of ``cls`` that hides what ``base`` forwards."""
    declarer = _declarer(base, name).__name__ if base else _forwarder(cls, name)
    return ForwardingError(
        f"{cls.__name__}.{name} = {value!r} would hide the forwarding of {name!r} "
        f"declared in {declarer}; use a property, or set it on an instance"
    )


def _forwarder(cls: type, name: str) -> str:
    return next(b.__name__ for b in cls.__mro__ if spec_of(vars(b).get(name)))


def check_conflicts(cls: type) -> None:
    """Refuse two bases that forward one name to different places."""
    # Of a diamond, Python's order decides; of strangers, it would be an accident.
    bases = [base for base in cls.__bases__ if forwarded_attributes(base)]
    if len(bases) < 2:  # noqa: PLR2004 -- It takes two to conflict.
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


def _means_forwarded(annotation: Any) -> bool:
    """Whether an annotation is ``Forwarded[...]``, also in quotes or unresolved.

    ``from __future__ import annotations`` leaves a string, and Python 3.14 a forward
    reference where the argument is not defined yet.
    """
    if get_origin(annotation) is Forwarded or annotation is Forwarded:
        return True
    text = getattr(annotation, "__forward_arg__", annotation)
    if not isinstance(text, str):
        return False
    head = text.strip("'\" ").partition("[")[0]
    return head.rpartition(".")[2].strip() == Forwarded.__name__


def _declarer(cls: type, name: str) -> type:
    return next((base for base in cls.__mro__ if name in vars(base)), cls)
