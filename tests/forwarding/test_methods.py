"""Methods keep their sort, their signature and the wrapper's work."""

import asyncio
import functools
import inspect
import sys
import typing

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    Wrapper,
    forwarded,
    forwarded_attributes,
    target,
)


class Feed:
    """Methods of every sort."""

    def __init__(self):
        self.closed = []

    def plain(self, first, /, second=2, *rest, key, flag=True, **more):
        """Take everything."""
        return first, second, rest, key, flag, more

    def rows(self, count):
        try:
            for row in range(count):
                got = yield row
                if got is not None:
                    yield ("got", got)
        except KeyError as error:
            yield ("thrown", error.args)
        finally:
            self.closed.append("rows")
        return "end"

    async def later(self, value):
        return value

    async def ticks(self, count):
        try:
            for tick in range(count):
                got = yield tick
                if got is not None:
                    yield ("got", got)
        except KeyError as error:
            yield ("thrown", error.args)
        finally:
            self.closed.append("ticks")

    @staticmethod
    def fixed(size: int) -> "int":
        return size

    @classmethod
    def made(cls, size):
        return cls, size

    def marked(self):
        return self.later("marked")

    def fluent(self):
        return self

    async def fluent_later(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed.append("with")


if sys.version_info >= (3, 12):
    inspect.markcoroutinefunction(Feed.marked)


class Fed(Wrapper[Feed], forward=Feed):
    pass


def stack(depth, cls=Fed):
    top = feed = Feed()
    for _ in range(depth):
        top = cls(top)
    return top, feed


each_depth = pytest.mark.parametrize("depth", [1, 2, 3])
SORTS = {
    "plain": set(),
    "rows": {"isgeneratorfunction"},
    "later": {"iscoroutinefunction"},
    "ticks": {"isasyncgenfunction"},
    "made": set(),
}
ASKED = ("isgeneratorfunction", "iscoroutinefunction", "isasyncgenfunction")


@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize("of", [Fed, Fed(Feed())], ids=["class", "object"])
def test_inspect_gives_the_same_answers_as_for_the_target(name, of):
    """pytest, FastAPI and task servers dispatch on them."""
    method = getattr(of, name)

    assert {ask for ask in ASKED if getattr(inspect, ask)(method)} == SORTS[name]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="marks are of 3.12")
def test_a_function_that_is_marked_as_a_coroutine_function_stays_marked():
    """The mark says what its code does not."""
    assert inspect.iscoroutinefunction(Fed.marked)
    assert asyncio.run(Fed(Feed()).marked()) == "marked"


@each_depth
def test_a_generator_is_the_targets_in_all_its_ways(depth):
    """next, send, throw, close and the value of the return."""
    top, feed = stack(depth)
    rows = top.rows(2)
    assert (next(rows), rows.send("hi"), next(rows)) == (0, ("got", "hi"), 1)
    with pytest.raises(StopIteration, match="end"):
        next(rows)
    thrown = top.rows(3)
    next(thrown)
    assert thrown.throw(KeyError("x")) == ("thrown", ("x",))
    closed = top.rows(3)
    next(closed)
    closed.close()

    assert feed.closed == ["rows", "rows"]
    thrown.close()
    assert len(feed.closed) == 3


@each_depth
def test_an_asynchronous_generator_is_the_targets_in_all_its_ways(depth):
    """There is no ``yield from`` for it; each way in is passed on."""

    async def use():
        top, feed = stack(depth)
        assert [tick async for tick in top.ticks(3)] == [0, 1, 2]
        ticks = top.ticks(2)
        assert await anext(ticks) == 0
        assert await ticks.asend("hi") == ("got", "hi")
        assert await anext(ticks) == 1
        with pytest.raises(StopAsyncIteration):
            await anext(ticks)
        thrown = top.ticks(3)
        await anext(thrown)
        assert await thrown.athrow(KeyError("x")) == ("thrown", ("x",))
        await thrown.aclose()
        closed = top.ticks(3)
        await anext(closed)
        await closed.aclose()
        return feed.closed

    assert asyncio.run(use()) == ["ticks"] * 4


@pytest.mark.parametrize("name", ["plain", "rows", "later", "ticks", "made", "fixed"])
def test_a_signature_is_the_targets(name):
    """On the object; with self, on the class."""
    bound = inspect.signature(getattr(Feed(), name))
    assert inspect.signature(getattr(Fed(Feed()), name)) == bound


