"""Advice around methods of a target: binding, signatures, copies, errors."""

import asyncio
import copy
import functools
import inspect
import pickle
import sys
import types
from unittest import mock

import pytest
from hypothesis import given, strategies as st

from forwarding import (
    Forwarding,
    ForwardingError,
    Wrapper,
    chain,
    forwarded_attributes,
    unwrap,
    verify,
)
from forwarding.proxy import TransparentProxy, around


class Engine:
    """What is advised: every kind of method that a class can have."""

    def start(self, key, /, times=1, *, gently=False):
        """Start it."""
        return self, key, times, gently

    @classmethod
    def make(cls, rpm=1):
        return cls, rpm

    @staticmethod
    def convert(rpm=1):
        return rpm * 60

    async def warm(self, degrees):
        return self, degrees

    def turns(self, count):
        yield from range(count)

    async def slow_turns(self, count):
        for turn in range(count):
            yield turn

    @property
    def horn(self):
        return str.upper

    twice = functools.partialmethod(start, times=2)

    def faulty(self):
        return self.absent

    def __call__(self, rpm):
        return rpm + 1

    def __eq__(self, other):
        return isinstance(other, Engine) and vars(self) == vars(other)

    __hash__ = None


def noted(layer, proceed, /, *args, **kwargs):
    """Note the call and make it."""
    layer.calls = (*layer.calls, (args, kwargs))
    return proceed(*args, **kwargs)


METHODS = [
    "start",
    "make",
    "convert",
    "warm",
    "turns",
    "slow_turns",
    "horn",
    "twice",
    "faulty",
    "absent_method",
]


class Noting(TransparentProxy):
    """A proxy that notes every call."""

    calls = ()
    start = around()(noted)
    make = around()(noted)
    convert = around()(noted)
    warm = around()(noted)
    turns = around()(noted)
    slow_turns = around()(noted)
    horn = around()(noted)
    twice = around()(noted)
    faulty = around()(noted)
    absent_method = around()(noted)
    __call__ = around()(noted)


class Wrapping(Wrapper[Engine]):
    """A wrapper that does, which is no proxy."""

    calls = ()
    start = around()(noted)


class Car:
    """Any class, with a path of its own."""

    calls = ()
    go = around(path="engine.start")(noted)

    def __init__(self, engine):
        self.engine = engine


each_depth = pytest.mark.parametrize("depth", [1, 2, 3])
each_kind = pytest.mark.parametrize("kind", [Noting, Wrapping])


def stack(target, depth, kind=Noting):
    for _ in range(depth):
        target = kind(target)
    return target


@given(st.integers(), st.integers(), st.booleans(), st.integers(1, 3))
def test_advice_runs_once_on_each_layer_with_the_arguments(key, times, gently, depth):
    """The outermost runs first, and the target's method gets what they pass on."""
    engine = Engine()
    proxy = stack(engine, depth)

    assert proxy.start(key, times, gently=gently) == (engine, key, times, gently)
    expected = ((key, times), {"gently": gently})
    assert [layer.calls for layer in chain(proxy)[:-1]] == [(expected,)] * depth


@each_depth
def test_every_kind_of_method_is_bound_as_on_the_target(depth):
    """Class and static methods, generators, callables from properties."""
    engine = Engine()
    proxy = stack(engine, depth)

    assert proxy.make(2) == (Engine, 2)
    assert proxy.convert(2) == 120
    assert [*proxy.turns(3)] == [0, 1, 2]
    assert proxy.horn("beep") == "BEEP"
    assert proxy.twice("key") == (engine, "key", 2, False)
    assert proxy(7) == 8
    assert len(proxy.calls) == 6


@each_depth
def test_coroutines_and_asynchronous_generators_are_advised(depth):
    """The advice runs when the method is called; what it returns is awaited."""
    engine = Engine()
    proxy = stack(engine, depth)

    async def use():
        return await proxy.warm(20), [turn async for turn in proxy.slow_turns(2)]

    assert asyncio.run(use()) == ((engine, 20), [0, 1])
    assert proxy.calls == (((20,), {}), ((2,), {}))


@each_depth
def test_callers_see_the_targets_method(depth):
    """Name, docstring, signature and what to await are those of the target."""
    engine = Engine()
    proxy = stack(engine, depth)

    for name in ("start", "make", "convert", "warm", "turns", "slow_turns", "twice"):
        mine, its = getattr(proxy, name), getattr(engine, name)
        assert inspect.signature(mine) == inspect.signature(its)
        assert inspect.getdoc(mine) == inspect.getdoc(its)
        assert getattr(mine, "__name__", None) == getattr(its, "__name__", None)
        assert inspect.ismethod(mine) is inspect.ismethod(its)
        assert inspect.iscoroutinefunction(mine) is (name == "warm")


@each_depth
@each_kind
def test_it_is_a_method_of_the_layer(depth, kind):
    """``__self__`` is what it was taken from; equal ones are equal."""
    layer = stack(Engine(), depth, kind)

    assert layer.start.__self__ is layer
    assert layer.start == layer.start
    assert layer.start("key")[0] is unwrap(layer)
    assert len(layer.calls) == 1


