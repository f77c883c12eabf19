"""Forwarding beside what else Python has: enums, tuples, mocks, patterns, threads."""

import copy
import enum
import inspect
import io
import pickle
import pydoc
import sys
import threading
import typing
from typing import NamedTuple, Protocol, TypedDict, runtime_checkable
from unittest import mock

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    ForwardingMeta,
    Wrapper,
    chain,
    forwarded,
    target,
    unwrap,
    verify,
)


class Engine:
    def __init__(self, rpm=900):
        self.rpm = rpm

    def start(self, key: str, *, cold: bool = False) -> bool:
        """Start it."""
        return bool(key) or cold

    def __eq__(self, other):
        return isinstance(other, Engine) and vars(self) == vars(other)

    def __hash__(self):
        return 7


class Car(Forwarding):
    engine = target(Engine)
    rpm = forwarded(engine.rpm, doc="Revolutions per minute.")
    start = forwarded(engine.start)

    def __init__(self, engine):
        self.engine = engine


class Garage(Wrapper[Car]):
    rpm = Forwarded()
    start = Forwarded()


class Typed(metaclass=ForwardingMeta, to="engine", forward=Engine):
    def __init__(self, engine):
        self.engine = engine

    rpm = Forwarded(to="engine")


each_depth = pytest.mark.parametrize("depth", [1, 2, 3])
each_kind = pytest.mark.parametrize("kind", [Car, Garage, Typed])


def stack(target, depth, kind):
    for _ in range(depth):
        target = kind(target)
    return target


class Motor(enum.Enum):
    """Members are made of values that are not declarations."""

    SMALL = Engine(900)
    LARGE = Engine(2000)
    rpm = Forwarded(to="value")
    start = Forwarded(to="value", kind="method")


class Bulk(Forwarding, enum.Enum, to="value", forward="rpm"):
    SMALL = Engine(900)


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2
    count = Forwarded(path="value.bit_count", kind="method")


class Colour(enum.StrEnum):
    RED = enum.auto()
    shout = Forwarded(path="value.upper", kind="method")


def test_declarations_are_no_members_of_an_enum():
    """Singly or in bulk; members forward to what they stand for."""
    assert [*Motor.__members__] == ["SMALL", "LARGE"]
    assert (Motor.LARGE.rpm, Motor.LARGE.start("key")) == (2000, True)
    assert ([*Bulk], Bulk.SMALL.rpm) == ([Bulk.SMALL], 900)
    assert ([*Bits], (Bits.ONE | Bits.TWO).count()) == ([Bits.ONE, Bits.TWO], 2)
    assert Colour.RED.shout() == "RED"


def test_members_stay_the_ones_they_are():
    """A copy of a member is the member; so its target is shared."""
    for twin in (copy.deepcopy(Motor.SMALL), pickle.loads(pickle.dumps(Motor.SMALL))):  # noqa: S301
        assert twin is Motor.SMALL
    with pytest.raises(AttributeError):
        Motor.SMALL.value = Engine()


class Pair(NamedTuple):
    engine: Engine


class Named(Forwarding, Pair, to="engine", forward="rpm start"):
    pass


def test_a_named_tuple_forwards_from_a_subclass():
    """The fields are those of the tuple."""
    named = Named(Engine())
    named.rpm = 5

    assert (named._fields, named.engine.rpm) == (("engine",), 5)
    assert named.start("key")
    assert copy.deepcopy(named) == named


def test_in_the_body_of_a_named_tuple_python_must_tell_the_name():
    """It does so from 3.13 on; before, the declaration says that it is not in force."""

    class Direct(NamedTuple):
        engine: Engine
        rpm = Forwarded(to="engine")

    assert Direct._fields == ("engine",)
    if sys.version_info >= (3, 13):
        assert Direct(Engine()).rpm == 900
    else:
        with pytest.raises(ForwardingError, match="a Forwarded of Direct was not in"):
            _ = Direct(Engine()).rpm


def test_a_typed_dict_has_no_attributes():
    """It is a dict at run time, so there is nothing that could forward."""

    class Direct(TypedDict):
        engine: Engine
        rpm = Forwarded(to="engine")

    assert not hasattr(Direct(engine=Engine()), "rpm")


@pytest.mark.slow
def test_pydantic_models_copy_validate_and_freeze_as_ever():
    """Forwarded names are no fields: not validated, dumped or frozen by pydantic."""
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")

    class Model(Forwarding, pydantic.BaseModel, to="engine", forward="rpm"):
        model_config = pydantic.ConfigDict(
            arbitrary_types_allowed=True, validate_assignment=True, extra="forbid"
        )
        engine: Engine
        note: int = 3

    model = Model(engine=Engine())
    model.rpm = 5
    twin = model.model_copy(deep=True)
    twin.rpm = 6

    assert model.model_dump() == {"engine": Engine(5), "note": 3}
    assert (twin.engine.rpm, model.model_copy().rpm) == (6, 5)
    with pytest.raises(pydantic.ValidationError):
        Model(engine=Engine(), rpm=7)
    with pytest.raises(pydantic.ValidationError):
        model.note = "text"


def test_a_frozen_pydantic_model_refuses_forwarded_writes_too():
    """As a frozen dataclass does; the target is as it was."""
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")

    class Frozen(
        Forwarding,
        pydantic.BaseModel,
        to="engine",
        forward="rpm",
        frozen=True,
        arbitrary_types_allowed=True,
    ):
        engine: Engine

    frozen = Frozen(engine=Engine())
    with pytest.raises(pydantic.ValidationError):
        frozen.rpm = 5

    assert frozen.rpm == frozen.engine.rpm == 900