def test_unwrapping_does_not_skip_the_layer():
    """Nothing of the target is reached by ``__wrapped__`` of a method."""
    assert inspect.unwrap(Fed.plain) is Fed.plain
    assert not hasattr(Fed.rows, "__wrapped__")


def test_annotations_in_quotes_are_evaluated_where_they_were_written():
    """The wrapper's module need not know the names."""

    class Local:
        def start(self, key: "typing.Any", other: "Nowhere") -> "Feed":  # noqa: F821
            """Not all of it can be evaluated."""

        def stop(self) -> "Feed":
            """All of it can."""

    class Car(Wrapper[Local], forward=Local):
        pass

    assert typing.get_type_hints(Car.stop) == {"return": Feed}
    assert inspect.get_annotations(Car.start)["other"] == "Nowhere"


class Exact(Wrapper[Feed], forward=Feed, exact=True):
    pass


@each_depth
def test_an_exact_method_takes_what_the_target_takes(depth):
    """Every sort of parameter, with the target's own defaults."""
    top, _ = stack(depth, Exact)

    assert top.plain(1, key=3) == (1, 2, (), 3, True, {})
    assert top.plain(1, 4, 5, key=3, flag=False, x=6) == (
        1,
        4,
        (5,),
        3,
        False,
        {"x": 6},
    )
    assert (top.fixed(4), top.made(size=5)) == (4, (Feed, 5))
    assert list(top.rows(count=2)) == [0, 1]
    assert asyncio.run(top.later(value=3)) == 3
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument"):
        top.plain(1)


def test_an_exact_method_packs_nothing():
    """It is the code that a person writes who knows the signature."""
    code = Exact.fixed.__code__

    assert code.co_varnames == ("self", "size")
    assert not code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    assert "def plain(self, first, /, second=plain_second, *rest, key," in (
        inspect.getsource(Exact.plain)
    )


class Parameters:
    def first(self, a, /):
        return a

    def last(self, *, key=1):
        return key

    def mixed(self, a, /, b, *, key, **more):
        return a, b, key, more


def test_exact_methods_have_every_form_of_parameter_list():
    """Stars and slashes where they belong."""

    class All(Wrapper[Parameters], forward=Parameters, exact=True):
        pass

    every = All(Parameters())
    for name in ("first", "last", "mixed"):
        assert inspect.signature(getattr(every, name)) == (
            inspect.signature(getattr(Parameters(), name))
        )

    assert (every.first(1), every.last(), every.last(key=2)) == (1, 1, 2)
    assert every.mixed(1, b=2, key=3, x=4) == (1, 2, 3, {"x": 4})


def test_exact_needs_a_signature_with_values():
    """A Protocol that leaves a default out does not say what to pass."""

    class Says(typing.Protocol):
        def reset(self, seed: int = ...) -> int: ...

    class Fixed(typing.Protocol):
        def reset(self, seed: int = 3) -> int: ...

    class Resets:
        def reset(self, seed=0):
            return seed

    class Works(Forwarding, to="inner", forward=Fixed, exact=True):
        inner = None

    works = Works()
    works.inner = Resets()
    assert works.reset() == 3
    with pytest.raises(ForwardingError, match=r"Car.reset: .* value of seed=\.\.\."):

        class Car(Forwarding, to="inner", forward=Says, exact=True):
            pass


def test_exact_is_refused_where_nothing_is_known():
    """Neither a builtin nor an unknown target has a signature to repeat."""
    with pytest.raises((ForwardingError, RuntimeError)) as caught:

        class Car(Wrapper[list]):
            append = Forwarded(exact=True)

    assert "needs a method written in Python" in str(caught.value)


def test_what_returns_the_wrapper_is_a_method():
    """Where nothing else tells."""
    car = type("Car", (Wrapper,), {"fluent": Forwarded(returns="wrapper")})(Feed())

    assert car.fluent() is car
    car.fluent = len
    assert "fluent" not in vars(car.__wrapped__)


