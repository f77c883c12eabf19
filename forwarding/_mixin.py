"""The :class:`Forwarding` base, which declares in bulk and has declarations checked."""

from typing import Any

from forwarding._checks import (
    check_conflicts,
    check_hiding,
    check_keywords,
    check_undeclared,
    check_unknown,
)
from forwarding._descriptor import Forwarded
from forwarding._install import install, only_target, refuse_in_place
from forwarding._interface import Names, interfaces, members, spelled
from forwarding._path import parsed_path
from forwarding._record import Kind, record_of
from forwarding._routing import route_writes
from forwarding.exceptions import ForwardingError


__all__ = ("Forwarding",)


class Forwarding:
    """Base that declares in bulk, and checks what its subclasses declare.

    It has no state, no metaclass and no ``__init__``, so it goes with every
    other base; put it first.

    >>> class Car(Forwarding, to="engine", forward="rpm serial", methods="start"):
    ...     def __init__(self, engine):
    ...         self.engine = engine

    Class keywords:

    ``to``
        Path to the object to forward to; by default the only target of the
        class.
    ``forward``
        Names in one string; or a class, Protocol or ABC, of which is meant what
        its instances have: public names, those that ``__init__`` assigns
        included, and special methods. Except what the class body defines
        itself. Or several of these.
    ``methods``
        Names, in one string, that are methods. Needed only where neither the
        target's class nor a base of the wrapper tells.
    ``but``
        Names not to forward, in the forms of ``forward``. They are the wrapper's own.
    ``exact``
        Whether methods of an interface repeat its signatures; see
        :class:`Forwarded`.

    Raises:
        ForwardingError: A declaration is wrong, two bases forward one name to
            different places, or a plain class attribute would hide a
            forwarded name.
    """

    __slots__ = ()
    _forwarding_is_checked = True

    def __init_subclass__(
        cls,
        *,
        to: str = "",
        forward: Names = (),
        methods: str = "",
        but: Names = (),
        exact: bool = False,
        **kwargs: Any,
    ) -> None:
        check_unknown(cls, kwargs, Forwarding)
        record_of(cls).is_checked = True
        super().__init_subclass__(**kwargs)
        failure = record_of(cls).failure
        if failure is not None:
            raise failure
        check_undeclared(cls)
        _forward(cls, _Bulk(to, forward, methods, but, exact=exact))
        check_hiding(cls)
        check_conflicts(cls)
        route_writes(cls)


class _Bulk:
    """The class keywords of one class."""

    def __init__(
        self, to: str, forward: Names, methods: str, but: Names, *, exact: bool
    ) -> None:
        self.to = to
        self._found = to
        self.exact = exact
        self.methods = spelled(methods)
        self.names = (*spelled(forward), *self.methods)
        self.members = members(forward)
        self.interfaces = interfaces(forward)
        self.excepted = {*spelled(but), *members(but)}

    def declaration(self, cls: type, name: str) -> Forwarded[Any]:
        """Return what stands for one declaration in the class body."""
        kind: Kind | None = "method" if name in self.methods else None
        return Forwarded(to=self._target(cls, name), kind=kind)

    def of_interface(self, cls: type, name: str) -> Forwarded[Any]:
        """Return what stands for a member of an interface."""
        model = self.members[name]
        is_exact = self.exact and hasattr(getattr(model, "__func__", model), "__code__")
        return Forwarded(to=self._target(cls, name), exact=is_exact)

    def _target(self, cls: type, name: str) -> str:
        # Found once: to look for it at each of 50 names takes a tenth of the time.
        self._found = self._found or only_target(cls, name)
        return self._found


def _forward(cls: type, bulk: _Bulk) -> None:
    check_keywords(cls, bulk.to, {*bulk.names, *bulk.members}, bulk.excepted)
    record = record_of(cls)
    record.excepted |= bulk.excepted
    record.interfaces += bulk.interfaces
    for name in bulk.names:
        if name in vars(cls):
            raise ForwardingError(
                f"{cls.__name__}.{name} is defined in the class body "
                f"and also forwarded to {bulk.to!r}; remove one of them"
            )
        if name not in bulk.excepted:
            install(cls, name, bulk.declaration(cls, name))
    for name, model in bulk.members.items():
        if not _is_own(cls, name, bulk):
            install(cls, name, bulk.of_interface(cls, name), model)
            refuse_in_place(cls, name, bulk.interfaces)
    _unhash(cls)


def _unhash(cls: type) -> None:
    """Do for ``__eq__`` from a class keyword what Python does for one in the body.

    With the hash of every object, a wrapper would equal a key and not be found.
    """
    hash_: Any = cls.__hash__
    if "__eq__" in record_of(cls).specs and hash_ is object.__hash__:
        type.__setattr__(cls, "__hash__", None)


def _is_own(cls: type, name: str, bulk: _Bulk) -> bool:
    """Whether a member of an interface is the wrapper's: defined, excepted, or its target."""
    root = parsed_path(bulk.to, "to=")[:1]
    return name in vars(cls) or name in bulk.excepted or (name,) == root
