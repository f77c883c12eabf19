"""Methods are told from data by everything that is known, or by the live target."""

import dataclasses
import sys
import types
import typing
from functools import cached_property
from typing import Annotated, Any, Generic, NewType, Optional, TypeVar, Union

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    ForwardingMeta,
    Wrapper,
    forwarded_attributes,
    verify,
)


class Engine:
    rpm: int

    def __init__(self):
        self.rpm = 900

    def start(self):
        return "started"


class Turbine:
    rpm = 1

    def start(self):
        return "spun up"


class Poster:
    """Where "start" is no method."""

    start = "an old car"


E = TypeVar("E", bound=Engine)
Q = TypeVar("Q", bound="Engine")
EITHER = TypeVar("EITHER", Engine, Turbine)
K = TypeVar("K")
Known = NewType("Known", Engine)


def field():
    @dataclasses.dataclass
    class Car:
        engine: Engine
        start = Forwarded(to="engine")

    return Car


def quoted_field():
    @dataclasses.dataclass
    class Car:
        engine: "Engine"
        start = Forwarded(to="engine")

    return Car


def plain_annotation(annotation):
    def make():
        class Car(Forwarding, to="engine", forward="start rpm"):
            engine: annotation

            def __init__(self, engine):
                self.engine = engine

        return Car

    return make


def result_of_a_property():
    class Car:
        start = Forwarded(to="engine")

        def __init__(self, engine):
            self._engine = engine

        @property
        def engine(self) -> Engine:
            return self._engine

    return Car


def result_of_a_cached_property():
    class Car:
        start = Forwarded(to="engine")

        def __init__(self, engine):
            self._engine = engine

        @cached_property
        def engine(self) -> "Engine":
            return self._engine

    return Car


def argument_of_init():
    class Car:
        start = Forwarded(to="engine")

        def __init__(self, engine: Engine):
            self.engine = engine

    return Car


def value_in_the_body():
    class Car:
        engine = Engine()
        start = Forwarded(to="engine")

        def __init__(self, engine):
            self.engine = engine

    return Car


def own_base():
    class Car(Forwarding, Engine, to="engine", forward="start rpm"):
        def __init__(self, engine):
            self.engine = engine

    return Car


def own_base_by_metaclass():
    class Car(Engine, metaclass=ForwardingMeta, to="engine", forward="start rpm"):
        def __init__(self, engine):
            self.engine = engine

    return Car


def bound():
    class Car(Wrapper[E], forward="start rpm"):
        pass

    return Car


def quoted_bound():
    class Car(Wrapper[Q], forward="start rpm"):
        pass

    return Car


def constraints():
    class Car(Wrapper[EITHER], forward="start rpm"):
        pass

    return Car


def quoted():
    class Car(Wrapper["Engine"], forward="start rpm"):
        pass

    return Car


def second_parameter():
    class Named(Wrapper[E], Generic[K, E]):
        pass

    class Car(Named[str, Engine], forward="start rpm"):
        pass

    return Car


def through_a_generic_base():
    class Middle(Wrapper[E]):
        pass

    class Car(Middle[Engine], forward="start rpm"):
        pass

    return Car


def below_a_bound_base():
    class Middle(Wrapper[Engine]):
        pass

    class Car(Middle, forward="start rpm"):
        pass

    return Car


def words():
    class Car(Forwarding, to="engine", forward="rpm", methods="start"):
        def __init__(self, engine):
            self.engine = engine

    return Car


MAKERS = [
    field,
    quoted_field,
    result_of_a_property,
    result_of_a_cached_property,
    argument_of_init,
    value_in_the_body,
    own_base,
    own_base_by_metaclass,
    bound,
    quoted_bound,
    constraints,
    quoted,
    second_parameter,
    through_a_generic_base,
    below_a_bound_base,
    words,
]
ANNOTATIONS = [
    Engine,
    "Engine",
    "Engine | None",
    Optional[Engine],  # noqa: UP045
    Union[Engine, Turbine],  # noqa: UP007
    Annotated[Engine, "fast"],
    typing.Final[Engine],
    typing.ClassVar["Engine"],
    Known,
    E,
]


