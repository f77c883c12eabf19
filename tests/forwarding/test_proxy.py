"""Transparent proxies: what passes, what stays, and how they are copied."""

import asyncio
import contextlib
import io
import math
import operator
import os
import pathlib
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, strategies as st

from forwarding import (
    Forwarded,
    ForwardingError,
    chain,
    forwarded_attributes,
    owner_of,
    unwrap,
    verify,
)
from forwarding.proxy import TransparentProxy


class Engine:
    """An engine."""

    limit = 7

    def __init__(self):
        self.rpm = 900

    def start(self, key):
        return self, key

    def faulty(self):
        return self.absent

    def __eq__(self, other):
        return isinstance(other, Engine) and vars(self) == vars(other)

    __hash__ = None


class Plain(TransparentProxy):
    pass


class Labelled(TransparentProxy[Any]):
    """A proxy with names of its own: annotated, with a value, and computed."""

    label: str
    count: int = 0
    rpm = Forwarded()

    @property
    def broken(self):
        return self.absent

    @property
    def raising(self):
        raise AttributeError("raised on purpose")


each_depth = pytest.mark.parametrize("depth", [1, 2, 3])


def stack(target, depth, cls=Labelled):
    for _ in range(depth):
        target = cls(target)
    return target


UNARY = [
    abs,
    bool,
    complex,
    float,
    hash,
    int,
    math.ceil,
    math.floor,
    math.trunc,
    operator.index,
    operator.inv,
    operator.neg,
    operator.pos,
    round,
    str,
    "{:>9}".format,
]
BINARY = [
    divmod,
    operator.add,
    operator.and_,
    operator.eq,
    operator.floordiv,
    operator.ge,
    operator.gt,
    operator.le,
    operator.lt,
    operator.mod,
    operator.mul,
    operator.ne,
    operator.or_,
    operator.sub,
    operator.truediv,
    operator.xor,
]
IN_PLACE = [
    operator.iadd,
    operator.iand,
    operator.ifloordiv,
    operator.imod,
    operator.imul,
    operator.ior,
    operator.isub,
    operator.itruediv,
    operator.ixor,
]
numbers = st.integers(-99, 99)
layers = st.integers(1, 3)


@given(numbers, layers, st.sampled_from(UNARY))
def test_an_operator_gives_what_it_gives_on_the_target(number, depth, operation):
    """Python looks special methods up on the class, so the class has them."""
    assert operation(stack(number, depth)) == operation(number)


@given(numbers, numbers.filter(bool), layers, st.sampled_from(BINARY))
def test_both_operands_may_be_proxies(left, right, depth, operation):
    """Unlike a declared operator, a proxy's knows that the other is one too."""
    result = operation(left, right)

    assert operation(stack(left, depth), right) == result
    assert operation(left, stack(right, depth)) == result
    assert operation(stack(left, depth), stack(right, depth)) == result


@given(numbers, numbers.filter(bool), st.sampled_from(IN_PLACE))
def test_an_in_place_operator_leaves_a_proxy_and_no_trace(left, right, operation):
    """``proxy += 1`` is a proxy with the same names of its own; others keep theirs."""
    before = Labelled(left)
    before.label = "mine"
    after = operation(before, right)

    assert (before, after) == (left, operation(left, right))
    assert type(after) is Labelled
    assert after.label == "mine"
    assert after.__doc__ == unwrap(after).__doc__
    assert unwrap(before) == left


@given(st.lists(st.integers(), min_size=1), layers)
def test_a_container_works_through_a_proxy(items, depth):
    """Length, items, membership, iteration, and changes in place."""
    target = list(items)
    proxy = stack(target, depth)
    proxy += [7]
    proxy[0] = 8

    assert unwrap(proxy) is target
    assert target == [8, *items[1:], 7]
    assert (len(proxy), [*proxy], [*reversed(proxy)]) == (
        len(target),
        target,
        target[::-1],
    )
    assert 7 in proxy
    del proxy[0]
    assert proxy == target == [*items[1:], 7]


class ByIndex:
    """Iterable by the old protocol: items 0, 1, 2."""

    def __getitem__(self, index):
        return range(3)[index]


class NotIterable:
    """Says in Python's way that it is not."""

    __iter__ = None


@each_depth
def test_what_is_read_by_index_is_iterable(depth):
    """As for a map-style dataset, ``__iter__`` is not needed, nor is it made up."""
    proxy = stack(ByIndex(), depth)

    assert [*proxy] == [0, 1, 2]
    assert not hasattr(proxy, "__iter__")


@each_depth
@pytest.mark.parametrize("target", [Engine(), NotIterable(), 7])
def test_what_is_not_iterable_callable_or_awaitable_is_not_so_by_proxy(target, depth):
    """No special method is claimed that the target lacks."""
    proxy = stack(target, depth, Plain)

    with pytest.raises(TypeError):
        list(proxy)
    assert not callable(proxy)
    assert not hasattr(proxy, "__await__")
    assert type(proxy) is Plain


