"""Transparent proxies: special methods, ``isinstance`` and unknown names pass too.

Built on `wrapt <https://wrapt.readthedocs.io>`_, and alike with and without its
C extension. A :class:`TransparentProxy` passes everything that it does not
keep; a :class:`forwarding.Wrapper` passes what it declares, is faster, and is
what to use for an optimizer.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

from wrapt import BaseObjectProxy

from forwarding._annotations import annotations_of
from forwarding._around import around
from forwarding._descriptor import Forwarded
from forwarding._mixin import Forwarding
from forwarding._record import Kind, record_of
from forwarding._specials import SPECIALS
from forwarding._static import static_attribute
from forwarding.exceptions import ForwardingError


__all__ = ("TransparentProxy", "around")

T = TypeVar("T")

# Special methods that make a class callable, iterable or awaitable by their
# mere presence, so that wrapt leaves them to those who know the target.
_BY_TARGET = tuple(
    name
    for name, special in SPECIALS.items()
    if special.standing == "forwarded" and name not in dir(BaseObjectProxy)
)
# Special methods that every wrapt proxy has, and that only ask the target; here, a proxy
# has those of its target. Operators are not among them: without its method, Python still
# asks the other operand.
_ASKING = (
    "__len__",
    "__getitem__",
    "__setitem__",
    "__delitem__",
    "__contains__",
    "__reversed__",
    "__enter__",
    "__exit__",
    "__aenter__",
    "__aexit__",
)
# What Python asks instead, where the first method is missing.
_INSTEAD = {
    "__contains__": ("__iter__", "__getitem__"),
    "__reversed__": ("__getitem__",),
}
# These often return the target itself. The proxy must be returned for it, or "with proxy
# as x" would bind the target, and iteration would let a temporary proxy go.
_RETURN_SELF: dict[str, Kind] = {
    "__enter__": "method",
    "__aenter__": "async method",
    "__iter__": "method",
    "__aiter__": "method",
}
# What wrapt keeps on a proxy about its target.
_KEPT_BY_WRAPT = {
    "__wrapped__",
    "__init_called__",
    "__qualname__",
    "__annotations__",
    "__annotate__",
    "__module__",
    "__doc__",
}


class _Absent:
    """Stands for a special method that the target lacks.

    ``hasattr(proxy, "__len__")`` is False, and ``len(proxy)`` is a TypeError, as for the
    target (werkzeug#596).
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, proxy: Any, owner: type | None = None) -> Any:
        if proxy is None:
            raise AttributeError(f"{self._name} is not there", name=self._name)
        raise _AbsentError(
            f"{type(proxy.__wrapped__).__name__!r} object has no {self._name}",
            name=self._name,
            obj=proxy,
        )


class _AbsentError(AttributeError, TypeError):
    """What hasattr() takes for absence, and callers of len() for a wrong type."""


class TransparentProxy(Forwarding, BaseObjectProxy[T]):
    """Pass everything to the target, except what the class keeps or changes.

    Special methods work if they work on the target, ``isinstance`` sees the
    target's class, and a name that the class does not know is got, set and
    deleted on the target. On the proxy itself live only names that its class
    has, by a definition, a value or a bare annotation.

    >>> class Labelled(TransparentProxy[list[int]]):
    ...     label: str
    ...     size = Forwarded(path="__wrapped__.__len__")
    >>> labelled = Labelled([1, 2])
    >>> labelled.label = "mine"
    >>> labelled.append(3)
    >>> isinstance(labelled, list), labelled + [4], labelled.label, labelled.size()
    (True, [1, 2, 3, 4], 'mine', 3)

    Args:
        wrapped: The target.

    Raises:
        ForwardingError: A subclass declares ``__slots__``, or declares wrongly
            what :class:`forwarding.Forwarding` checks.

    Guarantees:
        * A copy, a deep copy and an unpickled proxy are proxies of the same
          class: a copy shares the target, the others have their own.
        * Calling, iterating and awaiting work exactly if they do on the target.
          For that, ``type(proxy)`` may be a subclass, of the same name.
        * An AttributeError raised by the proxy's own property is not taken for
          a missing attribute.
    """

    _self_variants: ClassVar[dict[tuple[str, ...], Any]] = {}
    _self_variant_of: ClassVar[Any] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if vars(cls).get("__slots__"):
            raise ForwardingError(
                f"{cls.__name__} declares __slots__; annotate the names instead, "
                "so that copies and pickles of the proxy keep them"
            )
        if "__wrapped__" in vars(cls):
            raise ForwardingError(
                f"{cls.__name__} defines __wrapped__, which operators would not ask: they "
                "read the target that wrapt holds. For a target that changes, use a "
                "Wrapper with __wrapped__ = target(..., via=...), or assign __wrapped__"
            )
        cls._self_variants = {}
        for name in annotations_of(cls):
            if name not in vars(cls) and not name.startswith(("__", "_self_")):
                setattr(cls, name, _Own(name))
        super().__init_subclass__(**kwargs)

    def __init__(self, wrapped: T, /) -> None:
        super().__init__(wrapped)
        self.__wrapped_setattr_fixups__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__wrapped__!r})"

    def __dir__(self) -> list[str]:
        return sorted({*dir(self.__wrapped__), *dir(type(self)), *self.__self_dict__})

    # wrapt's C code turns each failed look-up into an exception, which costs more
    # than all the rest; object's does not from Python 3.12 on.
    __getattribute__: ClassVar[Callable[[Any, str], Any]] = object.__getattribute__

    def __getattr__(self, name: str) -> Any:
        cls = type(self)
        if name == "__wrapped__" or (hasattr(cls, name) and _defines(cls, name)):
            return object.__getattribute__(self, name)  # Its own error, once more.
        return getattr(self.__wrapped__, name)

    def __wrapped_setattr_fixups__(self) -> None:
        """Adapt to the target; wrapt calls it whenever there is a new one."""
        own, wrapped = self.__self_dict__, self.__wrapped__
        for name in ("__doc__", "__module__"):
            own[name] = getattr(wrapped, name, None)
        variant = _variant(_public(type(self)), type(wrapped))
        if type(self) is not variant:
            _set_class(self, variant)

    vars().update({name: _Absent(name) for name in _ASKING})

    @property
    def __object_proxy__(self) -> Any:
        """What wraps the result of an operation such as ``+=``."""
        return functools.partial(_around_another, self)

    def __copy__(self) -> Self:
        return _restored(_half_built(_public(type(self))), _state(self))

    def __deepcopy__(self, memo: dict[int, Any], /) -> Self:
        clone = memo[id(self)] = _half_built(_public(type(self)))
        return _restored(clone, copy.deepcopy(_state(self), memo))

    def __reduce_ex__(self, protocol: Any, /) -> tuple[Any, ...]:
        cls = _public(type(self))
        return _half_built, (cls,), _state(self), None, None, _restored


