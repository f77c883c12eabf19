"""Classes that declare in bulk, and what is refused while a class is made."""

import abc
import inspect
import sys
import typing
from collections.abc import MutableMapping
from enum import Enum
from typing import Generic, Protocol, TypeVar
from unittest import mock

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingABCMeta,
    ForwardingError,
    ForwardingMeta,
    Wrapper,
    forwarded_attributes,
    target,
)


T = TypeVar("T")


class Engine:
    """What the wrappers hold."""

    torque: float
    _secret = 1

    def __init__(self, rpm=900):
        self.rpm = rpm
        self.torque = 1.5

    def start(self, key):
        """Start with a key."""
        return self, key

    async def warm(self):
        """Take a while."""

    def __len__(self):
        return 4

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


class Startable(Protocol):
    """An interface with a method, a coroutine and data."""

    rpm: int

    def start(self, key: str) -> object: ...

    async def warm(self) -> None: ...


class AbstractStartable(abc.ABC):
    """The same as an ABC."""

    @property
    @abc.abstractmethod
    def rpm(self): ...

    @abc.abstractmethod
    def start(self, key): ...


class Holds:
    def __init__(self, engine):
        self.engine = engine


def paths(cls):
    return {name: str(spec) for name, spec in forwarded_attributes(cls).items()}


METACLASSES = [ForwardingMeta, ForwardingABCMeta]


@pytest.mark.parametrize("metaclass", METACLASSES)
def test_a_metaclass_declares_in_bulk(metaclass):
    """``to=`` and ``forward=`` are class keywords of both metaclasses."""

    class Car(Holds, metaclass=metaclass, to="engine", forward="rpm start"):
        pass

    car = Car(Engine())
    car.rpm = 1000

    assert car.engine.rpm == 1000
    assert paths(Car) == {"rpm": "engine.rpm", "start": "engine.start"}


def test_the_metaclass_leaves():
    """The class is made by ``type``, from the given bases and Forwarding."""

    class Car(Holds, metaclass=ForwardingMeta):
        rpm = Forwarded(to="engine")

    assert type(Car) is type
    assert Car.__bases__ == (Forwarding, Holds)


def test_the_mixin_is_added_once():
    """A base that has it already brings it."""

    class Car(Wrapper, metaclass=ForwardingMeta):
        pass

    class Plain(object, metaclass=ForwardingMeta):  # noqa: UP004
        pass

    class Derived(Plain, Holds, metaclass=ForwardingMeta):
        pass

    assert Car.__bases__ == (Wrapper,)
    assert Plain.__bases__ == (Forwarding,)
    assert Derived.__bases__ == (Plain, Holds)


def test_zero_argument_super_and_class_keywords_of_bases_work():
    """The class body is made by Python as for any other class."""

    class Base:
        def __init_subclass__(cls, *, flavour="", **kwargs):
            super().__init_subclass__(**kwargs)
            cls.flavour = flavour

        def __init__(self, engine):
            self.engine = engine

    class Car(
        Base, metaclass=ForwardingMeta, to="engine", forward="rpm", flavour="sweet"
    ):
        def __init__(self, engine):
            super().__init__(engine)

    assert Car(Engine(5)).rpm == 5
    assert Car.flavour == "sweet"


class Stateful(Protocol):
    def state_dict(self): ...


COMPANIONS = {
    "ABC": (abc.ABC,),
    "an ABC": (AbstractStartable,),
    "a Protocol": (Stateful,),
    "Generic": (Generic[T],),
    "an ABC and a Protocol": (AbstractStartable, Stateful),
}


@pytest.mark.parametrize("metaclass", METACLASSES)
@pytest.mark.parametrize("companions", COMPANIONS.values(), ids=COMPANIONS)
def test_a_declaring_class_is_a_base_beside_any_abc_protocol_or_generic(
    metaclass, companions
):
    """Neither metaclass conflicts with those of the standard library."""

    class Car(Holds, metaclass=metaclass, to="engine", forward="rpm start"):
        pass

    class Both(Car, *companions):
        pass

    class Reversed(*companions, Car):
        rpm = Car.rpm
        start = Car.start

    assert Both(Engine(3)).rpm == Reversed(Engine(3)).rpm == 3