def test_traits_of_the_target_validate_and_delegates_stand_beside():
    """A class may use both; the metaclass of traits takes no class keywords."""
    traits = pytest.importorskip("traits.api", reason="traits is not installed")

    class Observed(traits.HasTraits):
        rpm = traits.Int(900)
        oil = traits.Int(1)

    class Vehicle(Forwarding, traits.HasTraits):
        engine = traits.Any()
        oil = traits.DelegatesTo("engine")
        rpm = Forwarded(to="engine")

    vehicle, seen = Vehicle(engine=Observed()), []
    vehicle.engine.observe(lambda event: seen.append(event.new), "rpm")
    vehicle.rpm = 5
    vehicle.oil = 2

    assert (vehicle.engine.rpm, vehicle.engine.oil, seen) == (5, 2, [5])
    with pytest.raises(traits.TraitError, match="The 'rpm' trait"):
        vehicle.rpm = "fast"
    with pytest.raises(TypeError, match="unexpected keyword"):
        type(Vehicle)("Bulk", (Vehicle,), {}, to="engine", forward="oil")


@each_depth
@each_kind
def test_a_patch_goes_through_every_layer_and_back(depth, kind):
    """Data is patched on the owner, by whichever way mock has for it."""
    engine = Engine()
    top = stack(engine, depth, kind)
    with mock.patch.object(top, "rpm", 1):
        assert engine.rpm == 1
    with mock.patch.multiple(top, rpm=2):
        assert engine.rpm == 2
    with pytest.raises(ZeroDivisionError), mock.patch.object(top, "rpm", 0):
        _ = 1 // engine.rpm
    with mock.patch.object(kind, "rpm", new_callable=mock.PropertyMock) as getter:
        _ = top.rpm
        getter.assert_called_once_with()

    assert vars(engine) == {"rpm": 900}
    assert top.rpm == 900
    assert "rpm" not in vars(top)


@each_depth
@each_kind
def test_a_patched_method_stays_on_its_layer_and_goes(depth, kind):
    """The layers below, the class and the owner keep theirs."""
    engine = Engine()
    top = stack(engine, depth, kind)
    with mock.patch.object(top, "start", autospec=True) as patched:
        top.start("key")
        patched.assert_called_once_with("key")
        assert all("start" not in vars(layer) for layer in chain(top)[1:])
        with pytest.raises(TypeError, match="missing a required argument: 'key'"):
            top.start()

    assert top.start("key") is True
    assert "start" not in vars(top)


@each_kind
def test_a_mock_of_a_wrapper_knows_the_targets_signatures(kind):
    """Spec and autospec see every forwarded name, and how to call it."""
    fake = mock.create_autospec(kind, instance=True)
    fake.start("key", cold=True)

    with pytest.raises(TypeError, match="unexpected keyword argument"):
        fake.start("key", hot=True)
    with pytest.raises(AttributeError, match="no attribute 'fuel'"):
        mock.Mock(spec_set=kind).fuel = 1
    assert mock.Mock(wraps=kind(Engine())).start("key") is True


@runtime_checkable
class Startable(Protocol):
    rpm: int

    def start(self, key): ...


@each_depth
@each_kind
def test_protocols_patterns_and_inspection_see_forwarded_names(depth, kind):
    """What a target's class has, its wrapper has."""
    top = stack(Engine(), depth, kind)
    match top:
        case Forwarding(rpm=900 as rpm):
            pass

    assert rpm == 900
    assert isinstance(top, Startable)
    assert {"rpm", "start"} <= {name for name, _ in inspect.getmembers(top)}
    assert {"rpm", "start"} <= {name for name, _ in inspect.getmembers_static(top)}
    assert {"rpm", "start"} <= set(dir(top))


def test_what_forwards_less_does_not_match():
    """The protocol above is not fulfilled by anything."""

    class Partial(Wrapper[Engine]):
        rpm = Forwarded()

    assert not isinstance(Partial(Engine()), Startable)


def test_help_on_an_object_and_on_a_name_shows_types_and_docs():
    """Of a method by its signature, of data by its docstring."""
    method = pydoc.render_doc(Car(Engine()).start, renderer=pydoc.plaintext)
    whole = pydoc.render_doc(Car, renderer=pydoc.plaintext)
    buffer = io.StringIO()
    pydoc.Helper(output=buffer)(Car.rpm)

    assert "start(key: str, *, cold: bool = False) -> bool" in method
    assert "Start it." in method
    assert "rpm\n |      Revolutions per minute." in whole
    assert "property" in buffer.getvalue()
    assert typing.get_type_hints(Car.start) == {
        "key": str,
        "cold": bool,
        "return": bool,
    }


@each_depth
@each_kind
def test_threads_that_write_leave_one_of_the_values(depth, kind):
    """Every write reaches the owner whole; no layer keeps one for itself."""
    engine = Engine(-1)
    top = stack(engine, depth, kind)
    barrier, seen = threading.Barrier(4), []

    def write(number):
        barrier.wait()
        for step in range(200):
            top.rpm = (number, step)
            seen.append(top.rpm)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert engine.rpm in {(number, 199) for number in range(4)}
    assert set(seen) <= {(number, step) for number in range(4) for step in range(200)}
    assert not any("rpm" in vars(layer) for layer in chain(top)[:-1])
    assert unwrap(top) is engine
    verify(top)
