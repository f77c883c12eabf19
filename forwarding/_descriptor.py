"""The :class:`Forwarded` declaration, which replaces itself by generated code."""

import keyword
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, cast, get_args, overload

from forwarding._install import install
from forwarding._record import Kind, record_of
from forwarding._targets import Path
from forwarding.exceptions import ForwardingError


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)

    class _Base: ...
else:
    from typing import TypeVar

    T = TypeVar("T")
    _Base = property  # Enum makes no member of a property, pydantic no field.

__all__ = ("Forwarded", "forwarded")


class Forwarded(_Base, Generic[T]):
    """Declare, in a class body, that an attribute lives on another object.

    Getting, setting and deleting it act on that object; nothing is stored on
    the wrapper. When the class is made, a declaration of data becomes a plain
    ``property``, and one of a method becomes a plain function.

    >>> class Car:
    ...     serial = Forwarded("engine", set=False, delete=False)
    ...     speed = Forwarded("engine.gearbox.rpm", doc="Revolutions per minute.")
    ...     def __init__(self, engine):
    ...         self.engine = engine

    Args:
        path: Where the attribute lives, from the wrapper. One name is an object
            that has an attribute of the same name (``"engine"`` above means
            ``engine.serial``); a dotted path ends in the attribute itself. The
            default is the only target of the class, such as a
            :class:`Wrapper`'s ``__wrapped__``.
        set: Whether assignment is forwarded; if not, it raises AttributeError.
        delete: Whether deletion is forwarded; if not, it raises AttributeError.
        doc: Docstring; by default that of the target's class attribute.
        kind: ``"method"`` or ``"async method"`` for what is called on the
            owner but stays on this layer when it is rebound; ``"data"`` for
            everything else. By default taken from the target's class where
            that is known, and ``"data"`` where it is not.

    Raises:
        ForwardingError: The path, the name or an option cannot be forwarded. A
            class made by :class:`ForwardingMeta` or from :class:`Forwarding`
            raises it as it is; elsewhere CPython 3.11 wraps what is found
            when the name is known in a RuntimeError.
    """

    def __init__(
        self,
        path: str = "",
        *,
        set: bool = True,  # noqa: A002
        delete: bool = True,
        doc: str | None = None,
        kind: Kind | None = None,
    ) -> None:
        parts = () if path == "" else tuple(str(path).split("."))
        if not all(map(_is_name, parts)):
            raise ForwardingError(
                f"Forwarded({path!r}): a path is attribute names joined by dots; "
                "a recorded one is declared by forwarded(inner.x)"
            )
        if kind not in (None, *get_args(Kind)):
            raise ForwardingError(
                f"kind must be one of {', '.join(map(repr, get_args(Kind)))}, got {kind!r}"
            )
        self.path: Path | tuple[str, ...] = parts
        self.set = set
        self.delete = delete
        self.doc = doc
        self.kind: Kind | None = kind

    def __set_name__(self, owner: type, name: str) -> None:
        if vars(owner).get(name) is not self:
            return
        try:
            install(owner, name, self)
        except ForwardingError as error:
            if not getattr(owner, "_forwarding_is_checked", False):
                raise
            record_of(owner).error = error  # CPython 3.11 would wrap it here.

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
        raise ForwardingError(
            f"a Forwarded of {type(wrapper).__name__} was not installed; "
            "declare it in the class body"
        )


def _is_name(part: str) -> bool:
    return part.isidentifier() and not keyword.iskeyword(part)


def forwarded(
    attribute: T,
    /,
    *,
    set: bool = True,  # noqa: A002
    delete: bool = True,
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
        attribute: An attribute of a :func:`target`, at any depth.
        set: Whether assignment is forwarded.
        delete: Whether deletion is forwarded.
        doc: Docstring; by default that of the target's class attribute.
        kind: See :class:`Forwarded`.

    Raises:
        ForwardingError: ``attribute`` is not an attribute of a target.
    """
    if not isinstance(attribute, Path) or not attribute.__fields__["parts"]:
        raise ForwardingError(
            "forwarded() takes an attribute of a target, as in forwarded(inner.x), "
            f"got {attribute!r}; spell a path as Forwarded('inner.x')"
        )
    declaration = Forwarded(set=set, delete=delete, doc=doc, kind=kind)
    declaration.path = attribute
    return cast("T", declaration)
