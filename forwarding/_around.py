"""Advice around a method of the target, in a wrapper of any kind."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from wrapt import CallableObjectProxy

from forwarding._descriptor import Forwarded, replaced
from forwarding._record import record_of


__all__ = ("around",)

P = ParamSpec("P")
R = TypeVar("R")


def around(
    place: str | None = None, /, *, to: str = "", path: str = ""
) -> Callable[[Callable[Concatenate[Any, Callable[..., Any], P], R]], "_Around[P, R]"]:
    """Wrap a method of the target in work of the wrapper.

    The decorated function is called with ``proceed``, the target's method, followed
    by the arguments of the call. Callers see the target's method: its name,
    docstring and signature, and whether to await it.

    >>> import inspect
    >>> from forwarding.proxy import TransparentProxy
    >>> class Counted(TransparentProxy[list[int]]):
    ...     calls = 0
    ...     @around()
    ...     def append(self, proceed, /, *args):
    ...         self.calls += 1
    ...         return proceed(*args)
    >>> counted = Counted([])
    >>> counted.append(7)
    >>> counted, counted.calls, inspect.signature(counted.append)
    (Counted([7]), 1, <Signature (object, /)>)

    Warning:
        Not for work that must happen, such as adding noise in an optimizer's
        ``step``: code that follows ``__wrapped__`` reaches the target's method
        without the advice. Write a plain ``def step`` there.

    Args:
        place: The old spelling of ``to`` and ``path``, which warns.
        to: Path to the object that has a method of this name, as for
            :class:`forwarding.Forwarded`.
        path: Path to the method itself.

    Raises:
        ForwardingError: The path or the name cannot be forwarded.
    """
    if place is not None:
        to, path = replaced(place, "around")
    Forwarded[Any](to=to, path=path)  # Raises what is wrong with it, here and now.
    return functools.partial(_Around, to, path)


class _Around(Generic[P, R]):
    """Descriptor of one advice; not a data descriptor, so that patches stay here."""

    def __init__(
        self,
        to: str,
        path: str,
        advice: Callable[Concatenate[Any, Callable[..., Any], P], R],
    ) -> None:
        self._to = to
        self._path = path
        self.advice = advice
        self.__doc__ = advice.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        declaration = Forwarded[Any](to=self._to, path=self._path, kind="data")
        type.__setattr__(owner, name, declaration)
        declaration.__set_name__(owner, name)
        attribute: Any = vars(owner)[name]
        self.proceed: Callable[[Any], Callable[..., Any]] = attribute.fget
        record_of(owner).specs.pop(name, None)  # The class says what it does itself.
        type.__setattr__(owner, name, self)

    @overload
    def __get__(self, layer: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self, layer: object, owner: type, /) -> Callable[P, R]: ...
    def __get__(self, layer: object, owner: type, /) -> Any:
        return self if layer is None else _Advised(self, layer)


class _Advised(CallableObjectProxy[Callable[..., Any]]):
    """A bound method of the target, which runs the advice of one layer."""

    def __init__(self, around: _Around[..., Any], layer: object) -> None:
        super().__init__(around.proceed(layer))
        self._self_around = around
        self._self_layer = layer

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        around = self._self_around
        return around.advice(self._self_layer, self.__wrapped__, *args, **kwargs)

    @property
    def __self__(self) -> object:
        return self._self_layer

    @property
    def __func__(self) -> Callable[..., Any]:
        """The function that rebinding, as by LR schedulers, takes for the method."""
        method: Any = self.__wrapped__
        around, function = self._self_around, method.__func__

        @functools.wraps(function)
        def advised(layer: Any, /, *args: Any, **kwargs: Any) -> Any:
            return _Advised(around, layer)(*args, **kwargs)

        @functools.wraps(function)
        async def advised_async(layer: Any, /, *args: Any, **kwargs: Any) -> Any:
            return await _Advised(around, layer)(*args, **kwargs)

        return advised_async if inspect.iscoroutinefunction(function) else advised

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any], /) -> Any:
        return getattr(copy.deepcopy(self._self_layer, memo), self._self_around.name)

    def __reduce_ex__(self, protocol: Any, /) -> tuple[Any, ...]:
        return getattr, (self._self_layer, self._self_around.name)