@each_depth
def test_calls_iterators_and_awaitables_work(depth):
    """They get the special methods that make them so."""

    async def seven():
        return 7

    async def awaited():
        return await stack(seven(), depth)

    async def collected():
        return [item async for item in stack(counting(), depth)]

    async def counting():
        yield 7

    iterator = stack(iter([7, 8]), depth)

    assert stack(divmod, depth)(7, 2) == (3, 1)
    assert (next(iterator), [*iterator]) == (7, [8])
    assert asyncio.run(awaited()) == 7
    assert asyncio.run(collected()) == [7]


@each_depth
def test_paths_contexts_and_hints_work(depth):
    """What few classes have works like the rest."""
    file = io.StringIO("text")
    with stack(file, depth) as opened:
        assert opened.read() == "text"

    assert file.closed
    assert os.fspath(stack(pathlib.Path("a"), depth)) == "a"
    assert operator.length_hint(stack(iter([7]), depth)) == 1


def test_a_proxy_of_another_target_can_do_what_that_one_can():
    """Assigning ``__wrapped__`` is seen by every special method."""
    proxy = Labelled(Engine())
    proxy.label = "mine"
    proxy.__wrapped__ = len

    assert proxy([7]) == 1
    assert proxy.label == "mine"
    proxy.__wrapped__ = Engine()
    assert not callable(proxy)
    assert type(proxy) is Labelled


def test_a_special_method_of_the_class_wins():
    """The proxy's own definition is not replaced by the target's."""

    class Twice(TransparentProxy):
        def __iter__(self):
            return (2 * item for item in self.__wrapped__)

        def __getitem__(self, index):
            return 2 * self.__wrapped__[index]

    assert [*Twice([1, 2])] == [2, 4]
    assert [*Twice([1, 2])] == [*map(Twice(ByIndex()).__getitem__, [1, 2])]


def test_a_subclass_is_not_taken_for_its_base():
    """Each has a class of its own for the targets that it meets."""

    class Sub(Labelled):
        pass

    assert not isinstance(Labelled([]), Sub)
    assert isinstance(Sub([]), Sub)


@each_depth
def test_a_proxy_is_an_instance_of_both_classes(depth):
    """``isinstance`` sees the target's class, ``type`` the proxy's."""
    proxy = stack([], depth)

    assert isinstance(proxy, list)
    assert isinstance(proxy, Labelled)
    assert not isinstance(proxy, dict)
    assert type(proxy).__name__ == "Labelled"
    assert type(proxy).__module__ == __name__
    assert type(proxy).__doc__ == Labelled.__doc__
    assert chain(proxy)[-1] == []
    assert len(chain(proxy)) == depth + 1


@each_depth
def test_unknown_names_are_got_set_and_deleted_on_the_target(depth):
    """Nothing is left on any layer."""
    engine = Engine()
    proxy = stack(engine, depth)
    proxy.oil = object()

    assert proxy.oil is engine.oil
    del proxy.oil
    assert vars(engine) == {"rpm": 900}
    assert not hasattr(proxy, "oil")
    assert not any("oil" in layer.__self_dict__ for layer in chain(proxy)[:-1])
    with pytest.raises(AttributeError, match="'Engine' object has no attribute 'oil'"):
        _ = proxy.oil
    with pytest.raises(AttributeError, match="oil"):
        del proxy.oil


def test_names_of_the_class_stay_on_the_proxy():
    """With a value or a bare annotation, as for any class."""
    engine = Engine()
    proxy = Labelled(engine)
    with pytest.raises(AttributeError, match="'Labelled' object has no attribute 'lab"):
        _ = proxy.label
    with pytest.raises(AttributeError, match="label"):
        del proxy.label
    proxy.label = "mine"
    proxy.count += 1

    assert (proxy.label, proxy.count, Labelled.count) == ("mine", 1, 0)
    assert vars(engine) == {"rpm": 900}
    del proxy.label, proxy.count
    assert proxy.count == 0
    assert not hasattr(proxy, "label")
    assert "label" in dir(Labelled)
    assert Labelled.label is vars(Labelled)["label"]


@each_depth
def test_a_declared_attribute_is_one(depth):
    """The tools of the framework see it; so do patches."""
    engine = Engine()
    proxy = stack(engine, depth)
    verify(proxy)
    with mock.patch.object(proxy, "rpm", 1):
        assert engine.rpm == 1

    assert proxy.rpm == engine.rpm == 900
    assert owner_of(proxy, "rpm") == (engine, "rpm")
    assert str(forwarded_attributes(type(proxy))["rpm"]) == "__wrapped__.rpm"


