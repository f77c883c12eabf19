"""``target`` and ``forwarded``: paths that are recorded instead of spelled."""

import dataclasses

import pytest
from hypothesis import given, strategies as st

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    Wrapper,
    forwarded,
    forwarded_attributes,
    target,
)


class Gearbox:
    def __init__(self):
        self.ratio = 1


class Engine:
    _torque = 3

    def __init__(self):
        self.gearbox = Gearbox()

    def start(self):
        return self


class Car:
    engine = target(Engine)
    ratio = forwarded(engine.gearbox.ratio)
    start = forwarded(engine.start)
    torque = forwarded(engine._torque, set=False)

    def __init__(self, engine):
        self.engine = engine


names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True).filter(
    lambda name: name.isidentifier() and not name.startswith("__")
)


@given(st.lists(names, min_size=1, max_size=5))
def test_a_recorded_path_is_the_spelled_path(path):
    """Any attribute access is recorded, whatever a property would answer to."""
    inner = target(Engine)
    attribute = inner
    for name in path:
        attribute = getattr(attribute, name)
    cls = type("W", (), {"inner": inner, "x": forwarded(attribute)})

    assert str(forwarded_attributes(cls)["x"]) == ".".join(["inner", *path])


def test_names_that_a_property_has_are_recorded_too():
    """A target may well have a ``setter`` or ``fget``."""

    class Odd:
        inner = target(object)
        a = forwarded(inner.setter)
        b = forwarded(inner.fget.getter)

    assert [str(spec) for spec in forwarded_attributes(Odd).values()] == [
        "inner.setter",
        "inner.fget.getter",
    ]


def test_typed_declarations_forward():
    """They are the same as the spelled ones."""
    car = Car(Engine())
    car.ratio = 2

    assert car.engine.gearbox.ratio == 2
    assert car.start() is car.engine
    assert car.torque == 3
    with pytest.raises(AttributeError):
        car.torque = 4


def test_a_target_is_gone_when_the_class_is_made():
    """Its name belongs to the instance."""
    assert "engine" not in vars(Car)
    assert not hasattr(Car, "engine")


def test_a_path_kept_in_the_class_body_serves_and_goes():
    """A long path may be given a name."""

    class Short:
        engine = target(Engine)
        box = engine.gearbox
        ratio = forwarded(box.ratio)

    assert str(forwarded_attributes(Short)["ratio"]) == "engine.gearbox.ratio"
    assert not hasattr(Short, "box")


def test_a_target_may_be_a_wrappers_own():
    """Typed declarations work in a Wrapper."""

    class Typed(Wrapper[Engine]):
        __wrapped__ = target(Engine)
        ratio = forwarded(__wrapped__.gearbox.ratio)
        start = Forwarded()

    engine = Engine()
    typed = Typed(engine)

    assert (typed.ratio, typed.start()) == (1, engine)


def test_a_private_target_is_mangled_by_python():
    """``self.__engine`` and ``__engine = target(...)`` are one name."""

    class Private:
        __engine = target(Engine)
        ratio = forwarded(__engine.gearbox.ratio)

        def __init__(self, engine):
            self.__engine = engine

    assert Private(Engine()).ratio == 1


def test_a_target_below_the_declarations_is_found():
    """The order in a class body does not matter for paths in words."""

    class Upside:
        start = Forwarded(to="engine")
        stop = Forwarded()
        engine = target(Engine)

    specs = forwarded_attributes(Upside)
    assert specs["start"].kind == "method"
    assert str(specs["stop"]) == "engine.stop"


def test_a_generic_class_can_be_a_target():
    """``target(list[int])`` is a list at run time."""

    class Stack(Forwarding):
        items = target(list[int])
        push = forwarded(items.append)

        def __init__(self):
            self.items = []

    stack = Stack()
    stack.push(1)

    assert stack.items == [1]


def test_a_subclass_can_declare_more_of_an_inherited_target():
    """By a path in words, whose kind the inherited target still tells."""

    class Loud(Car):
        again = Forwarded(path="engine.start")

    assert forwarded_attributes(Loud)["again"].kind == "method"


def test_a_dataclass_field_may_be_a_typed_target():
    """The annotation makes a field without default; the target gives the types."""

    @dataclasses.dataclass
    class Data:
        engine: Engine = target(Engine)  # noqa: RUF009
        gearbox = forwarded(engine.gearbox)

    data = Data(Engine())
    data.gearbox = None

    assert [field.name for field in dataclasses.fields(Data)] == ["engine"]
    assert data.engine.gearbox is None
    with pytest.raises(TypeError):
        Data()


@pytest.mark.parametrize(
    "value",
    ["inner.x", None, 3, target(Engine)],
    ids=["path", "None", "number", "target"],
)
def test_forwarded_takes_only_attributes_of_a_target(value):
    """The message shows both spellings."""
    with pytest.raises(
        ForwardingError,
        match=r"as in forwarded\(inner\.x\), got .*; spell a path as Forwarded",
    ):
        forwarded(value)


@pytest.mark.parametrize("value", ["Engine", Engine(), None])
def test_a_target_is_declared_by_its_class(value):
    """An instance or a name tells no attribute from a method."""
    with pytest.raises(ForwardingError, match="takes the class of the target"):
        target(value)


def test_special_methods_are_declared_by_a_path_in_words():
    """Their names mean something to Python, so they are not recorded."""
    with pytest.raises(AttributeError, match="__len__"):
        target(list).__len__  # noqa: B018