@pytest.mark.parametrize(
    "make",
    [*MAKERS, *map(plain_annotation, ANNOTATIONS)],
    ids=[*(make.__name__ for make in MAKERS), *map(str, ANNOTATIONS)],
)
def test_a_method_is_known_and_stays_on_the_layer(make):
    """Whatever tells it; and what is data reaches the owner."""
    cls = make()
    engine = Engine()
    car = cls(engine)
    assert forwarded_attributes(cls)["start"].kind == "method"
    car.start = lambda: "patched"

    assert (car.start(), engine.start()) == ("patched", "started")
    assert "start" not in vars(engine)
    if "rpm" in forwarded_attributes(cls):
        car.rpm = 5
        assert engine.rpm == 5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are of 3.12")
@pytest.mark.parametrize(
    "parameter", ["T: Engine", "T: 'Engine'", "T: (Engine, Turbine)"]
)
def test_the_bound_of_a_type_parameter_is_known(parameter):
    """The syntax of PEP 695, whose bounds are evaluated when they are asked for."""
    space = {
        "Wrapper": Wrapper,
        "Engine": Engine,
        "Turbine": Turbine,
        "__name__": __name__,
    }
    exec(  # noqa: S102
        f"class Car[{parameter}](Wrapper[T], forward='start'): pass\n"
        "type Alias = Engine\n"
        "class Van(Wrapper[Alias], forward='start'): pass\n",
        space,
    )

    assert forwarded_attributes(space["Car"])["start"].kind == "method"
    assert forwarded_attributes(space["Van"])["start"].kind == "method"


UNKNOWING = [Any, object, "Any", "Nowhere", None, Engine | Poster, K]


@pytest.mark.parametrize("annotation", UNKNOWING, ids=str)
def test_what_nothing_tells_is_found_out_at_the_first_assignment(annotation):
    """A method that is rebound stays on the layer, whatever its first use was."""
    cls = plain_annotation(annotation)()
    engine = Engine()
    first, second = cls(engine), cls(engine)
    assert forwarded_attributes(cls)["start"].kind == "data"
    assert first.start() == "started"
    first.start = lambda: "patched"
    first.rpm = 5

    assert (first.start(), second.start(), engine.start()) == (
        "patched",
        "started",
        "started",
    )
    assert engine.rpm == second.rpm == 5
    assert {n: s.kind for n, s in forwarded_attributes(cls).items()} == {
        "start": "method",
        "rpm": "data",
    }
    del first.start
    assert first.start() == "started"


class Pump:
    def start(self):
        return self


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_was_read_before_the_first_assignment_is_bound_to_the_layer(depth):
    """A rebound method runs with the owner as self, whichever was known first."""

    class Layer(Forwarding, to="inner", forward="start"):
        def __init__(self, inner):
            self.inner = inner

    top = pump = Pump()
    for _ in range(depth):
        top = Layer(top)
    top.start = types.MethodType(top.start.__func__, top)

    assert "start" in vars(top)
    assert top.start() is pump


def test_a_function_of_ones_own_that_is_bound_to_the_layer_is_kept():
    """It is meant to see the wrapper."""

    class Layer(Forwarding, to="inner", forward="start"):
        def __init__(self, inner):
            self.inner = inner

    layer = Layer(Pump())
    layer.start = types.MethodType(lambda self: (self, "mine"), layer)

    assert layer.start() == (layer, "mine")


def test_a_name_that_turned_out_to_be_data_costs_no_more_than_data():
    """The question is asked once; then the setter is the plain one."""

    class Car:
        rpm = Forwarded(to="engine")

        def __init__(self, engine):
            self.engine = engine

    assert "stays" in Car.rpm.fset.__code__.co_names
    Car(Engine()).rpm = 5

    assert Car.rpm.fset.__code__.co_names == ("engine", "rpm")