class Fluent(Forwarding):
    inner = target(Feed)
    fluent = forwarded(inner.fluent, returns="wrapper")
    fluent_later = forwarded(inner.fluent_later, returns="wrapper")
    plain = forwarded(inner.plain, returns="wrapper")
    __enter__ = Forwarded(returns="wrapper")
    __exit__ = Forwarded()

    def __init__(self, inner):
        self.inner = inner


@each_depth
def test_a_method_that_returns_its_owner_returns_the_layer(depth):
    """So that a chain of calls does not lose the wrapper."""
    top, feed = stack(depth, Fluent)

    assert top.fluent() is top
    assert asyncio.run(top.fluent_later()) is top
    assert top.plain(1, key=2)[0] == 1
    with top as entered:
        assert entered is top
    assert feed.closed == ["with"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"returns": "target"}, "returns must be 'wrapper' or None, got 'target'"),
        ({"returns": "wrapper", "kind": "data"}, "returns= and exact= are for methods"),
        ({"exact": True, "kind": "data"}, "returns= and exact= are for methods"),
        ({"get": str, "kind": "method"}, "get=, set= and default= are for data"),
        ({"default": 1, "kind": "method"}, "get=, set= and default= are for data"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(options, message):
    """On the class that declares, with the name."""
    with pytest.raises(ForwardingError, match=message):
        type("Car", (Wrapper,), {"x": Forwarded(**options)})


class Settable(Wrapper[Feed]):
    closed = Forwarded()

    @closed.setter
    def closed(self, value):
        self.__wrapped__.closed = [value]


def test_one_accessor_can_be_ones_own():
    """The natural extension of a declaration that becomes a property."""
    settable = Settable(Feed())
    settable.closed = 3

    assert settable.closed == [3]
    del settable.closed
    assert not hasattr(settable.__wrapped__, "closed")
    assert "closed" not in forwarded_attributes(Settable)


def test_every_accessor_can_be_ones_own():
    """As for a property, in any order."""

    class Car:
        rpm = Forwarded(to="engine", doc="Turns.")

        @rpm.deleter
        def rpm(self):
            self.log = "deleted"

        @rpm.getter
        def rpm(self):
            return self.engine.rpm + 1

    car = Car()
    car.engine = Feed()
    car.rpm = 1
    del car.rpm

    assert (car.rpm, car.log, Car.rpm.__doc__) == (2, "deleted", "Turns.")


def test_a_method_has_no_setter_to_replace():
    """It is set on the layer."""
    with pytest.raises(ForwardingError, match="a setter of its own is for data"):

        class Car(Wrapper[Feed]):
            plain = Forwarded()

            @plain.setter
            def plain(self, value):
                pass


def test_a_declaration_on_a_finished_class_does_not_break_hasattr():
    """Nothing installs it there, and nothing but an AttributeError says so."""

    class Car(Wrapper):
        pass

    Car.rpm = Forwarded()

    assert not hasattr(Car(Feed()), "rpm")
    with pytest.raises(ForwardingError, match="was not installed"):
        Car(Feed()).rpm  # noqa: B018


class Built:
    """Methods that something other than a plain ``def`` makes."""

    def paint(self, hue, gloss=2):
        """Paint it."""
        return self, hue, gloss

    red = functools.partialmethod(paint, "red")

    @functools.cache  # noqa: B019 -- People do.
    def price(self, year=1):
        """Look the price up."""
        return self, year

    @staticmethod
    @functools.cache
    def unit(of):
        """Name the unit."""
        return of

    @functools.singledispatchmethod
    def scale(self, by: int):
        """Scale it."""
        return self, by


class Rebuilt(Wrapper[Built], forward=Built): ...


@pytest.mark.parametrize(
    ("name", "signature", "doc"),
    [
        ("red", "(gloss=2)", "Paint it."),
        ("price", "(year=1)", "Look the price up."),
        ("unit", "(of)", "Name the unit."),
        ("scale", "(by: int)", "Scale it."),
    ],
)
def test_what_functools_makes_of_a_method_keeps_its_signature_and_docstring(
    name, signature, doc
):
    """Of a partial, cached or dispatching method, it is what the call takes."""
    rebuilt = Rebuilt(Built())
    method = getattr(rebuilt, name)

    assert str(inspect.signature(method)) == signature
    assert inspect.getdoc(method) == doc
    assert method(7) == getattr(rebuilt.__wrapped__, name)(7)
