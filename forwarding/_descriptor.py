"""The :class:`Forwarded` declaration, which replaces itself by generated code."""

import keyword
import typing
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    NoReturn,
    Self,
    cast,
    overload,
)

from forwarding._generate import generated
from forwarding._kind import attribute_type, kind_of, static_attribute
from forwarding._record import Kind, Spec, record_of
from forwarding._specials import refusal
from forwarding._targets import Path, recorded, targets_of
from forwarding.exceptions import ForwardingError


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    _Base = object
else:
    from typing import TypeVar

    T = TypeVar("T")
    _Base = property  # Enum makes no member of a property, pydantic no field.

__all__ = ("Forwarded", "forwarded", "install")


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
        parts = tuple(path.split(".")) if path else ()
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
            raise ForwardingError(
                f"Forwarded({path!r}): a path is attribute names joined by dots"
            )
        self.path: Path | tuple[str, ...] = parts
        self.set = set
        self.delete = delete
        self.doc = doc
        self.kind = kind

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
        self._refuse(wrapper)

    def __set__(self, wrapper: object, value: T, /) -> None:
        self._refuse(wrapper)

    def __delete__(self, wrapper: object, /) -> None:
        self._refuse(wrapper)

    def _refuse(self, wrapper: object) -> NoReturn:
        raise ForwardingError(
            f"a Forwarded of {type(wrapper).__name__} was not installed; "
            "declare it in the class body"
        )


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
    declaration = Forwarded[T](set=set, delete=delete, doc=doc, kind=kind)
    declaration.path = attribute
    return cast("T", declaration)


def install(cls: type, name: str, declaration: Forwarded[Any]) -> None:
    """Replace ``cls.name`` by the code that forwards it."""
    path = _path(cls, name, declaration.path)
    _check(cls, name, path)
    owner = _owner_type(targets_of(cls).get(path[0]), path[1:-1])
    model = None if owner is None else static_attribute(owner, path[-1])
    spec = _spec(cls, name, path, declaration, model)
    attribute = generated(cls, name, spec)
    _document(attribute, declaration, model, spec)
    type.__setattr__(cls, name, attribute)
    if isinstance(attribute, property):
        attribute.__set_name__(cls, name)  # type: ignore[attr-defined]
    record_of(cls).specs[name] = spec


def _path(cls: type, name: str, path: Path | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(path, Path):
        return recorded(path)
    if not path:
        targets = tuple(targets_of(cls))
        if len(targets) != 1:
            raise ForwardingError(
                f"{cls.__name__}.{name} names no target, and {cls.__name__} has "
                f"{', '.join(targets) or 'none'}; say which, as in Forwarded('inner')"
            )
        return (*targets, name)
    root, *rest = path
    if root.startswith("__") and not root.endswith("__"):
        root = f"_{cls.__name__.lstrip('_')}{root}"  # As in the class body.
    return (root, *(rest or (name,)))


def _check(cls: type, name: str, path: tuple[str, ...]) -> None:
    spelled = ".".join(path)
    if path[0] == name:
        raise ForwardingError(
            f"{cls.__name__}.{name} is forwarded to {spelled!r}, "
            "which starts at the attribute itself"
        )
    reason = refusal(name)
    if reason is not None:
        raise ForwardingError(f"{cls.__name__}.{name} cannot be forwarded: {reason}")


def _owner_type(cls: type | None, path: tuple[str, ...]) -> type | None:
    for name in path:
        if cls is None:
            return None
        cls = attribute_type(cls, name)
    return cls


def _spec(
    cls: type, name: str, path: tuple[str, ...], declaration: Forwarded[Any], model: Any
) -> Spec:
    special = name.startswith("__") and name.endswith("__")
    default: Kind = "method" if special else "data"
    kind = declaration.kind or (default if model is None else kind_of(model))
    if kind == "data":
        return Spec(path, kind, declaration.set, declaration.delete)
    if not (declaration.set and declaration.delete):
        raise ForwardingError(
            f"{cls.__name__}.{name} is a method, which is set and deleted on "
            f"{cls.__name__} itself; set= and delete= are for data"
        )
    return Spec(path, kind, set=False, delete=False)


def _document(attribute: Any, declaration: Forwarded[Any], model: Any, spec: Spec) -> None:
    doc = declaration.doc or getattr(model, "__doc__", None)
    attribute.__doc__ = doc or f"Forwarded to ``{spec}``."
