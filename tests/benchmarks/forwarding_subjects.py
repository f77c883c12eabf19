"""Ways to wrap any object that the laws judge; not all of it need be installed."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingABCMeta,
    ForwardingMeta,
    SlottedWrapper,
    Wrapper,
    forwarded,
    lazy,
    target,
)
from forwarding.proxy import TransparentProxy


class Subject(NamedTuple):
    """A wrapper, and what it is judged on."""

    label: str
    factory: Callable[[Any], Any]
    make_target: Callable[[], Any]
    names: tuple[str, ...]
    values: Any = None
    distribution: str = ""
    more: Mapping[str, Any] = {}


def available(label: str, build: Callable[[], Any]) -> Any:
    """Return what ``build`` builds, None if its library is not installed."""
    try:
        return build()
    except ImportError as error:
        print(f"{label} is left out: {error}", file=sys.stderr)  # noqa: T201
        return None


class Target:
    """What is wrapped."""

    a: Any
    b: Any

    def __init__(self) -> None:
        self.a = 1
        self.b = [2]

    def m(self, x: Any, *, k: int = 1) -> Any:
        return self, x, k

    @property
    def serial(self) -> int:
        return 7

    async def co(self, x: Any) -> Any:
        return self, x


NAMES = ("a", "b", "serial", "m", "co")
DATA = NAMES[:3]


def ours() -> Iterator[Subject]:
    """Yield every kind of wrapper that forwarding makes."""
    kinds = {
        "`Forwarded`": Declared,
        "`forwarded` of a `target`": Typed,
        "`Forwarding`": Mixed,
        "`ForwardingMeta`": ByMeta,
        "`ForwardingABCMeta`": Guarded,
        "`Wrapper`": Wrapped,
        "`SlottedWrapper`": SlottedWrapped,
        "`Forwarded` with `__slots__`": Slotted,
        "`Forwarded` in a dataclass": Data,
        "`TransparentProxy`, declared": DeclaredProxy,
        "`TransparentProxy`": TransparentProxy,
    }
    for label, factory in kinds.items():
        yield Subject(label, factory, Target, NAMES, more={"leave_out": ()})
    yield Subject(
        "`target` with `via=lazy(...)`",
        made_late,
        Target,
        NAMES,
        more={"lazy": Late, "leave_out": ()},
    )


class Holds:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Declared(Holds):
    a = Forwarded(to="inner")
    b = Forwarded(to="inner")
    serial = Forwarded(to="inner")
    m = Forwarded(to="inner", kind="method")
    co = Forwarded(to="inner", kind="async method")


class Typed(Holds):
    inner = target(Target)
    a = forwarded(inner.a)
    b = forwarded(inner.b)
    serial = forwarded(inner.serial)
    m = forwarded(inner.m)
    co = forwarded(inner.co)


class Mixed(Forwarding, Holds, to="inner", forward=Target): ...


class ByMeta(Holds, metaclass=ForwardingMeta, to="inner", forward=Target): ...


class Guarded(Holds, metaclass=ForwardingABCMeta, to="inner", forward=Target): ...


class Wrapped(Wrapper[Target], forward="a b serial m co"): ...


class SlottedWrapped(SlottedWrapper[Target], forward=Target):
    __slots__ = ()


class Slotted:
    __slots__ = ("__weakref__", "inner")
    a = Forwarded(to="inner")
    b = Forwarded(to="inner")
    serial = Forwarded(to="inner")
    m = Forwarded(to="inner", kind="method")
    co = Forwarded(to="inner", kind="async method")

    def __init__(self, inner: Any) -> None:
        self.inner = inner


@dataclass(eq=False)
class Data:
    inner: Target
    a: int = Forwarded(to="inner")
    b: list[int] = Forwarded(to="inner")  # noqa: RUF009 -- It becomes a property.
    serial: int = Forwarded(to="inner", set=False, delete=False)
    m = Forwarded(to="inner", kind="method")
    co = Forwarded(to="inner", kind="async method")


class DeclaredProxy(TransparentProxy[Target]):
    a = Forwarded()
    b = Forwarded()
    serial = Forwarded()
    m = Forwarded()
    co = Forwarded()


class Late:
    inner = target(Target, via=lazy(lambda self: self.make()))
    a = forwarded(inner.a)
    b = forwarded(inner.b)
    serial = forwarded(inner.serial)
    m = forwarded(inner.m)
    co = forwarded(inner.co)

    def __init__(self, make: Callable[[], Target]) -> None:
        self.make = make


def made_late(inner: Any) -> Any:
    late = Late(lambda: inner)
    late.inner  # noqa: B018 -- Made already, and with it free of the function.
    del late.make
    return late


def homemade() -> Iterator[Subject]:
    """Yield what people write without a library."""
    yield Subject("properties by hand", ByHand, Target, NAMES)
    yield Subject("copied references", Copied, Target, NAMES)
    yield Subject("`__getattr__`", Getting, Target, NAMES)
    yield Subject("`__getattr__` and `__setattr__`", Dynamic, Target, NAMES)


def peers() -> Iterator[Subject]:
    """Yield what libraries offer, as far as they are installed."""
    for label, distribution, build in (
        ("wrapt `BaseObjectProxy`", "wrapt", wrapt_proxy),
        ("lazy-object-proxy `Proxy`", "lazy-object-proxy", lazy_object_proxy),
        ("zope.proxy `ProxyBase`", "zope.proxy", zope_proxy),
        ("werkzeug `LocalProxy`", "werkzeug", werkzeug_proxy),
        ("forwardable `def_delegators`", "forwardable", forwardable_class),
        ("dele-gator `Delegator`", "dele-gator", dele_gator_class),
        ("fastcore `GetAttr`", "fastcore", fastcore_class),
    ):
        factory = available(label, build)
        if factory is not None:
            yield Subject(label, factory, Target, NAMES, distribution=distribution)
    both = available("traits", traits_classes)
    if both is not None:
        yield Subject("traits `DelegatesTo`", *both, DATA, distribution="traits")


class ByHand(Holds):
    """The careful way, for two attributes and two methods."""

    @property
    def a(self) -> Any:
        return self.inner.a

    @a.setter
    def a(self, value: Any) -> None:
        self.inner.a = value

    @a.deleter
    def a(self) -> None:
        del self.inner.a

    @property
    def b(self) -> Any:
        return self.inner.b

    @b.setter
    def b(self, value: Any) -> None:
        self.inner.b = value

    @b.deleter
    def b(self) -> None:
        del self.inner.b

    @property
    def serial(self) -> Any:
        return self.inner.serial

    def m(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.inner.m(*args, **kwargs)

    async def co(self, /, *args: Any, **kwargs: Any) -> Any:
        return await self.inner.co(*args, **kwargs)


class Copied:
    """The quick way."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.a, self.b, self.serial = inner.a, inner.b, inner.serial
        self.m, self.co = inner.m, inner.co


