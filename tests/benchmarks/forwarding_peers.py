"""What forwarding is compared with; not all of it need be installed."""

import sys
from collections.abc import Callable, Iterator
from typing import Any


Design = Callable[[Any], Any]


class Target:
    """What is wrapped; ``y`` can be deleted again and again."""

    y = property(fdel=bool)

    def __init__(self):
        self.x = 0

    def m(self, a=0, b=0):
        return a + b


class Dynamic:
    """The usual way to pass everything."""

    def __init__(self, inner):
        vars(self)["inner"] = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __setattr__(self, name, value):
        setattr(self.inner, name, value)

    def __delattr__(self, name):
        delattr(self.inner, name)


def peers() -> Iterator[tuple[str, Design]]:
    """Yield what else there is, as far as it is installed."""
    yield "`__getattr__`", Dynamic
    for name, build in {
        "forwarding `TransparentProxy`": transparent_proxy,
        "wrapt `BaseObjectProxy`": wrapt_proxy,
        "lazy-object-proxy": lazy_object_proxy,
        "zope.proxy": zope_proxy,
        "werkzeug `LocalProxy`": werkzeug_proxy,
        "traits `DelegatesTo`": traits_delegate,
        "forwardable": forwardable_class,
        "dele-gator": dele_gator_class,
        "fastcore `GetAttr`": fastcore_class,
    }.items():
        try:
            yield name, build()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)  # noqa: T201


def transparent_proxy() -> Design:
    from forwarding.proxy import TransparentProxy  # noqa: PLC0415

    return TransparentProxy


def wrapt_proxy() -> Design:
    import wrapt  # noqa: PLC0415

    return wrapt.BaseObjectProxy


def lazy_object_proxy() -> Design:
    import lazy_object_proxy  # noqa: PLC0415

    return lambda inner: lazy_object_proxy.Proxy(lambda: inner)


def zope_proxy() -> Design:
    from zope.proxy import ProxyBase  # noqa: PLC0415

    return ProxyBase


def werkzeug_proxy() -> Design:
    from werkzeug.local import LocalProxy  # noqa: PLC0415

    return lambda inner: LocalProxy(lambda: inner)


def traits_delegate() -> Design:
    from traits.api import Any, DelegatesTo, HasTraits, Int  # noqa: PLC0415

    class TraitedTarget(HasTraits):
        x = Int(0)
        m = Target.m

    class Traited(HasTraits):
        inner = Any()
        x = DelegatesTo("inner")
        m = DelegatesTo("inner")

    def build(inner):
        is_target = isinstance(inner, Target)
        return Traited(inner=TraitedTarget() if is_target else inner)

    return build


def forwardable_class() -> Design:
    from forwardable import def_delegators  # noqa: PLC0415

    class Forwardable:
        def_delegators("inner", "x y m")

        def __init__(self, inner):
            self.inner = inner

    return Forwardable


def dele_gator_class() -> Design:
    from delegator import Delegator  # noqa: PLC0415

    class Delegating(metaclass=Delegator):
        delegate = "inner x y m"

        def __init__(self, inner):
            self.inner = inner

    return Delegating


def fastcore_class() -> Design:
    from fastcore.basics import GetAttr  # noqa: PLC0415

    class Getting(GetAttr):
        _default = "inner"

        def __init__(self, inner):
            self.inner = inner

    return Getting
