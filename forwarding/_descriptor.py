"""The :class:`Forwarded` declaration, which replaces itself by generated code."""

import warnings
from collections.abc import Callable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    NoReturn,
    Self,
    cast,
    get_args,
    overload,
)

from forwarding._install import install
from forwarding._path import Part, parsed_path
from forwarding._record import Kind, Lens, record_of
from forwarding._targets import Path, name_in_body
from forwarding.exceptions import ForwardingError


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)

    class _Base: ...
else:
    from typing import TypeVar

    T = TypeVar("T")
    _Base = property  # Enum makes no member of a property, pydantic no field.

__all__ = ("Forwarded", "forwarded", "replaced")

_NOTHING: Final[Any] = object()


class Forwarded(_Base, Generic[T]):
    """Declare, in a class body, that an attribute lives on another object.

    Getting, setting and deleting it act on that object; nothing is stored on
    the wrapper. When the class is made, a declaration of data becomes a plain
    ``property``, and one of a method becomes a plain function.

    >>> class Car:
    ...     serial = Forwarded(to="engine", set=False, delete=False)
    ...     speed = Forwarded(path="engine.gearbox.rpm", doc="Revolutions per minute.")
    ...     def __init__(self, engine):
    ...         self.engine = engine

    Besides ``to`` and ``path``, everything has a default that costs nothing. Of
    ``to``, ``path`` and ``each``, one may be given; with none, the owner is the only
    target of the class, such as a :class:`Wrapper`'s ``__wrapped__``.

    Args:
        to: Path to the object that owns an attribute of the same name; several, in a
            tuple, to read from the first that has it.
        path: Path to the attribute itself, which may have another name, or be an item:
            ``"inner.param_groups[0]['lr']"``.
        each: Path to a collection of owners. Reading gives a list of their values;
            what is assigned, deleted or called, is so on each.
        set: Whether assignment is forwarded; if not, it raises AttributeError. A
            function converts the assigned value first.
        delete: Whether deletion is forwarded; if not, it raises AttributeError.
        get: Converts what is read.
        default: What is read where the owner lacks the attribute.
        returns: ``"wrapper"`` for a method whose result, where it is the owner
            itself, is replaced by the wrapper: ``__enter__`` and fluent methods.
        on_class: Whether the class of the wrapper has it too, from the target's class.
        exact: Whether a method repeats the target's signature. It is called as fast
            as by hand, and does not follow an override with other parameters.
        doc: Docstring; by default that of the target's class attribute.
        kind: ``"method"`` (or ``"async method"``, ``"generator method"``, ``"async
            generator method"``) for what is called on the owner but stays on this
            layer when it is rebound; ``"data"`` for everything else. By default taken
            from the wrapper's bases and from the target's class, as far as they are
            known; where nothing is, from the target at the first assignment.

    Raises:
        ForwardingError: The path, the name or an option cannot be forwarded. A
            class made by :class:`ForwardingMeta` or from :class:`Forwarding`
            raises it as it is; elsewhere CPython 3.11 wraps what is found
            when the name is known in a RuntimeError.
    """

    def __init__(
        self,
        place: str = _NOTHING,
        /,
        *,
        to: str | tuple[str, ...] = "",
        path: str = "",
        each: str = "",
        set: bool | Callable[[Any], Any] = True,  # noqa: A002
        delete: bool = True,
        get: Callable[[Any], Any] | None = None,
        default: Any = _NOTHING,
        returns: Literal["wrapper"] | None = None,
        on_class: bool = False,
        exact: bool = False,
        doc: str | None = None,
        kind: Kind | None = None,
    ) -> None:
        if place is not _NOTHING:
            to, path = replaced(place, "Forwarded")
        self.recorded: Path | None = None
        self.places: tuple[tuple[Part, ...], ...] = _places(to, path, each)
        self.ends_in_owner: bool = not path
        self.set: bool = set is not False
        self.delete = delete
        self.doc = doc
        _check_kind(kind)
        self.kind: Kind | None = kind
        self.accessors: dict[str, Callable[..., Any]] = {}
        # Made only where something is said: most declarations are one path.
        self.lens: Lens | None = None
        if get or callable(set) or default is not _NOTHING or each:
            self.lens = _lens(get, set, default, each=bool(each))
        if returns or on_class or exact:
            self.lens = (self.lens or Lens())._replace(
                returns_wrapper=_is_wrapper(returns), on_class=on_class, exact=exact
            )

    def __set_name__(self, owner: type, name: str) -> None:
        if vars(owner).get(name) is not self:
            return  # Replaced meanwhile, by a metaclass that collects descriptors.
        try:
            install(owner, name, self)
        except ForwardingError as error:
            if not getattr(owner, "_forwarding_is_checked", False):
                raise
            record_of(owner).failure = error  # CPython 3.11 would wrap it here.

    def getter(self, fget: Callable[[Any], Any], /) -> Self:
        """Replace the getter, as ``@x.getter`` does for a property."""
        return self._with_accessor("fget", fget)

    def setter(self, fset: Callable[[Any, Any], None], /) -> Self:
        """Replace the setter, as ``@x.setter`` does for a property."""
        return self._with_accessor("fset", fset)

    def deleter(self, fdel: Callable[[Any], None], /) -> Self:
        """Replace the deleter, as ``@x.deleter`` does for a property."""
        return self._with_accessor("fdel", fdel)

    def _with_accessor(self, which: str, function: Callable[..., Any]) -> Self:
        self.accessors[which] = function
        return self

    @overload
    def __get__(self, wrapper: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self, wrapper: object, owner: type | None = None, /) -> T: ...
    def __get__(self, wrapper: object, owner: type | None = None, /) -> Self | T:
        if wrapper is None:
            return self
        return self._refuse(wrapper)

    def __set__(self, wrapper: object, value: T, /) -> None:
        self._refuse(wrapper)

    def __delete__(self, wrapper: object, /) -> None:
        self._refuse(wrapper)

    def _refuse(self, wrapper: object) -> NoReturn:
        raise _NotInstalledError(
            f"a Forwarded of {type(wrapper).__name__} was not installed; "
            "declare it in the class body"
        )