def test_a_name_that_no_target_has_yet_is_not_decided():
    """It is created on the owner, and the question stays open."""

    class Car:
        mode = Forwarded(to="engine")

        def __init__(self, engine):
            self.engine = engine

    engine = Engine()
    Car(engine).mode = "eco"

    assert engine.mode == "eco"


def test_the_live_target_is_asked_through_all_layers():
    """An outer layer finds out by the owner, not by the property in between."""

    class Layer:
        start = Forwarded(to="engine")
        rpm = Forwarded(to="engine")

        def __init__(self, engine):
            self.engine = engine

    engine = Engine()
    inner = Layer(engine)
    outer = Layer(inner)
    outer.start = lambda: "patched"
    outer.rpm = 7

    assert (outer.start(), inner.start()) == ("patched", "started")
    assert engine.rpm == 7


class Dynamic:
    """A target whose names come from ``__getattr__``, or from its instance."""

    def __init__(self):
        self.run = self._run
        self.callback = print

    def _run(self):
        return "ran"

    def __getattr__(self, name):
        if name == "walk":
            return self._walk
        raise AttributeError(name)

    def _walk(self):
        return "walked"


@pytest.mark.parametrize(
    ("name", "is_method"), [("run", True), ("callback", False), ("walk", True)]
)
def test_a_method_of_the_instance_is_one(name, is_method):
    """A bound method of the target itself; not a function that it holds."""
    cls = type("Outer", (), {name: Forwarded(to="inner")})
    outer, inner = cls(), Dynamic()
    outer.inner = inner
    setattr(outer, name, "new")

    assert (name in vars(outer)) is is_method


def test_verify_decides_from_the_live_target():
    """Before anything was assigned."""
    cls = plain_annotation(Any)()
    verify(cls(Engine()))

    assert forwarded_attributes(cls)["start"].kind == "method"


def test_verify_reports_a_method_that_was_taken_for_data():
    """A Protocol may say data where the target has a method."""

    class Says(typing.Protocol):
        start: str

    class Car(Forwarding, to="engine", forward=Says):
        def __init__(self, engine):
            self.engine = engine

    with pytest.raises(ForwardingError, match="'start' is a method of Engine and forw"):
        verify(Car(Engine()))
    verify(Car(Poster()))


def test_verify_lets_be_what_is_declared_as_data_on_purpose():
    """``kind="data"`` gives the owner's own bound method."""

    class Car(Wrapper[Engine]):
        start = Forwarded(kind="data")

    car = Car(Engine())
    verify(car)

    assert car.start.__self__ is car.__wrapped__


def test_a_wrapper_without_a_dict_cannot_keep_a_method():
    """As for any slotted class; and the target is left alone."""

    class Small:
        __slots__ = ("engine",)
        start = Forwarded(to="engine")

    small = Small()
    small.engine = Engine()
    with pytest.raises(AttributeError, match="read-only"):
        small.start = print

    assert "start" not in vars(small.engine)


class Starts(typing.Protocol):
    def launch(self): ...


def test_what_the_known_class_lacks_may_be_known_otherwise():
    """From an interface, a base of the wrapper, or the language."""

    class Car(Wrapper[Engine], forward=Starts):
        __len__ = Forwarded()

    class Launching:
        def launch(self):
            return "base"

    class Van(Wrapper[Engine], Launching, forward="launch"):
        pass

    assert {n: s.kind for n, s in forwarded_attributes(Car).items()} == {
        "__len__": "method",
        "launch": "method",
    }
    assert forwarded_attributes(Van)["launch"].kind == "method"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_scheduler_around_words_steps_the_layer(depth):
    """``StepLR`` rebinds step on what it is given, and must not reach the inner one."""
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Outer(
        Forwarding,
        torch.optim.Optimizer,
        to="inner",
        forward="param_groups state defaults step zero_grad",
    ):
        def __init__(self, inner):
            self.inner = inner

    top = inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    for _ in range(depth):
        top = Outer(top)
    scheduler = torch.optim.lr_scheduler.StepLR(top, 1)
    top.step()
    scheduler.step()

    assert "step" not in vars(inner)
    assert inner.param_groups[0]["lr"] == pytest.approx(0.1)