record_of(TransparentProxy).targets["__wrapped__"] = None  # Known from its argument.
_Proxy = TypeVar("_Proxy", bound=TransparentProxy[Any])
_set_class = vars(object)["__class__"].__set__  # That of the proxy, not the target.


class _Own:
    """A name that lives on the proxy; without it, wrapt sets it on the target."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, proxy: object, owner: type) -> Self:
        if proxy is None:
            return self
        raise AttributeError(
            f"{owner.__name__!r} object has no attribute {self._name!r}",
            name=self._name,
            obj=proxy,
        )


def _defines(cls: type, name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__)


def _public(cls: type[_Proxy]) -> type[_Proxy]:
    public: type[_Proxy] = vars(cls).get("_self_variant_of") or cls
    return public


def _variant(cls: type[_Proxy], target: type) -> type[_Proxy]:
    """Return the class that also has those special methods which ``target`` has."""
    names, asking = _lacking(cls, target), _asking(cls, target)
    if not names and not asking:
        return cls
    key = (*names, "", *asking)
    if key not in cls._self_variants:
        namespace: dict[str, Any]
        namespace = {name: getattr(BaseObjectProxy, name) for name in asking}
        namespace |= {name: Forwarded() for name in names}
        namespace |= {
            name: Forwarded(returns="wrapper", kind=kind)
            for name, kind in _RETURN_SELF.items()
            if name in namespace
        }
        namespace |= {"_self_variant_of": cls, "__doc__": cls.__doc__}
        namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        metaclass: Any = type(cls)
        variant = metaclass(cls.__name__, (cls,), namespace)
        cls._self_variants.setdefault(key, variant)
    found: type[_Proxy] = cls._self_variants[key]
    return found


def _lacking(cls: type[_Proxy], target: type) -> tuple[str, ...]:
    names = tuple(
        name
        for name in _BY_TARGET
        if _defines(target, name) > _defines(cls, name)
        and getattr(target, name) is not None  # What says that it cannot.
    )
    # wrapt's is written in C, where iter() does not see it.
    is_wrapts = isinstance(static_attribute(cls, "__getitem__"), _Absent)
    by_index = hasattr(target, "__getitem__") and not issubclass(
        target, BaseObjectProxy
    )
    if by_index and not hasattr(target, "__iter__") and is_wrapts:
        return (*names, "__getitem__")
    return names


def _asking(cls: type[_Proxy], target: type) -> tuple[str, ...]:
    """Return the special methods of wrapt that the target has, too."""
    return tuple(
        name
        for name in _ASKING
        if isinstance(static_attribute(cls, name), _Absent)
        and any(_has(target, asked) for asked in (name, *_INSTEAD.get(name, ())))
    )


def _has(target: type, name: str) -> bool:
    return getattr(target, name, None) is not None  # None says that it cannot.


def _half_built(cls: type[_Proxy]) -> _Proxy:
    return BaseObjectProxy.__new__(cls)


def _state(proxy: TransparentProxy[Any]) -> dict[str, Any]:
    own = proxy.__self_dict__.items()
    state = {name: value for name, value in own if name not in _KEPT_BY_WRAPT}
    if hasattr(proxy, "__wrapped__"):
        state["__wrapped__"] = proxy.__wrapped__
    return state


def _restored(proxy: _Proxy, state: dict[str, Any]) -> _Proxy:
    own = dict(state)
    if "__wrapped__" in own:
        TransparentProxy.__init__(proxy, own.pop("__wrapped__"))
    proxy.__self_dict__.update(own)
    return proxy


def _around_another(proxy: _Proxy, wrapped: object) -> _Proxy:
    state = _state(proxy) | {"__wrapped__": wrapped}
    return _restored(_half_built(_public(type(proxy))), state)