@pytest.mark.parametrize("metaclass", METACLASSES)
@pytest.mark.parametrize("companions", COMPANIONS.values(), ids=COMPANIONS)
def test_a_metaclass_declares_on_top_of_any_abc_protocol_or_generic(
    metaclass, companions
):
    """What is abstract in a base is fulfilled by what is forwarded."""

    class Car(
        Holds, *companions, metaclass=metaclass, to="engine", forward="rpm start"
    ):
        pass

    assert Car(Engine(3)).rpm == 3
    assert not inspect.isabstract(Car)


def test_a_plain_metaclass_does_conflict_with_an_abc():
    """The two tests above can fail: an ordinary metaclass that stays does."""

    class Stays(type):
        pass

    class Car(metaclass=Stays):
        pass

    with pytest.raises(TypeError, match="metaclass conflict"):
        type("Both", (Car, abc.ABC), {})


def test_the_mixin_goes_with_a_metaclass_of_its_own():
    """Enum is of another family; the mixin has no metaclass to conflict."""

    class Level(Forwarding, Enum):
        LOW = 1
        HIGH = 300
        real = Forwarded(to="value")
        bits = Forwarded(path="value.bit_length", kind="method")

    assert list(Level) == [Level.LOW, Level.HIGH]
    assert (Level.HIGH.real, Level.HIGH.bits()) == (300, 9)


def test_an_enum_may_declare_a_typed_target():
    """Neither a target nor a path becomes a member."""

    class Level(Forwarding, Enum):
        LOW = 1
        number = target(int)
        part = number.real
        real = Forwarded(to="value")

    assert list(Level) == [Level.LOW]
    assert not hasattr(Level, "number")
    assert not hasattr(Level, "part")


@pytest.mark.parametrize("interface", [Startable, AbstractStartable, Engine])
def test_a_whole_interface_is_forwarded(interface):
    """A Protocol, an ABC or any class names its members."""

    class Car(Forwarding, Holds, to="engine", forward=interface):
        pass

    car = Car(Engine(3))

    assert car.rpm == 3 if interface is not Engine else car.torque == 1.5
    assert car.start("key") == (car.engine, "key")
    assert forwarded_attributes(Car)["start"].kind == "method"


def test_members_are_public_names_and_special_methods():
    """What every object has stays the wrapper's own; so does what is private."""

    class Car(Forwarding, Holds, to="engine", forward=Engine):
        pass

    specs = forwarded_attributes(Car)

    assert {name: spec.kind for name, spec in specs.items()} == {
        "rpm": "data",
        "torque": "data",
        "start": "method",
        "warm": "async method",
        "__len__": "method",
    }
    assert Car(Engine()) != Car(Engine())


def test_inherited_members_of_an_interface_are_members():
    """The abstract collections work as interfaces."""

    class Renamed(
        Forwarding, MutableMapping, to="data", forward=MutableMapping, but="popitem"
    ):
        def __init__(self, data):
            self.data = data

        def popitem(self):
            return "own"

    data = {1: 2}
    wrapper = Renamed(data)
    wrapper[3] = 4

    assert data == {1: 2, 3: 4}
    assert dict(wrapper) == data
    assert (3 in wrapper, len(wrapper), wrapper.popitem()) == (True, 2, "own")
    assert isinstance(wrapper, Renamed)


def test_the_class_body_is_an_exception_from_an_interface():
    """As in Kotlin's ``by``, what a class defines itself wins."""

    class Car(Forwarding, Holds, to="engine", forward=Startable):
        def start(self, key):
            return "own", self.engine.start(key)[1]

    assert Car(Engine()).start("key") == ("own", "key")
    assert "start" not in forwarded_attributes(Car)


def test_exceptions_are_named():
    """``but=`` takes what ``forward=`` takes."""

    class Car(
        Forwarding,
        Holds,
        to="engine",
        forward=(Engine, "rpm, extra"),
        but=("extra", AbstractStartable),
    ):
        pass

    assert sorted(paths(Car)) == ["__len__", "torque", "warm"]