class Getting(Holds):
    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Dynamic(Getting):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "inner":
            super().__setattr__(name, value)
        else:
            setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.inner, name)


def wrapt_proxy() -> Any:
    import wrapt  # noqa: PLC0415

    return wrapt.BaseObjectProxy


def lazy_object_proxy() -> Any:
    import lazy_object_proxy  # noqa: PLC0415

    def Proxy(inner: Any) -> Any:  # noqa: N802
        return lazy_object_proxy.Proxy(lambda: inner)

    return Proxy


def zope_proxy() -> Any:
    from zope.proxy import ProxyBase  # noqa: PLC0415

    return ProxyBase


def werkzeug_proxy() -> Any:
    from werkzeug.local import LocalProxy as Local  # noqa: PLC0415

    def LocalProxy(inner: Any) -> Any:  # noqa: N802
        return Local(lambda: inner)

    return LocalProxy


def forwardable_class() -> Any:
    from forwardable import def_delegators  # noqa: PLC0415

    class Forwardable(Holds):
        def_delegators("inner", "a b serial m co")

    return Forwardable


def dele_gator_class() -> Any:
    from delegator import Delegator  # noqa: PLC0415

    class Delegating(Holds, metaclass=Delegator):
        delegate = "inner a b serial m co"

    return Delegating


def fastcore_class() -> Any:
    from fastcore.basics import GetAttr  # noqa: PLC0415

    class Getter(GetAttr):
        _default = "inner"

        def __init__(self, inner: Any) -> None:
            self.inner = inner

    return Getter


def traits_classes() -> Any:
    from traits.api import Any as AnyTrait, DelegatesTo, HasTraits  # noqa: PLC0415

    class TraitedTarget(HasTraits):
        a = AnyTrait(1)
        b = AnyTrait(factory=list, args=([2],))
        serial = property(lambda _: 7)

    class Traited(HasTraits):
        inner = AnyTrait()
        a = DelegatesTo("inner")
        b = DelegatesTo("inner")
        serial = DelegatesTo("inner")

        def __init__(self, inner: Any) -> None:
            super().__init__(inner=inner)

    return Traited, TraitedTarget