@each_depth
def test_an_error_in_a_property_is_not_taken_for_a_missing_name(depth):
    """The message names what is really absent, even if the target has the property."""
    proxy = stack(Engine(), depth)

    with pytest.raises(AttributeError, match="raised on purpose"):
        _ = proxy.raising
    with pytest.raises(AttributeError, match="'Engine' object has no attribute 'abs"):
        _ = proxy.broken
    with pytest.raises(AttributeError, match="'Engine' object has no attribute 'abs"):
        proxy.faulty()


def test_a_name_of_the_metaclass_is_the_targets_business():
    """``type`` has ``mro``, which instances of a class do not."""
    engine = Engine()
    engine.mro = 7

    assert Plain(engine).mro == 7
    with pytest.raises(AttributeError, match="'int' object has no attribute 'mro'"):
        _ = Plain(7).mro


def test_output_shows_the_proxy_in_repr_only():
    """``str`` and ``format`` are for users, who see the target."""
    assert repr(stack([1], 2)) == "Labelled(Labelled([1]))"
    assert str(stack([1], 2)) == f"{stack([1], 2)}" == "[1]"
    assert stack(Engine(), 3).__doc__ == "An engine."
    assert {"label", "rpm", "faulty"} <= set(dir(stack(Engine(), 2)))


def test_slots_are_refused_with_the_remedy():
    """A copy would lose what they hold; an empty tuple holds nothing."""
    with pytest.raises(ForwardingError, match=r"^Slotted declares __slots__; annotate"):
        type(Plain)("Slotted", (TransparentProxy,), {"__slots__": ("label",)})

    assert type(Plain)("Bare", (TransparentProxy,), {"__slots__": ()})([1]) == [1]


def test_what_forwarding_checks_is_checked():
    """What would cut a forwarding, or cannot be forwarded, is refused."""
    metaclass = type(Labelled)

    with pytest.raises(ForwardingError, match="would hide the forwarding of 'rpm'"):
        metaclass("Hiding", (Labelled,), {"rpm": 7})
    with pytest.raises(ForwardingError, match=r"Wrong.__init__ cannot be forwarded"):
        metaclass("Wrong", (TransparentProxy,), {"__init__": Forwarded()})


ASKING = {
    "__len__": len,
    "__getitem__": lambda thing: thing[0],
    "__contains__": lambda thing: 0 in thing,
    "__reversed__": reversed,
    "__enter__": contextlib.ExitStack().enter_context,
}


@each_depth
@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize(
    "target",
    [[0], {0: 1}, "0", {0}, object(), io.StringIO("0"), Engine()],
)
def test_a_proxy_has_a_special_method_exactly_if_its_target_has(target, name, depth):
    """To hasattr, and to the language, which raises TypeError where it is missing."""
    proxy = stack(target, depth, Plain)
    use = ASKING[name]

    # Python iterates where a membership test or reversed() has no method of its own.
    if name not in ("__contains__", "__reversed__"):
        assert hasattr(proxy, name) is hasattr(target, name)
    if name != "__enter__":
        assert outcome(use, proxy) == outcome(use, target)
    elif not hasattr(target, name):
        with pytest.raises(TypeError):
            use(proxy)


def outcome(use, thing):
    try:
        result = use(thing)
    except (LookupError, TypeError) as error:
        return [base for base in (LookupError, TypeError) if isinstance(error, base)]
    return list(result) if hasattr(result, "__next__") else result


@each_depth
def test_a_special_method_of_the_proxy_itself_is_kept(depth):
    """Whatever the target has."""

    class Sized(TransparentProxy):
        def __len__(self):
            return 7

    assert len(stack(object(), depth, Sized)) == len(stack([1], depth, Sized)) == 7


@each_depth
def test_a_with_statement_binds_the_proxy(depth):
    """Where the target would bind itself; or else what it does bind."""

    class Counted(TransparentProxy):
        count = 0

        def write(self, text):
            self.count += 1
            return self.__wrapped__.write(text)

    counted = stack(io.StringIO(), depth, Counted)
    with counted as file:
        file.write("a")

    assert file is counted
    assert counted.count == 1
    with stack(contextlib.nullcontext(3), depth, Counted) as other:
        assert other == 3


def test_a_temporary_proxy_lives_as_long_as_its_iteration():
    """``for line in Temp(file)`` must not close the file (tempfile does the same)."""

    class Closing(TransparentProxy):
        def __del__(self):
            self.__wrapped__.close()

    assert [*iter(Closing(io.StringIO("a\nb\n")))] == ["a\n", "b\n"]


def test_a_computed_target_is_refused():
    """Operators would go on asking the one that wrapt holds (wrapt#121, wrapt#346)."""
    with pytest.raises(
        ForwardingError, match="Current defines __wrapped__, which operat"
    ):

        class Current(TransparentProxy):
            @property
            def __wrapped__(self):
                return 1