def test_the_only_target_is_the_default():
    """``to=`` may be left out where one target is declared."""

    class Typed(Forwarding, forward="rpm start"):
        engine = target(Engine)

    class Loud(Wrapper[Engine], forward=Startable):
        pass

    assert paths(Typed) == {"rpm": "engine.rpm", "start": "engine.start"}
    assert forwarded_attributes(Typed)["start"].kind == "method"
    assert Loud(Engine(3)).rpm == 3


def test_bulk_declaration_works_through_a_path():
    """``to=`` is a path."""

    class Garage(Forwarding, to="car.engine", forward="rpm"):
        pass

    assert paths(Garage) == {"rpm": "car.engine.rpm"}


def test_keywords_do_not_pass_to_subclasses():
    """A subclass is not forwarded again, so its overrides survive."""

    class Car(Forwarding, Holds, to="engine", forward="rpm start"):
        pass

    class Loud(Car):
        @property
        def rpm(self):
            return "loud"

    class Louder(Loud):
        pass

    assert Louder(Engine()).rpm == "loud"
    assert paths(Louder) == {"start": "engine.start"}


def test_two_bases_that_agree_are_no_conflict():
    """One attribute, one place."""

    class A(Forwarding, to="engine", forward="rpm"):
        pass

    class B(Forwarding):
        rpm = Forwarded(to="engine", set=False)

    class Both(A, B, Holds):
        pass

    assert Both(Engine(3)).rpm == 3


def test_an_override_in_a_diamond_is_no_conflict():
    """What a class inherits twice, once overridden, is decided by inheritance."""

    class Root(Forwarding):
        lr = Forwarded(to="a")

    class Left(Root):
        lr = Forwarded(to="b")

    class Right(Root):
        pass

    class Both(Left, Right):
        pass

    assert paths(Both) == {"lr": "b.lr"}


def test_a_definition_settles_a_conflict():
    """The class that redefines the name chooses."""

    class A(Forwarding):
        lr = Forwarded(to="a")

    class B(Forwarding):
        lr = Forwarded(to="b")
        x = Forwarded(to="b")

    class Both(A, B):
        lr = B.lr

    assert paths(Both) == {"lr": "b.lr", "x": "b.x"}


def conflict():
    class A(Forwarding):
        lr = Forwarded(path="a.lr")

    class B(Forwarding):
        lr = Forwarded(path="b.lr")

    class Both(A, B):
        pass


def twice():
    class Car(Forwarding, to="inner", forward="step"):
        def step(self):
            pass


def in_place():
    class Car(Forwarding):
        __iadd__ = Forwarded(to="engine")


def circular():
    class Car(Forwarding):
        x = Forwarded(path="x.y")


def circular_by_three():
    class Car(Forwarding):
        a = Forwarded(path="b.x")
        b = Forwarded(path="c.x")
        c = Forwarded(path="a.x")


def plain_attribute():
    class Base(Forwarding):
        state = Forwarded(to="inner")

    class Sub(Base):
        state = {}  # noqa: RUF012


def plain_attribute_over_a_metaclass():
    class Base(metaclass=ForwardingMeta):
        state = Forwarded(to="inner")

    class Sub(Base):
        state = None


def no_target():
    class Car(Forwarding):
        x = Forwarded()


def two_targets():
    class Car(Forwarding, forward="x"):
        engine = target(Engine)
        radio = target(Engine)


def to_without_names():
    class Car(Forwarding, to="engine"):
        pass


def unknown_exception():
    class Car(Forwarding, to="engine", forward="rpm", but="rpn start"):
        pass


def no_name():
    class Car(Wrapper, forward="rpm b-c"):
        pass


def no_names():
    class Car(Forwarding, to="engine", forward=("rpm", 3)):
        pass


def no_interface():
    class Car(Forwarding, to="engine", forward=7):
        pass


def misspelt_keyword():
    class Car(Forwarding, to="engine", forwards="rpm"):
        pass