@each_depth
@each_kind
def test_who_rebinds_the_function_still_gets_the_advice(depth, kind):
    """As schedulers do: take ``__func__``, wrap it, and set it on the instance."""
    layer = stack(Engine(), depth, kind)
    function = layer.start.__func__

    @functools.wraps(function)
    def rebound(*args, **kwargs):
        return function.__get__(layer, type(layer))(*args, **kwargs)

    layer.start = rebound

    assert layer.start("key", times=3) == (unwrap(layer), "key", 3, False)
    assert [one.calls for one in chain(layer)[:-1]] == [
        ((("key",), {"times": 3}),)
    ] * depth
    assert "start" not in vars(unwrap(layer))
    assert inspect.signature(function) == inspect.signature(Engine.start)
    assert types.MethodType(function, layer)("key")[1] == "key"


@each_depth
def test_the_function_of_a_coroutine_method_is_one(depth):
    """Who takes ``__func__`` must still know to await it."""
    proxy = stack(Engine(), depth)
    function = proxy.warm.__func__

    assert inspect.iscoroutinefunction(function)
    assert asyncio.run(function(proxy, 20)) == (unwrap(proxy), 20)
    assert len(proxy.calls) == 1


def test_what_is_no_method_has_no_function():
    """As on the target."""
    with pytest.raises(AttributeError, match="__func__"):
        _ = Noting(Engine()).convert.__func__


@each_depth
@each_kind
def test_a_patch_stays_on_its_layer_and_goes(depth, kind):
    """Neither the target nor the class keep anything of it."""
    layer = stack(Engine(), depth, kind)
    with mock.patch.object(layer, "start", autospec=True) as patched:
        layer.start("key")
        patched.assert_called_once_with("key")
        assert "start" not in vars(unwrap(layer))

    assert layer.start("key")[0] is unwrap(layer)
    assert len(layer.calls) == 1


@each_depth
def test_a_copied_method_belongs_to_the_copied_layer(depth):
    """Copied by itself a method is the same one, deeply or by pickle a twin's."""
    proxy = stack(Engine(), depth)
    method = proxy.start
    twins = [copy.deepcopy(method), pickle.loads(pickle.dumps(method))]  # noqa: S301
    layer, twin = copy.deepcopy((proxy, method))

    assert copy.copy(method) is method
    assert all(twin.__self__ is not proxy for twin in twins)
    assert all(twin("key")[0] == unwrap(proxy) for twin in twins)
    assert proxy.calls == ()
    assert twin.__self__ is layer


def test_a_class_of_any_kind_can_advise_any_path():
    """The name on the target may be another one."""
    car = Car(Engine())

    assert car.go("key") == (car.engine, "key", 1, False)
    assert car.calls == ((("key",), {}),)
    assert car.go.__name__ == "start"


@each_kind
def test_advice_is_the_classs_own_business(kind):
    """It is no forwarded attribute, and is found on the class with its docstring."""
    verify(kind(Engine()))

    assert "start" not in forwarded_attributes(kind)
    assert kind.start is vars(kind)["start"]
    assert kind.start.advice is noted
    assert kind.start.__doc__ == "Note the call and make it."


@each_kind
def test_a_subclass_may_override_and_call_the_advised_method(kind):
    """As any other method."""
    metaclass = type(kind)

    def start(self, *args):
        return "overridden", super(cls, self).start(*args)

    cls = metaclass("Sub", (kind,), {"start": start})
    layer = cls(Engine())

    assert layer.start("key") == ("overridden", (unwrap(layer), "key", 1, False))
    assert len(layer.calls) == 1
    verify(metaclass("Without", (kind,), {"start": None})(Engine()))


@each_depth
def test_errors_of_the_target_pass(depth):
    """A missing method, and one that misses something."""
    proxy = stack(Engine(), depth)

    with pytest.raises(AttributeError, match="no attribute 'absent_method'"):
        proxy.absent_method("key")
    with pytest.raises(AttributeError, match="'Engine' object has no attribute 'abs"):
        proxy.faulty()
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        proxy.start()
    assert not hasattr(proxy, "absent_method")


@pytest.mark.parametrize("path", ["a..b", "1x", "m.", "a b", "class.x"])
def test_a_wrong_path_is_refused_where_it_is_written(path):
    """On every version of Python, and before the class is made."""
    with pytest.raises(ForwardingError, match="a path is attribute names joined by"):
        around(path=path)


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("start", {}, r"Bad.start names no target, and Bad declares none"),
        (
            "start",
            {"path": "start.x"},
            r"Bad.start is forwarded to 'start.x', which leads back",
        ),
        (
            "__iadd__",
            {"to": "engine"},
            r"Bad.__iadd__ cannot be forwarded: 'bad \+= x' would",
        ),
        ("__init__", {"to": "engine"}, r"Bad.__init__ cannot be forwarded: it builds"),
    ],
)
def test_what_cannot_be_forwarded_cannot_be_advised(name, place, message):
    """The rules and the messages are those of declarations."""
    with pytest.raises(ForwardingError, match=f"^{message}"):
        type("Bad", (Forwarding,), {name: around(**place)(noted)})

    with pytest.raises((ForwardingError, RuntimeError)) as caught:
        type("Bad", (), {name: around(**place)(noted)})
    error = caught.value if sys.version_info >= (3, 12) else caught.value.__cause__
    assert isinstance(error, ForwardingError)