class _NotInstalledError(AttributeError, ForwardingError):
    """Raised where hasattr() may ask, so it must be an AttributeError too."""


def replaced(place: str, call: str) -> tuple[str, str]:
    """Return ``to`` and ``path`` of the old spelling, where one dot decided."""
    is_path = len(parsed_path(place, f"{call}({place!r})")) > 1
    word = "path" if is_path else "to"
    warnings.warn(
        f"{call}({place!r}) is deprecated and goes in 1.0; write {call}({word}={place!r})",
        DeprecationWarning,
        stacklevel=3,
    )
    return ("", place) if is_path else (place, "")


def _places(
    to: str | tuple[str, ...], path: str, each: str
) -> tuple[tuple[Part, ...], ...]:
    if to and isinstance(to, str) and not path and not each:
        return (parsed_path(to, "Forwarded(to=...)"),)
    given = {"to": to, "path": path, "each": each}
    word = _only_given(given)
    if word is None:
        return ()
    texts = given[word] if isinstance(given[word], tuple) else (given[word],)
    places = tuple(parsed_path(t, f"Forwarded({word}={t!r})") for t in texts)
    if word == "path" and len(places[0]) == 1:
        raise ForwardingError(
            f"Forwarded(path={path!r}) is an attribute of the wrapper itself; a path "
            f"goes on to the target's, and Forwarded(to={path!r}) names the owner"
        )
    return places


def _only_given(given: Mapping[str, str | tuple[str, ...]]) -> str | None:
    """Return which option says where the attribute is, None if none does."""
    chosen = [word for word, place in given.items() if place not in ("", ())]
    if len(chosen) > 1:
        raise ForwardingError(
            f"Forwarded() takes one of to=, path= and each=, got {' and '.join(chosen)}"
        )
    return chosen[0] if chosen else None


def _lens(
    get: Callable[[Any], Any] | None,
    set_: bool | Callable[[Any], Any],  # noqa: FBT001 -- As the user gave it.
    default: Any,
    *,
    each: bool,
) -> Lens:
    return Lens(
        get=get,
        set=set_ if callable(set_) else None,
        default=() if default is _NOTHING else (default,),
        each=each,
    )


def _check_kind(kind: Kind | None) -> None:
    if kind is not None and kind not in get_args(Kind):
        raise ForwardingError(
            f"kind must be one of {', '.join(map(repr, get_args(Kind)))}, got {kind!r}"
        )


def _is_wrapper(returns: str | None) -> bool:
    if returns not in (None, "wrapper"):
        raise ForwardingError(f"returns must be 'wrapper' or None, got {returns!r}")
    return returns is not None


def forwarded(
    attribute: T,
    /,
    *,
    set: bool | Callable[[Any], Any] = True,  # noqa: A002
    delete: bool = True,
    get: Callable[[Any], Any] | None = None,
    default: Any = _NOTHING,
    returns: Literal["wrapper"] | None = None,
    on_class: bool = False,
    exact: bool = False,
    doc: str | None = None,
    kind: Kind | None = None,
) -> T:
    """Declare, in a class body, that an attribute lives on a typed target.

    The same as :class:`Forwarded`, with the path recorded instead of spelled,
    so that type checkers know the attribute and its type:

    >>> from forwarding import target
    >>> class Stack:
    ...     items = target(list)
    ...     push = forwarded(items.append)
    ...     def __init__(self):
    ...         self.items = []

    Args:
        attribute: An attribute of a :func:`target`, at any depth, or an item:
            ``forwarded(inner.param_groups[0]["lr"])``.
        set: See :class:`Forwarded`, as for all that follow.
        delete: Whether deletion is forwarded.
        get: Converts what is read.
        default: What is read where the owner lacks the attribute.
        returns: ``"wrapper"`` for methods that return their owner.
        on_class: Whether the class of the wrapper has it too.
        exact: Whether a method repeats the target's signature.
        doc: Docstring; by default that of the target's class attribute.
        kind: Method or data, where the target's class does not tell.

    Raises:
        ForwardingError: ``attribute`` is not an attribute of a target.
    """
    if not isinstance(attribute, Path) or not attribute.__fields__["parts"]:
        raise ForwardingError(
            "forwarded() takes an attribute of a target, as in forwarded(inner.x), "
            f"got {attribute!r}; spell a path as Forwarded(path='inner.x')"
        )
    declaration: Forwarded[Any] = Forwarded(
        set=set,
        delete=delete,
        get=get,
        default=default,
        returns=returns,
        on_class=on_class,
        exact=exact,
        doc=doc,
        kind=kind,
    )
    declaration.recorded = attribute
    name_in_body(attribute, depth=2)
    return cast("T", declaration)