def misspelt_keyword_on_a_generic_base():
    class Car(Wrapper[Engine], forwarded="rpm"):
        pass


def annotated_only():
    class Car(Wrapper[Engine]):
        rpm: Forwarded[int]


def declared_by_the_class_itself():
    class Car(Wrapper[Engine]):
        rpm = Forwarded


def in_place_on_a_wrapper():
    class Car(Wrapper[Engine]):
        __ior__ = Forwarded()


def by_metaclass():
    class Car(metaclass=ForwardingMeta):
        __del__ = Forwarded(to="engine")


def by_guard():
    class Car(metaclass=ForwardingABCMeta):
        __class__ = Forwarded(to="engine")


NO_KEYWORD = "Car: no base takes the class keyword {!r}; Forwarding takes to=, forward=, methods=, but= and exact="
REFUSED = {
    misspelt_keyword: NO_KEYWORD.format("forwards"),
    misspelt_keyword_on_a_generic_base: NO_KEYWORD.format("forwarded"),
    annotated_only: "Car.rpm is annotated and not declared; "
    "write rpm: Forwarded[...] = Forwarded()",
    declared_by_the_class_itself: "Car.rpm is Forwarded itself; write Forwarded()",
    in_place_on_a_wrapper: "Car.__ior__ cannot be forwarded: 'car |= x' would rebind "
    "the name to the target; use forwarding.proxy.TransparentProxy",
    no_interface: "forward= and but= take names and classes, got 7",
    conflict: "Both.lr is forwarded to 'a.lr' by A and to 'b.lr' by B; "
    "define Both.lr to choose",
    twice: "Car.step is defined in the class body and also forwarded to 'inner'; "
    "remove one of them",
    in_place: "Car.__iadd__ cannot be forwarded: 'car += x' would rebind the name "
    "to the engine; use forwarding.proxy.TransparentProxy",
    circular: "Car.x is forwarded to 'x.y', which leads back to the attribute itself",
    circular_by_three: "Car.c is forwarded to 'a.x', "
    "which leads back to the attribute itself",
    plain_attribute: "Sub.state = {} would hide the forwarding of 'state' declared "
    "in Base; use a property, or set it on an instance",
    plain_attribute_over_a_metaclass: "Sub.state = None would hide the forwarding "
    "of 'state' declared in Base; use a property, or set it on an instance",
    no_target: "Car.x names no target, and Car declares none; "
    "say which, as in Forwarded(to='inner')",
    two_targets: "Car.x names no target, and Car declares engine and radio; "
    "say which, as in Forwarded(to='inner')",
    to_without_names: "Car: to='engine' needs forward=, the names",
    unknown_exception: "Car: but= excepts rpn, start, which forward= does not name "
    "(did you mean 'rpm'?)",
    no_name: "Car cannot forward 'b-c': it is no name",
    no_names: "forward= and but= take names and classes, got 3",
    by_metaclass: "Car.__del__ cannot be forwarded: the wrapper's end would "
    "finalize a target that others still use",
    by_guard: "Car.__class__ cannot be forwarded: isinstance() would believe it and "
    "type() would not; use forwarding.proxy.TransparentProxy",
}


@pytest.mark.parametrize("declare", REFUSED, ids=lambda f: f.__name__)
def test_a_wrong_class_is_refused_with_its_own_error_type(declare):
    """On every Python, the error says what is wrong and what to do."""
    with pytest.raises(ForwardingError) as caught:
        declare()

    assert str(caught.value) == REFUSED[declare]


def test_a_declaration_without_a_checking_base_is_refused_too():
    """A bare class has no later hook, so CPython 3.11 wraps the error."""
    with pytest.raises((ForwardingError, RuntimeError)) as caught:
        type("Car", (), {"__iadd__": Forwarded(to="engine")})

    error = caught.value
    assert "cannot be forwarded" in str(error.__cause__ or error)


def test_a_base_that_swallows_init_subclass_still_cannot_use_a_wrong_declaration():
    """The declaration stays in place, and refuses when it is used."""

    class Swallows:
        def __init_subclass__(cls):
            pass

    class Car(Swallows, Forwarding):
        __iadd__ = Forwarded(to="engine")

    with pytest.raises(ForwardingError, match="was not installed"):
        Car().__iadd__  # noqa: B018


class Guarded(Holds, metaclass=ForwardingABCMeta):
    rpm = Forwarded(to="engine")


class BelowGuarded(Guarded, Stateful):
    pass


@pytest.mark.parametrize("cls", [Guarded, BelowGuarded])
def test_a_class_level_write_is_refused(cls):
    """It would cut the forwarding for every instance."""
    with pytest.raises(ForwardingError) as caught:
        cls.rpm = 7

    assert str(caught.value) == (
        f"{cls.__name__}.rpm = 7 would hide the forwarding of 'rpm' declared in "
        "Guarded; use a property, or set it on an instance"
    )
    assert cls(Engine(3)).rpm == 3


def test_descriptors_and_other_names_may_be_written_on_a_guarded_class():
    """PyTorch assigns methods to classes, and mock patches properties."""
    BelowGuarded.other = 5
    with mock.patch.object(
        BelowGuarded, "rpm", new_callable=mock.PropertyMock, return_value=8
    ):
        assert BelowGuarded(Engine(3)).rpm == 8

    assert BelowGuarded(Engine(3)).rpm == 3
    assert BelowGuarded.other == 5


def test_the_guard_stays_under_the_leaving_metaclass():
    """A class keeps the metaclass of its bases, the guard included."""

    class Derived(Guarded, metaclass=ForwardingMeta):
        torque = Forwarded(to="engine")

    assert type(Derived) is ForwardingABCMeta
    with pytest.raises(ForwardingError):
        Derived.torque = 3


def test_a_guarded_class_counts_as_an_abc():
    """Virtual subclasses can be registered."""
    Guarded.register(Engine)

    assert isinstance(Engine(), Guarded)


def test_annotations_of_a_protocol_can_be_checked_at_run_time():
    """A wrapper of a Protocol's members is an instance of the Protocol."""

    @typing.runtime_checkable
    class HasRpm(Protocol):
        rpm: int

    class Car(Holds, metaclass=ForwardingMeta, to="engine", forward=HasRpm):
        pass

    assert isinstance(Car(Engine()), HasRpm)
    assert not isinstance(Holds(Engine()), HasRpm)


def calls_of(program):
    """Count the functions that a program calls, Python's and C's."""
    count, before = 0, sys.getprofile()

    def tally(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        program()
    finally:
        sys.setprofile(before)
    return count


def guarded(size):
    names = " ".join(f"name{number}" for number in range(size))
    return ForwardingABCMeta("Guarded", (), {}, to="inner", forward=names)


def test_an_assignment_to_a_guarded_class_asks_for_one_name():
    """It costs the same however many names the class declares."""
    few, many = guarded(2), guarded(100)
    for value in (1, property()):
        assert (
            abs(
                calls_of(lambda: setattr(many, "other", value))  # noqa: B023
                - calls_of(lambda: setattr(few, "other", value))  # noqa: B023
            )
            <= 4
        )


def test_a_declaration_on_a_finished_guarded_class_is_installed():
    """The metaclass sees the assignment."""

    class Late(Holds, metaclass=ForwardingABCMeta):
        pass

    Late.rpm = Forwarded(to="engine")
    late = Late(Engine(3))
    late.rpm = 5

    assert late.engine.rpm == 5
    assert paths(Late) == {"rpm": "engine.rpm"}


def test_methods_of_a_bulk_declaration_can_be_named():
    """Where nothing else tells; besides names, or alone."""

    class Car(Forwarding, Holds, to="engine", forward="rpm", methods="start, stop"):
        pass

    class Van(Forwarding, Holds, to="engine", methods="start"):
        pass

    kinds = {name: spec.kind for name, spec in forwarded_attributes(Car).items()}

    assert kinds == {"rpm": "data", "start": "method", "stop": "method"}
    assert Van(Engine()).start("key")[1] == "key"
